#include "codepages.h"

#include <stdlib.h>

#include "direct.h"
#include "vcpu.h"

#define PAGE_SHIFT 12
#define PAGE_MASK (~(uint64_t)0xfff)
#define NEVER_CODE (~(uint64_t)0)
#define HAS_CODE (~(uint64_t)1)

typedef bool tlb_fill_fn(void *cpu, uint64_t address, int size, int access, int mode, bool probe,
                         uintptr_t retaddr);

static tlb_fill_fn *original_fill;

static bool has_code(const struct rv_vcpu *v, uint64_t page)
{
    return v->code_pages[page >> 3] >> (page & 7) & 1;
}

/* Whether each store to the page must be looked at. */
static bool is_slow(const struct rv_vcpu *v, uint64_t page)
{
    return has_code(v, page) || rv_watched(&v->watch, page);
}

static void set_code(struct rv_vcpu *v, uint64_t page, bool code)
{
    uint8_t bit = (uint8_t)(1u << (page & 7));
    if (code)
        v->code_pages[page >> 3] |= bit;
    else
        v->code_pages[page >> 3] &= (uint8_t)~bit;
}

/* The RAM page behind an entry that maps RAM for writing, or -1. */
static int64_t written_page(const struct rv_vcpu *v, const struct rv_uc_tlb_entry *e)
{
    if (e->addr_write == NEVER_CODE || (e->addr_write & (TLB_MMIO | TLB_DISCARD_WRITE)))
        return -1;
    uint64_t host = (e->addr_write & PAGE_MASK) + e->addend - (uint64_t)(uintptr_t)v->ram;
    return host < v->ram_bytes ? (int64_t)(host >> PAGE_SHIFT) : -1;
}

static bool fill(void *cpu, uint64_t address, int size, int access, int mode, bool probe,
                 uintptr_t retaddr)
{
    bool ok = original_fill(cpu, address, size, access, mode, probe, retaddr);
    struct rv_vcpu *v = rv_current;
    if (!ok || !v)
        return ok;
    char *tlb = (char *)v->env + ENV_TLB;
    struct rv_uc_tlb_fast *fast = (struct rv_uc_tlb_fast *)(tlb + TLB_FAST) + mode;
    uint64_t index = address >> PAGE_SHIFT & fast->mask / sizeof(struct rv_uc_tlb_entry);
    struct rv_uc_tlb_entry *e = &fast->table[index];
    rv_globals_filled(v, mode, address, e);
    int64_t page = access == ACCESS_FETCH ? -1 : written_page(v, e);
    if (page >= 0)
        e->addr_code = is_slow(v, (uint64_t)page) ? HAS_CODE : NEVER_CODE;
    return ok;
}

static void correct(struct rv_vcpu *v, struct rv_uc_tlb_entry *e, uint64_t page, bool slow)
{
    if (written_page(v, e) != (int64_t)page)
        return;
    if (slow) {
        e->addr_write |= TLB_NOTDIRTY;
        if (e->addr_code == NEVER_CODE)
            e->addr_code = HAS_CODE;
    } else if (e->addr_code == HAS_CODE) {
        e->addr_code = NEVER_CODE;
    }
}

static void correct_all(struct rv_vcpu *v, uint64_t page, bool slow)
{
    char *tlb = (char *)v->env + ENV_TLB;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        struct rv_uc_tlb_fast *fast = (struct rv_uc_tlb_fast *)(tlb + TLB_FAST) + mode;
        uint64_t entries = fast->mask / sizeof(struct rv_uc_tlb_entry) + 1;
        for (uint64_t i = 0; i < entries; i++)
            correct(v, &fast->table[i], page, slow);
        struct rv_uc_tlb_entry *victims =
            (void *)(tlb + TLB_DESC + mode * TLB_DESC_BYTES + TLB_DESC_VICTIMS);
        for (int i = 0; i < TLB_VICTIMS; i++)
            correct(v, &victims[i], page, slow);
    }
}

static void mark(struct rv_vcpu *v, uint64_t ram_addr, bool code)
{
    for (int i = 0; i < v->region_count; i++) {
        const struct rv_region *r = &v->regions[i];
        if (ram_addr - r->ram_addr < r->bytes) {
            uint64_t page = (r->offset + ram_addr - r->ram_addr) >> PAGE_SHIFT;
            if (has_code(v, page) != code) {
                set_code(v, page, code);
                correct_all(v, page, is_slow(v, page));
                if (code)
                    rv_direct_close(v, page);
            }
            return;
        }
    }
}

bool rv_codepages_has_code(const struct rv_vcpu *v, uint64_t page)
{
    return has_code(v, page);
}

void rv_codepages_follow(struct rv_vcpu *v, uint64_t page)
{
    if (!has_code(v, page))
        correct_all(v, page, true);
}

void rv_codepages_leave(struct rv_vcpu *v, uint64_t page)
{
    if (!has_code(v, page))
        correct_all(v, page, false);
}

void rv_protect_code(void *uc, uint64_t ram_addr)
{
    rv_engine.original.protect_code(uc, ram_addr);
    if (rv_current)
        mark(rv_current, ram_addr, true);
}

void rv_unprotect_code(void *uc, uint64_t ram_addr)
{
    rv_engine.original.unprotect_code(uc, ram_addr);
    if (rv_current)
        mark(rv_current, ram_addr, false);
}

void rv_reset_dirty_by_vaddr(void *cpu, uint64_t start, uint64_t length)
{
    if (!rv_current)
        rv_engine.original.reset_dirty_by_vaddr(cpu, start, length);
}

void rv_codepages_invalidate(struct rv_vcpu *v, uint64_t offset, uint64_t count)
{
    struct rv_vcpu *before = rv_current;
    rv_current = v;
    for (int i = 0; i < v->region_count; i++) {
        const struct rv_region *r = &v->regions[i];
        uint64_t start = offset > r->offset ? offset : r->offset;
        uint64_t end = offset + count < r->offset + r->bytes ? offset + count : r->offset + r->bytes;
        if (start < end)
            rv_engine.tb_invalidate(v->uc, r->ram_addr + start - r->offset,
                                    r->ram_addr + end - r->offset);
    }
    rv_current = before;
}

int rv_codepages_attach(struct rv_vcpu *v)
{
    v->code_pages = calloc(1, (v->ram_bytes >> PAGE_SHIFT) / 8 + 1);
    if (!v->code_pages)
        return -1;
    char *class = RV_AT(v->cpu, CPU_CLASS, char *);
    original_fill = RV_AT(class, CLASS_TLB_FILL, tlb_fill_fn *);
    RV_AT(class, CLASS_TLB_FILL, tlb_fill_fn *) = fill;
    return 0;
}

void rv_codepages_detach(struct rv_vcpu *v)
{
    free(v->code_pages);
    v->code_pages = NULL;
}
