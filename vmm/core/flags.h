/* RFLAGS and hflags: the engine keeps them in parts. */
#ifndef RV_FLAGS_H
#define RV_FLAGS_H

#include "engine.h"

#define RFLAGS_CONDITIONS 0x8d5u /* CF PF AF ZF SF OF */
#define RFLAGS_FIXED 0x2u
#define RFLAGS_TF 0x100u
#define RFLAGS_IF 0x200u
#define RFLAGS_DF 0x400u
#define RFLAGS_IOPL_SHIFT 12
#define RFLAGS_IOPL 0x3000u
#define RFLAGS_NT 0x4000u
#define RFLAGS_RF 0x10000u
#define RFLAGS_VM 0x20000u
#define RFLAGS_AC 0x40000u
#define RFLAGS_ID 0x200000u
#define RFLAGS_WRITABLE 0x3f7fd7u

/* Descriptor attributes as SegmentCache.flags has them */
#define DESC_CODE 0x800u
#define DESC_RW 0x200u
#define DESC_ACCESSED 0x100u
#define DESC_S 0x1000u
#define DESC_DPL(dpl) ((uint32_t)(dpl) << 13)
#define DESC_P 0x8000u
#define DESC_L 0x200000u
#define DESC_B 0x400000u
#define DESC_G 0x800000u

uint64_t rv_read_rflags(void *env);

/* While the vCPU runs (in a hook) the condition codes stand apart from the engine's eflags;
 * between runs they stand in both. */
void rv_write_rflags(void *env, uint64_t rflags);
void rv_write_rflags_at_rest(void *env, uint64_t rflags);

/* Derive hflags from the control registers, RFLAGS and segments. What does not follow from them
 * (the interrupt shadow, I/O breakpoints) stays. */
void rv_update_hflags(void *env);

/* A flat 4 GiB (or 64-bit) segment, as SYSCALL and SYSENTER load it. */
void rv_load_flat(void *env, int segment, uint32_t selector, uint32_t flags);

#endif
