/*
 * The core's part in the translation of a block, instruction by instruction.
 *
 * While it translates, the engine gives each intermediate value one of 512 temporaries. Some
 * instructions never give theirs back, a block may have 512 instructions, and nobody counts: what
 * has no place overwrites what lies behind the table. The core counts, and ends the block.
 *
 * An instruction that LOCK is refused for (see lock.h) is not translated at all: it is #UD.
 */
#ifndef RV_TRANSLATION_H
#define RV_TRANSLATION_H

/* Interposed (see engine.h): the loop over the instructions of one block. `steps` are the functions
 * it calls, `block` is what they share. */
void rv_translate_block(const void *steps, void *block, void *cpu, void *made, int instructions);

#endif
