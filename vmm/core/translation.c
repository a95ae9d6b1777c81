#include "translation.h"

#include <stdint.h>
#include <string.h>

#include "engine.h"
#include "lock.h"

#define VECTOR_UD 6
/* For one instruction more and for what ends the block: in random code, none took more than 6. */
#define TEMPORARIES_KEPT 64

/* What the loop calls for each instruction, when the core does not stand in between. */
static _Thread_local void (*translate)(void *block, void *cpu);

/* Nothing has been executed yet of a block that is being translated: an exception can be raised
 * where the block begins, as it is when a page of code is not there. */
static void refuse(void *block, void *env)
{
    if (RV_AT(block, CONTEXT_INSTRUCTIONS, int32_t) == 1)
        rv_engine.raise_exception(env, VECTOR_UD, 0);
    RV_AT(block, CONTEXT_GOES_ON, int32_t) = CONTEXT_NEXT_BLOCK;
}

static void translate_and_count(void *block, void *cpu)
{
    const void *tcg = RV_AT(RV_AT(cpu, CPU_UC, char *), UC_TCG, void *);
    void *env = RV_AT(cpu, CPU_ENV, void *);
    if (rv_lock_refused(env, RV_AT(block, CONTEXT_NEXT_PC, uint64_t))) {
        refuse(block, env);
        return;
    }
    translate(block, cpu);
    if (RV_AT(tcg, TCG_TEMPORARIES, int32_t) > TCG_MOST_TEMPORARIES - TEMPORARIES_KEPT)
        RV_AT(block, CONTEXT_MOST_INSTRUCTIONS, int32_t) = 1;
}

void rv_translate_block(const void *steps, void *block, void *cpu, void *made, int instructions)
{
    char ours[TRANSLATOR_BYTES];
    memcpy(ours, steps, sizeof(ours));
    translate = RV_AT(ours, TRANSLATOR_INSTRUCTION, __typeof__(translate));
    RV_AT(ours, TRANSLATOR_INSTRUCTION, __typeof__(translate)) = translate_and_count;
    rv_engine.original.translate_block(ours, block, cpu, made, instructions);
}
