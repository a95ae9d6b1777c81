/*
 * A stub's address space as a mirror of one guest address space: a software TLB of mappings.
 *
 * A page is mapped when guest code touches it, with the rights that a processor's TLB would hold:
 * writable only once the guest's dirty bit is set, which is also what the dirty log needs. What
 * the guest does to its page tables is seen by watching their pages (watch.h), and the mirror is
 * true again before guest code runs again. It may forget anything at any time.
 */
#ifndef RV_MIRROR_H
#define RV_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "guest_walk.h"
#include "stub.h"

#define MIRROR_BUCKETS 256
/* In bits of an entry that processors ignore: how the page is mapped in the stub; that it was open
 * for writing when that right was last taken away; how often more it is left open then. */
#define MIRROR_WRITE ((uint64_t)1 << 9)
#define MIRROR_EXEC ((uint64_t)1 << 10)
#define MIRROR_WROTE ((uint64_t)1 << 11)
#define MIRROR_STAYS ((uint64_t)3 << 52)
#define MIRROR_BITS (MIRROR_WRITE | MIRROR_EXEC | MIRROR_WROTE | MIRROR_STAYS)
/* vm.max_map_count is 65,530 where nobody has touched it. */
#define MIRROR_MAX_MAPPINGS 60000u
/* Each is some 4 KiB of the VMM's memory. */
#define MIRROR_MAX_TABLES 1024u

struct rv_vcpu;

/* What is mirrored of the 2 MiB at `va`: by the page table there, or of one large page. */
struct rv_mirror_table {
    struct rv_mirror_table *next;
    uint64_t va;
    uint64_t path[4], value[3]; /* offsets in RAM and values of the entries above; path[3]: the table */
    bool large;                 /* the last of `path` is a leaf: no page table below */
    int levels;                 /* of `value` */
    uint64_t seen;              /* the watch's time when it was true */
    unsigned mapped;
    unsigned touches;           /* traps that pages were mapped for: the more, the wider around */
    unsigned reopened, reach;   /* where the last run of pages ends that was opened again, its length */
    uint64_t copy[512]; /* the entries as they were, with MIRROR_*; 0: not mapped */
};

struct rv_mirror {
    struct rv_vcpu *vcpu;
    struct rv_stub *stub;
    uint64_t cr3;
    struct rv_mirror_table *buckets[MIRROR_BUCKETS];
    unsigned tables;
    unsigned mappings;   /* at most so many in the stub */
    uint64_t seen;       /* the watch's time when all was true */
    uint64_t writes;     /* rv_direct.write_epoch when writable pages were looked through */
    unsigned queued;     /* commands not yet performed */
    uint64_t switch_ticks; /* what a switch to this stub and back takes at the least */
};

enum rv_mirror_result {
    MIRROR_DONE,
    MIRROR_FAULT, /* the guest gets #PF with `*error` */
    MIRROR_ODD,   /* this access is for the engine */
    MIRROR_CPUID, /* the same, unless the stub trapped CPUID */
    MIRROR_LOST,  /* the stub is gone */
};

struct rv_mirror *rv_mirror_new(struct rv_vcpu *v, struct rv_stub *stub, uint64_t cr3);
/* Frees the stub, too. */
void rv_mirror_free(struct rv_mirror *m);

/* User code touched `va` and was not let: map it as the guest has it. */
enum rv_mirror_result rv_mirror_fault(struct rv_mirror *m, uint64_t va, bool write, bool fetch,
                                      uint32_t *error);

/* The guest has had this page fault and goes on: map the page if its kernel has supplied it, rather
 * than wait for the trap. 0, or -1: the stub is gone. */
int rv_mirror_expect(struct rv_mirror *m, uint64_t va, bool write, bool fetch);

/* Make the mirror true. 0, or -1: the stub is gone. */
int rv_mirror_sync(struct rv_mirror *m);

#endif
