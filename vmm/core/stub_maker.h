/* Between the VMM and the maker of its stubs: what one leaves for the other. */
#ifndef RV_STUB_MAKER_H
#define RV_STUB_MAKER_H

#include <linux/filter.h>

#include "stub.h"

#define NURSERY_BYTES (64u << 10)
#define STUB_PROGRAM_ROOM 48

/* A seccomp filter. */
struct rv_stub_program {
    uint64_t count;
    struct sock_filter list[STUB_PROGRAM_ROOM];
};

/* At the bottom of the signal stack while a stub begins. */
struct rv_stub_setup {
    uint64_t trap_cpuid;   /* wanted; and, when the stub has begun: had */
    struct rv_stub_program both, mapper, runner;
};

struct rv_stub_request {
    uint64_t base;
};

struct rv_stub_reply {
    int runner, mapper;
};

/* What the maker begins with. */
struct rv_stub_nursery {
    int fds[MAKER_DESCRIPTORS];
    uint8_t *stacks; /* NURSERY_BYTES: the upper half for runners that begin */
    void *rseq;      /* what the C library has registered for the forking thread, or NULL */
    uint64_t rseq_bytes;
    const void *ignore; /* a kernel sigaction with SIG_IGN, inside this library or `stacks` */
};

/* Fork the maker; signals must be blocked. Its pid, or a negative errno. */
long rv_stub_maker_fork(struct rv_stub_nursery *nursery);
void rv_stub_maker_main(void *nursery);

#endif
