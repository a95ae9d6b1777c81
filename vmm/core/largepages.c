#define _GNU_SOURCE
#include "largepages.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vcpu.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define PAGE 4096u
#define PAGES 512u
#define LARGE ((uint64_t)PAGES * PAGE)
/* So many neighbours in a row, and all of them will follow. */
#define ENOUGH_IN_A_ROW 16u
/* With more there already, copying them costs more than the faults that are left. */
#define MOST_THERE 96u
/* A host that has none, or does not want to. */
#define MOST_REFUSALS 8u

static size_t settled_bytes(const struct rv_vcpu *v)
{
    return (size_t)(v->ram_bytes / LARGE / 8 + 1);
}

int rv_largepages_attach(struct rv_vcpu *v)
{
    v->filling.settled = calloc(1, settled_bytes(v));
    return v->filling.settled ? 0 : -1;
}

void rv_largepages_detach(struct rv_vcpu *v)
{
    free(v->filling.settled);
    v->filling.settled = NULL;
}

void rv_largepages_forget(struct rv_vcpu *v)
{
    memset(v->filling.settled, 0, settled_bytes(v));
}

static unsigned pages_there(uint8_t *start)
{
    unsigned char there[PAGES];
    unsigned count = 0;
    if (mincore(start, LARGE, there))
        return PAGES;
    for (unsigned i = 0; i < PAGES; i++)
        count += there[i] & 1;
    return count;
}

static void ask_for(struct rv_vcpu *v, uint64_t large)
{
    struct rv_filling *f = &v->filling;
    uint8_t *start = v->ram + large * LARGE;
    uint8_t bit = (uint8_t)(1u << (large & 7));
    if (f->settled[large >> 3] & bit || (large + 1) * LARGE > v->ram_bytes ||
        f->refusals == MOST_REFUSALS || pages_there(start) > MOST_THERE)
        return;
    f->settled[large >> 3] |= bit;
    f->refusals = madvise(start, LARGE, MADV_COLLAPSE) ? f->refusals + 1 : 0;
}

void rv_largepages_filled(struct rv_vcpu *v, const uint8_t *host)
{
    struct rv_filling *f = &v->filling;
    uint64_t offset = (uint64_t)(host - v->ram), page = offset / PAGE;
    if (offset >= v->ram_bytes)
        return;
    bool neighbour = page == f->last + 1 || page + 1 == f->last;
    if (!neighbour || page / PAGES != f->last / PAGES)
        f->in_a_row = 0;
    f->last = page;
    if (++f->in_a_row == ENOUGH_IN_A_ROW)
        ask_for(v, page / PAGES);
}
