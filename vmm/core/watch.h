/*
 * Which pages of RAM hold page tables that a mirror was made from, and when they last changed.
 *
 * A store to such a page takes the slow path of the software TLB each time, like one to a page
 * with translated code (codepages.h), and leaves a time stamp there.
 */
#ifndef RV_WATCH_H
#define RV_WATCH_H

#include <stdbool.h>
#include <stdint.h>

struct rv_vcpu;

struct rv_watched_page {
    uint64_t changed; /* by rv_watch.now; UINT64_MAX: not followed any more, though users remain */
    uint32_t stores;  /* since somebody last asked */
    uint32_t users;
};

struct rv_watch {
    struct rv_watched_page *pages; /* one for each page of RAM */
    uint64_t now;                  /* grows with each store to a watched page */
};

int rv_watch_start(struct rv_vcpu *v);
void rv_watch_stop(struct rv_vcpu *v);

/* Begin, and cease, to follow the page at `offset` of RAM. Each use counts. */
void rv_watch_add(struct rv_vcpu *v, uint64_t offset);
void rv_watch_drop(struct rv_vcpu *v, uint64_t offset);

/* Something was written at `offset` of RAM. Cheap where nothing is watched. */
void rv_watch_wrote(struct rv_vcpu *v, uint64_t offset);

static inline bool rv_watched(const struct rv_watch *w, uint64_t page)
{
    return w->pages && w->pages[page].users && w->pages[page].changed != UINT64_MAX;
}

/* Whether the page has changed since `then`. */
static inline bool rv_watch_changed(struct rv_watch *w, uint64_t offset, uint64_t then)
{
    w->pages[offset >> 12].stores = 0;
    return w->pages[offset >> 12].changed > then;
}

#endif
