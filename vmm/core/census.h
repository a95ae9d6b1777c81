/* The exit census: what the guest executed that the translator could not do alone, and where. */
#ifndef RV_CENSUS_H
#define RV_CENSUS_H

#include <stdint.h>

enum rv_kind {
    RV_IO_IN,     /* detail: port */
    RV_IO_OUT,    /* detail: port */
    RV_MMIO,      /* detail: guest physical address that is not RAM */
    RV_CPUID,     /* detail: leaf */
    RV_HLT,
    RV_SYSCALL,
    RV_SYSENTER,
    RV_EXCEPTION, /* detail: vector */
    RV_INTERRUPT, /* detail: vector */
    RV_STOP,      /* the run loop was asked to return */
    RV_KINDS,
};

#define RV_CENSUS_SITES 4096 /* a power of two */
#define RV_CENSUS_RECENT 64

struct rv_site {
    uint64_t detail, rip, count; /* count 0: free */
    uint32_t kind;
};

struct rv_census {
    uint64_t counts[RV_KINDS];
    uint64_t unplaced; /* exits from sites beyond the table */
    struct rv_site *sites;
    struct {
        uint64_t detail, rip;
        uint32_t kind;
    } recent[RV_CENSUS_RECENT]; /* a ring; `next` is the oldest */
    uint64_t next;
};

/* Count one exit at `rip`. The vCPU's thread alone. */
void rv_census_count(struct rv_census *c, enum rv_kind kind, uint64_t detail, uint64_t rip);
void rv_census_clear(struct rv_census *c);
void rv_census_free(struct rv_census *c);

#endif
