#include "control.h"

#include "engine.h"

static uint64_t control(const void *env, int reg)
{
    return (&RV_AT(env, ENV_CR, uint64_t))[reg];
}

static uint64_t efer(const void *env)
{
    return RV_AT(env, ENV_EFER, uint64_t);
}

static bool cr0_refused(const void *env, uint64_t value)
{
    bool paging = value & CR0_PG, paging_now = control(env, 0) & CR0_PG;
    if (value >> 32 || (paging && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
        return true;
    if (paging && !paging_now && efer(env) & EFER_LME && !(control(env, 4) & CR4_PAE))
        return true;
    return paging_now && !paging && RV_AT(env, ENV_HFLAGS, uint32_t) & HF_CS64;
}

static bool cr4_refused(const void *env, uint64_t value)
{
    uint64_t changed = value ^ control(env, 4);
    return value & ~(uint64_t)CR4_WRITABLE ||
           (efer(env) & EFER_LMA && (changed & CR4_LA57 || !(value & CR4_PAE)));
}

bool rv_control_refused(const void *env, int reg, uint64_t value)
{
    return (reg == 0 && cr0_refused(env, value)) || (reg == 4 && cr4_refused(env, value));
}

bool rv_efer_refused(const void *env, uint64_t value)
{
    return value & ~(uint64_t)EFER_WRITABLE ||
           ((value ^ efer(env)) & EFER_LME && control(env, 0) & CR0_PG);
}
