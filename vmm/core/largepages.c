#include "largepages.h"

#include "vcpu.h"

#define PAGE 4096u
#define PAGES 512u
/* So many neighbours in a row, and all of them will follow. */
#define ENOUGH_IN_A_ROW 16u

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
        rv_collapse_ask(&f->collapse, page / PAGES);
}
