#define _GNU_SOURCE
#include "collapse.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "vcpu.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

/* What ends sooner needs no large pages. */
#define AFTER_NS 50000000
#define KEEP_STOCK_NS 1000000000
/* A host that has none, or does not want to. */
#define MOST_REFUSALS 8u
#define AHEAD 4u
/* Less than vCPUs; not much less, for they may wait for a page that is held up. */
#define NICE 10
#define ROOM_BYTES ((COLLAPSE_STOCK + 1) * LARGE_PAGE)

static size_t bitmap_bytes(const struct rv_collapse *c)
{
    return c->large_pages / 8 + 1;
}

static bool refused(const struct rv_collapse *c)
{
    return __atomic_load_n(&c->refusals, __ATOMIC_RELAXED) >= MOST_REFUSALS;
}

static uint8_t *stocked(const struct rv_collapse *c, unsigned i)
{
    return c->stock + (-(uintptr_t)c->stock & (LARGE_PAGE - 1)) + i * LARGE_PAGE;
}

/* The first place in the stock with a page, or without one; COLLAPSE_STOCK: none. */
static unsigned find_locked(const struct rv_collapse *c, bool in_stock)
{
    unsigned i = 0;
    while (i < COLLAPSE_STOCK && c->in_stock[i] != in_stock)
        i++;
    return i;
}

/* Give one of the stock back to the host: it is what this thread gets next. Whether there was one. */
static bool give_back_locked(struct rv_collapse *c)
{
    unsigned i = find_locked(c, true);
    if (i == COLLAPSE_STOCK)
        return false;
    c->in_stock[i] = false;
    return !madvise(stocked(c, i), LARGE_PAGE, MADV_DONTNEED);
}

static bool has(const uint8_t *bits, size_t i)
{
    return bits[i >> 3] >> (i & 7) & 1;
}

static void set(uint8_t *bits, size_t i, bool to)
{
    uint8_t bit = (uint8_t)(1u << (i & 7));
    bits[i >> 3] = (uint8_t)(to ? bits[i >> 3] | bit : bits[i >> 3] & ~bit);
}

static void want_locked(struct rv_collapse *c, size_t large_page)
{
    if (has(c->wanted, large_page))
        return;
    set(c->wanted, large_page, true);
    if (!c->count++)
        c->due_ns = rv_now_ns() + AFTER_NS;
}

/* On one processor: each has freed pages of its own. Whether to try once more, later. */
static bool collapse_locked(struct rv_collapse *c, size_t large_page)
{
    cpu_set_t before, here;
    bool pinned = !sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&here);
    CPU_SET((size_t)sched_getcpu(), &here);
    pinned = pinned && !sched_setaffinity(0, sizeof(here), &here);
    (void)give_back_locked(c);
    pthread_mutex_unlock(&c->lock);
    uint8_t *at = c->ram + large_page * LARGE_PAGE;
    (void)*(volatile uint8_t *)at; /* it has to have a page */
    bool failed = madvise(at, LARGE_PAGE, MADV_COLLAPSE);
    bool in_use = failed && errno == EAGAIN;
    __atomic_store_n(&c->refusals, failed ? c->refusals + 1 : 0, __ATOMIC_RELAXED);
    if (pinned)
        sched_setaffinity(0, sizeof(before), &before);
    pthread_mutex_lock(&c->lock);
    return in_use;
}

/* The next one ahead of those asked for, or `large_pages`. */
static size_t ahead_locked(const struct rv_collapse *c)
{
    size_t next = c->last;
    for (unsigned i = 0; c->step && i < AHEAD; i++) {
        next += (size_t)c->step; /* below the first there is none either */
        if (next >= c->large_pages)
            break;
        if (!has(c->done, next))
            return next;
    }
    return c->large_pages;
}

/* The first that is wanted, and is no longer. */
static size_t take_locked(struct rv_collapse *c)
{
    size_t i = 0;
    while (!has(c->wanted, i))
        i++;
    set(c->wanted, i, false);
    c->count--;
    return i;
}

static void sleep_locked(struct rv_collapse *c, int64_t until_ns)
{
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    if (until_ns == RV_NO_DEADLINE)
        pthread_cond_wait(&c->asked, &c->lock);
    else
        pthread_cond_timedwait(&c->asked, &c->lock, &until);
}

static void step_locked(struct rv_collapse *c)
{
    int64_t now_ns = rv_now_ns(), idle_ns = c->asked_ns + KEEP_STOCK_NS;
    unsigned room = find_locked(c, false), page = find_locked(c, true);
    bool busy = (now_ns < idle_ns || c->count) && !refused(c);
    size_t next = busy && page < COLLAPSE_STOCK ? ahead_locked(c) : c->large_pages;
    if (next < c->large_pages) {
        set(c->done, next, true);
        if (collapse_locked(c, next))
            want_locked(c, next);
    } else if (busy && room < COLLAPSE_STOCK) {
        pthread_mutex_unlock(&c->lock);
        *(volatile uint8_t *)stocked(c, room) = 1;
        pthread_mutex_lock(&c->lock);
        c->in_stock[room] = true;
    } else if (c->count && now_ns >= c->due_ns) {
        (void)collapse_locked(c, take_locked(c));
    } else if (busy || !give_back_locked(c)) {
        int64_t next_ns = busy ? idle_ns : RV_NO_DEADLINE;
        sleep_locked(c, c->count && c->due_ns < next_ns ? c->due_ns : next_ns);
    }
}

static void *work(void *argument)
{
    struct rv_collapse *c = argument;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), getpriority(PRIO_PROCESS, (id_t)gettid()) + NICE);
    pthread_mutex_lock(&c->lock);
    while (!c->quit)
        step_locked(c);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static bool start(struct rv_collapse *c)
{
    if (c->started)
        return true;
    c->stock = mmap(NULL, ROOM_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->stock == MAP_FAILED)
        return false;
    (void)madvise(c->stock, ROOM_BYTES, MADV_HUGEPAGE);
    c->started = !pthread_create(&c->thread, NULL, work, c);
    if (!c->started)
        munmap(c->stock, ROOM_BYTES);
    return c->started;
}

int rv_collapse_attach(struct rv_collapse *c, uint8_t *ram, uint64_t ram_bytes)
{
    pthread_condattr_t attributes;
    c->ram = ram;
    c->large_pages = (size_t)(ram_bytes / LARGE_PAGE);
    c->settled = calloc(3, bitmap_bytes(c));
    if (!c->settled)
        return -1;
    c->done = c->settled + bitmap_bytes(c);
    c->wanted = c->done + bitmap_bytes(c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->asked, &attributes);
    pthread_condattr_destroy(&attributes);
    return 0;
}

void rv_collapse_detach(struct rv_collapse *c)
{
    if (!c->settled)
        return;
    if (c->started) {
        pthread_mutex_lock(&c->lock);
        c->quit = true;
        pthread_cond_signal(&c->asked);
        pthread_mutex_unlock(&c->lock);
        pthread_join(c->thread, NULL);
        munmap(c->stock, ROOM_BYTES);
        c->started = false;
    }
    pthread_cond_destroy(&c->asked);
    pthread_mutex_destroy(&c->lock);
    free(c->settled);
    c->settled = NULL;
}

void rv_collapse_forget(struct rv_collapse *c)
{
    pthread_mutex_lock(&c->lock);
    memset(c->settled, 0, 3 * bitmap_bytes(c));
    c->count = 0;
    c->step = 0;
    pthread_mutex_unlock(&c->lock);
}

void rv_collapse_ask(struct rv_collapse *c, size_t large_page)
{
    if (large_page >= c->large_pages || has(c->settled, large_page) || refused(c) || !start(c))
        return;
    set(c->settled, large_page, true);
    pthread_mutex_lock(&c->lock);
    bool there = has(c->done, large_page);
    size_t from_last = large_page - c->last;
    c->step = from_last == 1 ? 1 : from_last == SIZE_MAX ? -1 : 0;
    c->last = large_page;
    c->asked_ns = rv_now_ns();
    if (!there) {
        set(c->done, large_page, true);
        want_locked(c, large_page);
    }
    pthread_cond_signal(&c->asked);
    pthread_mutex_unlock(&c->lock);
    if (!there)
        (void)madvise(c->ram + large_page * LARGE_PAGE, LARGE_PAGE, MADV_POPULATE_WRITE);
}
