#include "watch.h"

#include <stdlib.h>

#include "codepages.h"
#include "direct.h"
#include "vcpu.h"

/* Twice what rewriting a whole table takes: who writes more often has made something else of it. */
#define TOO_MANY_STORES 2048

int rv_watch_start(struct rv_vcpu *v)
{
    v->watch.pages = calloc((size_t)(v->ram_bytes >> 12), sizeof(*v->watch.pages));
    return v->watch.pages ? 0 : -1;
}

void rv_watch_stop(struct rv_vcpu *v)
{
    free(v->watch.pages);
    v->watch.pages = NULL;
}

void rv_watch_add(struct rv_vcpu *v, uint64_t offset)
{
    struct rv_watched_page *p = &v->watch.pages[offset >> 12];
    p->stores = 0;
    if (!p->users++ || p->changed == UINT64_MAX) {
        p->changed = ++v->watch.now; /* whoever knew it before looks again */
        rv_codepages_follow(v, offset >> 12);
        rv_direct_close(v, offset >> 12);
    }
}

void rv_watch_drop(struct rv_vcpu *v, uint64_t offset)
{
    struct rv_watched_page *p = &v->watch.pages[offset >> 12];
    bool followed = p->changed != UINT64_MAX;
    if (!--p->users && followed)
        rv_codepages_leave(v, offset >> 12);
}

void rv_watch_wrote(struct rv_vcpu *v, uint64_t offset)
{
    uint64_t page = offset >> 12;
    if (!rv_watched(&v->watch, page))
        return;
    struct rv_watched_page *p = &v->watch.pages[page];
    p->changed = ++v->watch.now;
    if (++p->stores > TOO_MANY_STORES) {
        p->changed = UINT64_MAX;
        rv_codepages_leave(v, page);
    }
}
