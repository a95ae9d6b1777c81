/*
 * Where the LOCK prefix may stand (Intel SDM 2A, LOCK): anywhere else it is #UD.
 *
 * The engine does not look everywhere. LOCK BTS of a register goes to whatever address the
 * instructions before it have worked out, and if there is none, the engine gives up.
 */
#ifndef RV_LOCK_H
#define RV_LOCK_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the instruction at the linear address `pc` has a LOCK that it may not have. Raises #PF
 * where fetching it does. */
bool rv_lock_refused(void *env, uint64_t pc);

#endif
