/* The guest's page tables as a processor walks them for user code in long mode, four levels deep
 * (Intel SDM 3A 4.5). */
#ifndef RV_GUEST_WALK_H
#define RV_GUEST_WALK_H

#include <stdbool.h>
#include <stdint.h>

struct rv_vcpu;

#define PTE_P 0x1u
#define PTE_W 0x2u
#define PTE_U 0x4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_PS 0x80u
#define PTE_NX ((uint64_t)1 << 63)
#define PTE_ADDRESS 0x000ffffffffff000u

#define PF_PRESENT 1u
#define PF_WRITE 2u
#define PF_USER 4u
#define PF_FETCH 16u

enum rv_walk_result {
    WALK_MAPPED,
    WALK_FAULT, /* `error` has the code of #PF */
    WALK_ODD,   /* reserved bits, tables outside RAM: for the engine to judge */
};

struct rv_walk {
    uint64_t table[4]; /* offsets in RAM of the entries, from the PML4's down */
    uint64_t entry[4];
    int last;          /* index of the leaf: 3 for 4 KiB, 2 for 2 MiB, 1 for 1 GiB */
    uint64_t gpa;      /* of the page at the address */
    bool writable, executable;
    uint32_t error;
};

/* What user code finds at `va` by the tables at `cr3`. Changes nothing. */
enum rv_walk_result rv_walk(const struct rv_vcpu *v, uint64_t cr3, uint64_t va, bool write,
                            bool fetch, struct rv_walk *w);

/* The offset in RAM of a guest physical page, or UINT64_MAX. */
uint64_t rv_ram_offset(const struct rv_vcpu *v, uint64_t gpa);

#endif
