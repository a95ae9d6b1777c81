/*
 * The beginning of each translated block: has somebody asked the vCPU to leave?
 *
 * The engine calls a helper there, in every block. The core writes a comparison in its place, and
 * the helper is called only when somebody has.
 */
#ifndef RV_BLOCKSTART_H
#define RV_BLOCKSTART_H

#include <stdint.h>

/* Interposed (see engine.h): a block has been translated, and will be executed from now on. */
void rv_keep_block(void *tcg, void *block);
/* The helper; called by translated code alone. */
void rv_exit_asked(void *uc, uint32_t slot);

#endif
