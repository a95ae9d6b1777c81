/*
 * Where translated code goes on after an indirect jump, or one that leaves its page.
 *
 * The engine asks a helper at each such jump. Its own table is small, badly spread, and emptied
 * whenever the guest changes an address space; what is not in it costs a walk through a hash table.
 * This one keeps its entries over such changes, and asks the software TLB whether they still hold.
 */
#ifndef RV_JUMPCACHE_H
#define RV_JUMPCACHE_H

#include "engine.h"

struct rv_vcpu;
struct rv_jumpcache;

/* 0, or -1: out of memory. */
int rv_jumpcache_attach(struct rv_vcpu *v);
void rv_jumpcache_detach(struct rv_vcpu *v);

/* All translated code is about to go. */
void rv_jumpcache_forget(struct rv_vcpu *v);

/* The index of `pc` in the engine's own table. */
static inline uint32_t rv_jump_index(uint64_t pc)
{
    uint64_t mixed = pc ^ pc >> 6;
    return (uint32_t)((mixed >> 6 & 0xfc0) | (mixed & 0x3f));
}

/* Interposed (see engine.h): the helper that is asked, the walk through the hash table, and a page's
 * part of the engine's table is emptied. */
void *rv_lookup_block(void *env);
void *rv_find_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cflags);
void rv_flush_jumps(void *cpu, uint64_t address);

#endif
