#include "blockend.h"

#include <stdint.h>
#include <string.h>

#include "engine.h"

/* For one instruction more and for what ends the block: in random code, none took more than 6. */
#define TEMPORARIES_KEPT 64

/* What the loop calls for each instruction, when the core does not stand in between. */
static _Thread_local void (*translate)(void *block, void *cpu);

static void translate_and_count(void *block, void *cpu)
{
    const void *tcg = RV_AT(RV_AT(cpu, CPU_UC, char *), UC_TCG, void *);
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
