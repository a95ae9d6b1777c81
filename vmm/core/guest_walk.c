#include "guest_walk.h"

#include <string.h>

#include "vcpu.h"

#define ADDRESS_LIMIT ((uint64_t)1 << 40) /* CPUID 0x80000008 */
#define EFER_NXE (1u << 11)

uint64_t rv_ram_offset(const struct rv_vcpu *v, uint64_t gpa)
{
    for (int i = 0; i < v->region_count; i++)
        if (gpa - v->regions[i].gpa < v->regions[i].bytes)
            return v->regions[i].offset + (gpa - v->regions[i].gpa);
    return UINT64_MAX;
}

enum rv_walk_result rv_walk(const struct rv_vcpu *v, uint64_t cr3, uint64_t va, bool write,
                            bool fetch, struct rv_walk *w)
{
    bool nxe = RV_AT(v->env, ENV_EFER, uint64_t) & EFER_NXE;
    uint64_t table = cr3 & PTE_ADDRESS, all = PTE_W | PTE_U, any = 0, entry = 0;

    w->error = PF_USER | (write ? PF_WRITE : 0) | (fetch && nxe ? PF_FETCH : 0);
    for (int level = 0; level < 4; level++) {
        int shift = 39 - 9 * level;
        uint64_t at = rv_ram_offset(v, table + (va >> shift & 511) * 8);
        if (at == UINT64_MAX)
            return WALK_ODD;
        memcpy(&entry, v->ram + at, sizeof(entry));
        w->table[level] = at;
        w->entry[level] = entry;
        w->last = level;
        if (!(entry & PTE_P))
            return WALK_FAULT;
        if ((entry & PTE_ADDRESS) >= ADDRESS_LIMIT || (!nxe && entry & PTE_NX) ||
            (level == 0 && entry & PTE_PS))
            return WALK_ODD;
        all &= entry;
        any |= entry;
        if (level == 3 || entry & PTE_PS)
            break;
        table = entry & PTE_ADDRESS;
    }
    uint64_t inside = ((uint64_t)1 << (39 - 9 * w->last)) - 1;
    uint64_t reserved = w->last == 3 ? 0 : inside & ~(uint64_t)0x1fff; /* bit 12 is PAT there */
    if (entry & reserved)
        return WALK_ODD;
    w->gpa = (entry & PTE_ADDRESS & ~inside) | (va & inside & ~(uint64_t)0xfff);
    w->writable = all & PTE_W;
    w->executable = !(any & PTE_NX);
    w->error |= PF_PRESENT;
    if (!(all & PTE_U) || (write && !w->writable) || (fetch && !w->executable))
        return WALK_FAULT;
    return WALK_MAPPED;
}
