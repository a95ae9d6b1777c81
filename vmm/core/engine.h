/* The Unicorn library, opened at run time, proven to be the one the core was written for. */
#ifndef RV_ENGINE_H
#define RV_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <unicorn/unicorn.h>

#include "unicorn_private.h"

#define RV_PUBLIC_SYMBOLS(RV_PUBLIC)                                                               \
    RV_PUBLIC(uc_version)                                                                          \
    RV_PUBLIC(uc_open)                                                                             \
    RV_PUBLIC(uc_close)                                                                            \
    RV_PUBLIC(uc_ctl)                                                                              \
    RV_PUBLIC(uc_strerror)                                                                         \
    RV_PUBLIC(uc_hook_add)                                                                         \
    RV_PUBLIC(uc_mem_map_ptr)                                                                      \
    RV_PUBLIC(uc_mmio_map)                                                                         \
    RV_PUBLIC(uc_mem_protect)                                                                      \
    RV_PUBLIC(uc_emu_start)                                                                        \
    RV_PUBLIC(uc_emu_stop)                                                                         \
    RV_PUBLIC(uc_reg_read)                                                                         \
    RV_PUBLIC(uc_reg_write)

struct rv_engine {
#define RV_PUBLIC(name) __typeof__(name) *name;
    RV_PUBLIC_SYMBOLS(RV_PUBLIC)
#undef RV_PUBLIC
#define RV_PRIVATE(member, symbol, result, arguments) result(*member) arguments;
    RV_PRIVATE_SYMBOLS(RV_PRIVATE)
#undef RV_PRIVATE
    /* What stood in the linkage table before the core took its place. */
    struct {
#define RV_INTERPOSED(member, symbol, result, arguments) result(*member) arguments;
        RV_INTERPOSED_SYMBOLS(RV_INTERPOSED)
#undef RV_INTERPOSED
    } original;
};

/* One per process; valid after rv_engine_load. */
extern struct rv_engine rv_engine;

/* Open the library at `path` and prove it. Idempotent. On failure returns -1 and writes one
 * line to `why`. Call with no vCPU running. */
int rv_engine_load(const char *path, char *why, size_t why_bytes);

/* A field of one of Unicorn's own structures. */
#define RV_AT(base, offset, type) (*(__typeof__(type) *)((char *)(base) + (offset)))

static inline void *rv_cpu_of(uc_engine *uc) { return RV_AT(uc, UC_CPU, void *); }

static inline void *rv_env_of(uc_engine *uc) { return RV_AT(rv_cpu_of(uc), CPU_ENV, void *); }

#endif
