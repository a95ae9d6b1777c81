/*
 * Large pages of the host behind guest RAM.
 *
 * A host that has to find 2 MiB first takes milliseconds for that, in a virtual machine that has
 * given its free memory back most of all. So a thread does it. It keeps a few in stock while they are
 * asked for: what it frees is what the host gives it next, and guest memory is held up for a moment
 * only. Who is given one after the other finds the next ones there already; who is faster than the
 * host gets small pages, and the large one when they have been used for a while.
 */
#ifndef RV_COLLAPSE_H
#define RV_COLLAPSE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LARGE_PAGE ((uint64_t)2 << 20)
/* Kept until nothing has been asked for, for a second. */
#define COLLAPSE_STOCK 4u

struct rv_collapse {
    uint8_t *ram;
    size_t large_pages;   /* of RAM, whole ones */
    uint8_t *settled;     /* a bit for each that was asked for: the vCPU's thread alone */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t asked;
    uint8_t *done;       /* a bit for each large page that was asked for, or came ahead of that */
    uint8_t *wanted;     /* a bit for each that is to follow */
    size_t count;        /* of those */
    size_t last;         /* the one asked for last */
    int step;            /* from the one before it, or 0: not a neighbour */
    int64_t asked_ns;    /* when that was */
    int64_t due_ns;      /* when the wanted ones follow */
    uint8_t *stock;      /* room for large pages */
    bool in_stock[COLLAPSE_STOCK];
    bool quit;
    bool started;
    pthread_t thread;
    unsigned refusals; /* in a row; read without the lock */
};

/* 0 or -1. The thread is started when something is asked for. */
int rv_collapse_attach(struct rv_collapse *c, uint8_t *ram, uint64_t ram_bytes);
void rv_collapse_detach(struct rv_collapse *c);
/* Ask for nothing that was asked for before: what is there of RAM may be something else now. */
void rv_collapse_forget(struct rv_collapse *c);

/* These 2 MiB are about to be filled: have them backed, by a large page now or later. Nothing if they
 * were before, or if it has turned out that the host has none. */
void rv_collapse_ask(struct rv_collapse *c, size_t large_page);

#endif
