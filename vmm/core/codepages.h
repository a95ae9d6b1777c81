/*
 * Which guest pages hold translated code, and the software TLB kept honest about it.
 *
 * A store to a page with translated code must take the slow path, which drops the translation;
 * a store to any other page should take the fast one. Unicorn decides per TLB entry and by the
 * entry's own executability, so it is slow for data in pages that are executable (a kernel's
 * data until it has booted) and blind where a page is written through one mapping and executed
 * through another. The core decides by page: the address an entry may execute at is hidden
 * from data accesses (no code here: NEVER_CODE) or poisoned (code here: HAS_CODE, which no
 * address equals), and every mapping of a page is corrected when its first block is translated.
 */
#ifndef RV_CODEPAGES_H
#define RV_CODEPAGES_H

#include <stdbool.h>
#include <stdint.h>

struct rv_vcpu;

/* Take the vCPU's TLB fill over. Call once, before anything runs. 0 or -1. */
int rv_codepages_attach(struct rv_vcpu *v);
void rv_codepages_detach(struct rv_vcpu *v);

/* The host has written guest RAM [offset, offset + count): drop what was translated from it.
 * The vCPU is not running. */
void rv_codepages_invalidate(struct rv_vcpu *v, uint64_t offset, uint64_t count);

/* Whether code was translated from a page of RAM. */
bool rv_codepages_has_code(const struct rv_vcpu *v, uint64_t page);

/* Have each store to a page looked at, code or no code; and not any more (see watch.h). */
void rv_codepages_follow(struct rv_vcpu *v, uint64_t page);
void rv_codepages_leave(struct rv_vcpu *v, uint64_t page);

/* Interposed (see engine.h): the first block of a page was translated; the last one dropped. */
void rv_protect_code(void *uc, uint64_t ram_addr);
void rv_unprotect_code(void *uc, uint64_t ram_addr);
/* Interposed: what rv_protect_code does for every mapping, Unicorn does here for one, by a walk
 * of the whole TLB for each block. */
void rv_reset_dirty_by_vaddr(void *cpu, uint64_t start, uint64_t length);

#endif
