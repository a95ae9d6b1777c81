/*
 * Control registers and EFER: their bits, and what a processor refuses to have written into them
 * (Intel SDM 2B, MOV to control registers; 3A 2.2.1, 2.5, 4.1). The engine takes whatever comes, and
 * a state that no processor can be in cannot be restored.
 */
#ifndef RV_CONTROL_H
#define RV_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#define CR0_PE 0x1u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR0_WRITABLE 0xe005003fu

#define CR4_PAE 0x20u
#define CR4_PGE 0x80u
#define CR4_OSFXSR 0x200u
#define CR4_LA57 0x1000u
#define CR4_FSGSBASE 0x10000u
#define CR4_SMAP 0x200000u
/* VME..OSXMMEXCPT, UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP */
#define CR4_WRITABLE 0x371fffu

#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_WRITABLE 0xd01u /* SCE LME LMA NXE */

/* Whether `value` in control register `reg`, or in EFER, is a #GP in the present state. */
bool rv_control_refused(const void *env, int reg, uint64_t value);
bool rv_efer_refused(const void *env, uint64_t value);

#endif
