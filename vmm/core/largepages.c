#include "largepages.h"

#include <stdlib.h>
#include <string.h>

#include "vcpu.h"

#define PAGE 4096u
#define PAGES 512u
/* So many neighbours in a row, and all of them will follow. */
#define ENOUGH_IN_A_ROW 16u

static size_t settled_bytes(const struct rv_vcpu *v)
{
    return (size_t)(v->ram_bytes / LARGE_PAGE / 8 + 1);
}

int rv_largepages_attach(struct rv_vcpu *v)
{
    v->filling.settled = calloc(1, settled_bytes(v));
    return v->filling.settled ? rv_collapse_attach(&v->filling.collapse, v->ram, v->ram_bytes) : -1;
}

void rv_largepages_detach(struct rv_vcpu *v)
{
    rv_collapse_detach(&v->filling.collapse);
    free(v->filling.settled);
    v->filling.settled = NULL;
}

void rv_largepages_forget(struct rv_vcpu *v)
{
    memset(v->filling.settled, 0, settled_bytes(v));
    rv_collapse_forget(&v->filling.collapse);
}

static void ask_for(struct rv_vcpu *v, uint64_t large)
{
    struct rv_filling *f = &v->filling;
    uint8_t bit = (uint8_t)(1u << (large & 7));
    if (f->settled[large >> 3] & bit)
        return;
    f->settled[large >> 3] |= bit;
    rv_collapse_ask(&f->collapse, large);
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
