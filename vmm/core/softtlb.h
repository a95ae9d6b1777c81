/* The engine's software TLB, as translated code looks into it. */
#ifndef RV_SOFTTLB_H
#define RV_SOFTTLB_H

#include <stdint.h>

#include "engine.h"
#include "flags.h"

#define TLB_PAGE_MASK (~(uint64_t)0xfff)

/* Whose accesses these are; `flags` is the engine's hflags, with AC of RFLAGS. */
static inline int rv_tlb_mode(uint32_t flags)
{
    if ((flags & HF_CPL) == 3)
        return MODE_USER;
    return flags & HF_SMAP && !(flags & RFLAGS_AC) ? MODE_KERNEL_SMAP : MODE_KERNEL;
}

/* Where the page of `address` would be found. */
static inline const struct rv_uc_tlb_entry *rv_tlb_entry(void *env, int mode, uint64_t address)
{
    const struct rv_uc_tlb_fast *fast =
        (void *)((char *)env + ENV_TLB + TLB_FAST + mode * (int)sizeof(*fast));
    return &fast->table[address >> 12 & fast->mask / sizeof(struct rv_uc_tlb_entry)];
}

#endif
