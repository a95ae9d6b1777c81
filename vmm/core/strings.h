/*
 * REP STOS and REP MOVS by the page: how kernels clear and copy memory.
 *
 * The engine translates one as a block that does a single element and jumps to itself. Before such
 * a block, the core does all elements but the last of what lies in pages that the software TLB has
 * for a plain store, or load; the block then does what is left, with its faults and interrupts.
 */
#ifndef RV_STRINGS_H
#define RV_STRINGS_H

#include <stdint.h>

struct rv_vcpu;

/* What a translated block repeats, or 0: an argument of rv_string_ahead. */
uint32_t rv_string_kind(struct rv_vcpu *v, const void *block);

/* Called by translated code, before such a block. */
void rv_string_ahead(void *env, uint32_t kind) __attribute__((visibility("hidden")));

#endif
