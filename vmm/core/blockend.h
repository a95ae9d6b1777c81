/*
 * The end of each translated block: before the engine has no room left for it.
 *
 * While it translates, the engine gives each intermediate value one of 512 temporaries. Some
 * instructions never give theirs back, a block may have 512 instructions, and nobody counts: what
 * has no place overwrites what lies behind the table. The core counts, and ends the block.
 */
#ifndef RV_BLOCKEND_H
#define RV_BLOCKEND_H

/* Interposed (see engine.h): the loop over the instructions of one block. `steps` are the functions
 * it calls, `block` is what they share. */
void rv_translate_block(const void *steps, void *block, void *cpu, void *made, int instructions);

#endif
