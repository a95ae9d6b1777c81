#include "globals.h"

#include <string.h>

#include "control.h"
#include "guest_walk.h"
#include "vcpu.h"

#define PAGE_MASK (~(uint64_t)0xfff)
#define PTE_G 0x100u
/* In an entry, with its address: so that what another one has left there means nothing. */
#define GLOBAL_MARK 0x676c6f62616c0000u
/* The engine fits the size of its TLB to its use when all is dropped: now and then, all is. */
#define KEPT_LOADS 64u
#define CROWDED_PERCENT 70u

static struct rv_uc_tlb_fast *fast_of(void *env, int mode)
{
    return (struct rv_uc_tlb_fast *)((char *)env + ENV_TLB + TLB_FAST) + mode;
}

static char *description_of(void *env, int mode)
{
    return (char *)env + ENV_TLB + TLB_DESC + mode * TLB_DESC_BYTES;
}

static uint64_t entries_in(const struct rv_uc_tlb_fast *fast)
{
    return fast->mask / sizeof(struct rv_uc_tlb_entry) + 1;
}

static bool has_globals(const void *env)
{
    uint64_t cr0 = RV_AT(env, ENV_CR, uint64_t), cr4 = RV_AT(env, ENV_CR + 4 * 8, uint64_t);
    return cr0 & CR0_PG && cr4 & CR4_PGE && !(cr4 & CR4_LA57) &&
           RV_AT(env, ENV_HFLAGS, uint32_t) & HF_LMA;
}

static bool is_global(const struct rv_vcpu *v, uint64_t address)
{
    struct rv_walk w;
    uint64_t cr3 = RV_AT(v->env, ENV_CR + 3 * 8, uint64_t);
    return address >> 63 && has_globals(v->env) &&
           rv_walk(v, cr3, address, false, false, &w) != WALK_ODD && w.error & PF_PRESENT &&
           w.entry[w.last] & PTE_G;
}

void rv_globals_filled(struct rv_vcpu *v, int mode, uint64_t address, struct rv_uc_tlb_entry *e)
{
    struct rv_locals *l = &v->locals;
    uint64_t page = address & PAGE_MASK;
    if (mode == MODE_USER)
        return;
    if (is_global(v, address)) {
        e->mark = GLOBAL_MARK ^ page;
        return;
    }
    e->mark = 0;
    if (l->count < RV_MOST_LOCALS)
        l->pages[l->count] = page;
    if (l->count <= RV_MOST_LOCALS)
        l->count++;
}

static bool holds(const struct rv_uc_tlb_entry *e, uint64_t page)
{
    return (e->addr_read & PAGE_MASK) == page || (e->addr_write & PAGE_MASK) == page ||
           (e->addr_code & PAGE_MASK) == page;
}

static void drop_locals(struct rv_vcpu *v, int mode)
{
    struct rv_uc_tlb_fast *fast = fast_of(v->env, mode);
    char *description = description_of(v->env, mode);
    for (uint32_t i = 0; i < v->locals.count; i++) {
        uint64_t page = v->locals.pages[i];
        struct rv_uc_tlb_entry *e = &fast->table[page >> 12 & (entries_in(fast) - 1)];
        if (holds(e, page) && e->mark != (GLOBAL_MARK ^ page)) {
            memset(e, 0xff, sizeof(*e));
            RV_AT(description, TLB_DESC_USED, uint64_t)--;
        }
    }
    memset(description + TLB_DESC_VICTIMS, 0xff, TLB_VICTIMS * sizeof(struct rv_uc_tlb_entry));
}

static bool crowded(void *env, int mode)
{
    return RV_AT(description_of(env, mode), TLB_DESC_USED, uint64_t) * 100 >
           entries_in(fast_of(env, mode)) * CROWDED_PERCENT;
}

void rv_load_cr3(void *env, uint64_t cr3)
{
    struct rv_vcpu *v = rv_current;
    if (!v || v->env != env || !has_globals(env) || v->locals.count > RV_MOST_LOCALS ||
        ++v->locals.loads % KEPT_LOADS == 0 || crowded(env, MODE_KERNEL) ||
        crowded(env, MODE_KERNEL_SMAP)) {
        rv_engine.original.load_cr3(env, cr3);
        if (v && RV_AT(env, ENV_CR, uint64_t) & CR0_PG)
            v->locals.count = 0;
        return;
    }
    uint16_t *dirty = &RV_AT(env, ENV_TLB, uint16_t), kernel;
    drop_locals(v, MODE_KERNEL);
    drop_locals(v, MODE_KERNEL_SMAP);
    v->locals.count = 0;
    RV_AT(env, ENV_CR + 3 * 8, uint64_t) = cr3;
    kernel = *dirty & (1u << MODE_KERNEL | 1u << MODE_KERNEL_SMAP);
    *dirty = (uint16_t)(*dirty & ~kernel); /* a mode that is clean is not flushed */
    rv_engine.tlb_flush(v->cpu);
    *dirty |= kernel;
}
