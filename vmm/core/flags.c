#include "flags.h"

#include "control.h"

static struct rv_uc_segment *segment(void *env, int index)
{
    return (struct rv_uc_segment *)((char *)env + ENV_SEGS) + index;
}

uint64_t rv_read_rflags(void *env)
{
    uint64_t flags =
        RV_AT(env, ENV_EFLAGS, uint64_t) & ~(uint64_t)(RFLAGS_CONDITIONS | RFLAGS_DF);
    flags |= rv_engine.condition_codes(env, RV_AT(env, ENV_CC_OP, int32_t)) & RFLAGS_CONDITIONS;
    if (RV_AT(env, ENV_DF, int32_t) < 0)
        flags |= RFLAGS_DF;
    return flags | RFLAGS_FIXED;
}

void rv_write_rflags(void *env, uint64_t rflags)
{
    rflags &= RFLAGS_WRITABLE;
    RV_AT(env, ENV_CC_SRC, uint64_t) = rflags & RFLAGS_CONDITIONS;
    RV_AT(env, ENV_CC_OP, uint32_t) = CC_OP_EFLAGS;
    RV_AT(env, ENV_DF, int32_t) = rflags & RFLAGS_DF ? -1 : 1;
    RV_AT(env, ENV_EFLAGS, uint64_t) =
        (rflags & ~(uint64_t)(RFLAGS_CONDITIONS | RFLAGS_DF)) | RFLAGS_FIXED;
}

void rv_write_rflags_at_rest(void *env, uint64_t rflags)
{
    rv_write_rflags(env, rflags);
    RV_AT(env, ENV_EFLAGS, uint64_t) |= rflags & (RFLAGS_CONDITIONS | RFLAGS_DF);
}

void rv_update_hflags(void *env)
{
    const uint32_t derived = HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_PE | (7u << HF_MP_SHIFT) |
                             HF_LMA | HF_CS64 | HF_OSFXSR | HF_SMAP | HF_FROM_RFLAGS;
    uint64_t cr0 = RV_AT(env, ENV_CR, uint64_t);
    uint64_t cr4 = RV_AT(env, ENV_CR + 4 * 8, uint64_t);
    uint64_t rflags = RV_AT(env, ENV_EFLAGS, uint64_t);
    uint32_t cs = segment(env, SEG_CS)->flags, ss = segment(env, SEG_SS)->flags;
    uint32_t h = RV_AT(env, ENV_HFLAGS, uint32_t) & ~derived;

    h |= ss >> 13 & HF_CPL;
    if (cr0 & CR0_PE)
        h |= HF_PE;
    h |= (uint32_t)(cr0 << (HF_MP_SHIFT - 1)) & 7u << HF_MP_SHIFT; /* MP EM TS */
    if (cr4 & CR4_OSFXSR)
        h |= HF_OSFXSR;
    if (cr4 & CR4_SMAP)
        h |= HF_SMAP;
    if (RV_AT(env, ENV_EFER, uint64_t) & EFER_LMA)
        h |= HF_LMA;
    if (h & HF_LMA && cs & DESC_L) {
        h |= HF_CS32 | HF_SS32 | HF_CS64;
    } else {
        if (cs & DESC_B)
            h |= HF_CS32;
        if (ss & DESC_B)
            h |= HF_SS32;
        if (!(cr0 & CR0_PE) || rflags & RFLAGS_VM || !(h & HF_CS32) ||
            (segment(env, SEG_DS)->base | segment(env, SEG_ES)->base | segment(env, SEG_SS)->base))
            h |= HF_ADDSEG;
    }
    RV_AT(env, ENV_HFLAGS, uint32_t) = h;
}

void rv_load_flat(void *env, int index, uint32_t selector, uint32_t flags)
{
    struct rv_uc_segment *s = segment(env, index);
    s->selector = selector;
    s->base = 0;
    s->limit = UINT32_MAX;
    s->flags = flags | DESC_G | DESC_P | DESC_S | DESC_RW | DESC_ACCESSED;
}
