#include "bases.h"

#include "control.h"
#include "standin.h"
#include "vcpu.h"

#define VECTOR_GP 13
#define MSR_SYSENTER_ESP 0x175u
#define MSR_SYSENTER_EIP 0x176u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_FS_BASE 0xc0000100u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MOST_PREFIXES 14
#define REX_W 8u
#define REX_B 1u
#define WRFSBASE 2u /* ModRM.reg, behind 0F AE, of a register */
#define WRGSBASE 3u

typedef void helper_fn(void *env, uint32_t bit);

helper_fn *rv_before_test_cr4(void *env, uint32_t bit, uint64_t none, uintptr_t back)
    __attribute__((visibility("hidden"), used));

RV_JUMP_AFTER(rv_test_cr4, rv_before_test_cr4);

bool rv_address_msr_refused(uint32_t index, uint64_t value)
{
    bool address = index == MSR_SYSENTER_ESP || index == MSR_SYSENTER_EIP || index == MSR_LSTAR ||
                   index == MSR_CSTAR || (index >= MSR_FS_BASE && index <= MSR_KERNEL_GS_BASE);
    return address && value != rv_canonical(value);
}

/* Whether the instruction at `pc` writes a base that is no address. It is one of the four. */
static bool writes_no_address(void *env, uint64_t pc)
{
    uint32_t byte = rv_engine.fetch_byte(env, pc), rex = 0;
    for (int i = 0; byte != 0x0f && i < MOST_PREFIXES; i++) {
        rex = byte;
        byte = rv_engine.fetch_byte(env, ++pc);
    }
    uint32_t modrm = rv_engine.fetch_byte(env, pc + 2), operation = modrm >> 3 & 7;
    if ((operation != WRFSBASE && operation != WRGSBASE) || (rex & 0xf0) != 0x40 || !(rex & REX_W))
        return false; /* 32 bits are an address in any case */
    uint64_t value = (&RV_AT(env, ENV_REGS, uint64_t))[(rex & REX_B) << 3 | (modrm & 7)];
    return value != rv_canonical(value);
}

/* A kernel does this at each switch of processes, with what it has let into a base before. */
helper_fn *rv_before_test_cr4(void *env, uint32_t bit, uint64_t none, uintptr_t back)
{
    struct rv_vcpu *v = rv_current;
    (void)none;
    if (v && bit == CR4_FSGSBASE && (RV_AT(env, ENV_HFLAGS, uint32_t) & HF_CPL) == 3 &&
        RV_AT(env, ENV_CR + 4 * 8, uint64_t) & bit && rv_engine.restore_state(v->cpu, back, true) &&
        writes_no_address(env, rv_linear_rip(v)))
        rv_engine.raise_exception(env, VECTOR_GP, 0);
    return rv_engine.original.test_cr4;
}
