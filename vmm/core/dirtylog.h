/*
 * The dirty log: which pages of RAM were written since the last harvest.
 *
 * Every guest store goes through the software TLB, whose entries start out "not dirty": the
 * first store through each takes a slow path on which the core stands (engine.h), and so does
 * the page walk that sets accessed and dirty bits. A harvest flushes the TLB, which arms every
 * page again. No privilege, no signal, no kernel feature. Host-side writers say what they wrote.
 */
#ifndef RV_DIRTYLOG_H
#define RV_DIRTYLOG_H

#include <stddef.h>
#include <stdint.h>

struct rv_vcpu;

/* Start with every page clean. 0 or -1 (out of memory). Harmless when started. Not while running. */
int rv_dirtylog_start(struct rv_vcpu *v);
void rv_dirtylog_stop(struct rv_vcpu *v);

/* Bytes of a harvest: a bit a page, low bit first. */
size_t rv_dirtylog_bytes(const struct rv_vcpu *v);

/* Move the log to `bitmap` and start afresh. The log is on; not while running. Pages that native
 * code may write stay so if they are at most `most_open`: they are then in every harvest, written or
 * not, which costs less than to close them and to let each trap. */
void rv_dirtylog_harvest(struct rv_vcpu *v, uint8_t *bitmap, size_t most_open);

/* RAM [offset, offset + count) was written. Harmless when the log is off. */
void rv_dirtylog_mark(struct rv_vcpu *v, uint64_t offset, uint64_t count);

/* Interposed: the slow path of a store, and of accessed and dirty bits. */
void rv_slow_store(void *uc, void *pages, uint64_t ram_addr, int bytes, uintptr_t retaddr);
void rv_store_entry(void *cpu, uint64_t gpa, uint32_t value);

#endif
