#define _GNU_SOURCE
#include "pages.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "runs travel as little-endian numbers"
#endif

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define POPULATE_PAGES 256u

/* Runs of pages, as they travel: pairs of (first, count). */
struct runs {
    uint32_t *pairs;
    size_t count, room;
};

/* What pick_pages works on. Bitmaps have a bit a page, low bit first. */
struct pick {
    const uint8_t *source, *pending;
    bool packed;              /* `source` has the pages that are pending and no others */
    size_t next;              /* which of them comes next, then */
    uint8_t *whole, *changes; /* where pages, and differences, go */
    uint8_t *shadow;          /* pages as they were sent last, in slots; or NULL */
    uint32_t *slots;          /* one more than a page's slot, 0 for none; or NULL */
    size_t pages, whole_room, changes_room, shadow_pages;
    size_t keep; /* how many slots are free: the last ones */
    bool last;   /* remember nothing */
    struct runs whole_runs, change_runs, zero_runs;
    size_t whole_count, change_count;
};

static bool bit(const uint8_t *bitmap, size_t page)
{
    return bitmap[page >> 3] >> (page & 7) & 1;
}

static bool runs_full(const struct runs *r)
{
    return r->count == r->room;
}

static void runs_append(struct runs *r, size_t page)
{
    uint32_t *last = r->count ? r->pairs + 2 * (r->count - 1) : NULL;
    if (last && last[0] + last[1] == page) {
        last[1]++;
        return;
    }
    r->pairs[2 * r->count] = (uint32_t)page;
    r->pairs[2 * r->count + 1] = 1;
    r->count++;
}

static bool all_zero(const uint64_t *words)
{
    for (size_t i = 0; i < PAGE_WORDS; i += 8) {
        uint64_t any = 0;
        for (size_t k = 0; k < 8; k++)
            any |= words[i + k];
        if (any)
            return false;
    }
    return true;
}

/* Memory that is not there yet comes cheaper together; refused, it comes page by page. */
static void populate(uint8_t *start, size_t bytes)
{
    (void)madvise(start, bytes, MADV_POPULATE_WRITE);
}

static void pick_page(struct pick *p, size_t page)
{
    uint64_t copy[PAGE_WORDS];
    memcpy(copy, p->source + (p->packed ? p->next++ : page) * PAGE_BYTES, PAGE_BYTES);
    uint32_t slot = p->slots && p->slots[page] <= p->shadow_pages ? p->slots[page] : 0;
    if (all_zero(copy)) {
        if (slot)
            p->slots[page] = 0;
        runs_append(&p->zero_runs, page);
        return;
    }
    if (slot) {
        uint8_t *shadow = p->shadow + (size_t)(slot - 1) * PAGE_BYTES;
        uint64_t sent[PAGE_WORDS];
        memcpy(sent, shadow, PAGE_BYTES);
        if (p->last)
            p->slots[page] = 0;
        else
            memcpy(shadow, copy, PAGE_BYTES);
        for (size_t i = 0; i < PAGE_WORDS; i++)
            copy[i] -= sent[i];
        memcpy(p->changes + p->change_count++ * PAGE_BYTES, copy, PAGE_BYTES);
        runs_append(&p->change_runs, page);
        return;
    }
    memcpy(p->whole + p->whole_count++ * PAGE_BYTES, copy, PAGE_BYTES);
    runs_append(&p->whole_runs, page);
    if (p->slots && !p->last && p->keep) {
        size_t free = p->shadow_pages - p->keep--;
        if (!(free % POPULATE_PAGES))
            populate(p->shadow + free * PAGE_BYTES,
                     (p->keep + 1 < POPULATE_PAGES ? p->keep + 1 : POPULATE_PAGES) * PAGE_BYTES);
        memcpy(p->shadow + free * PAGE_BYTES, copy, PAGE_BYTES);
        p->slots[page] = (uint32_t)free + 1;
    }
}

/* How many of the first `pages` are in it. */
static size_t count_before(const uint8_t *bitmap, size_t pages)
{
    size_t count = 0, i = 0;
    for (; i + 8 <= pages / 8; i += 8) {
        uint64_t word;
        memcpy(&word, bitmap + i, sizeof(word));
        count += (size_t)__builtin_popcountll(word);
    }
    for (size_t page = 8 * i; page < pages; page++)
        count += bit(bitmap, page);
    return count;
}

/* The first of `pages` that is in it, from `page` on; `pages` if there is none. */
static size_t next_in(const uint8_t *bitmap, size_t pages, size_t page)
{
    while (page < pages && !bit(bitmap, page))
        page = page & 7 || bitmap[page >> 3] ? page + 1 : page + 8;
    return page < pages ? page : pages;
}

/* Pending pages from `page` on until room is short or none is left; where to go on. */
static size_t pick(struct pick *p, size_t page)
{
    page = next_in(p->pending, p->pages, page);
    for (; page < p->pages; page = next_in(p->pending, p->pages, page + 1)) {
        if (p->whole_count == p->whole_room || runs_full(&p->zero_runs) ||
            (p->slots && p->change_count == p->changes_room))
            break;
        pick_page(p, page);
    }
    return page;
}

static int make_runs(struct pick *p)
{
    struct runs *all[] = {&p->whole_runs, &p->change_runs, &p->zero_runs};
    size_t rooms[] = {p->whole_room, p->changes_room, p->whole_room};
    for (int i = 0; i < 3; i++) {
        all[i]->room = rooms[i];
        all[i]->pairs = malloc(rooms[i] * 8 + 1);
        if (!all[i]->pairs)
            return -1;
    }
    return 0;
}

/* All of RAM, or the pages that are pending. */
static bool source_fits(struct pick *p, const Py_buffer *source, const uint8_t *pending)
{
    size_t bytes = (size_t)source->len;
    p->packed = bytes != p->pages * PAGE_BYTES;
    return !p->packed || bytes == count_before(pending, p->pages) * PAGE_BYTES;
}

static PyObject *pick_pages(PyObject *module, PyObject *args)
{
    Py_buffer source, pending, whole, changes, shadow, slots;
    Py_ssize_t pages, first, keep;
    PyObject *result = NULL;
    struct pick p = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "y*ny*nw*w*w*w*n", &source, &pages, &pending, &first, &whole,
                          &changes, &shadow, &slots, &keep))
        return NULL;
    p.pages = pages < 0 ? 0 : (size_t)pages;
    bool deltas = slots.len != 0;
    if ((size_t)pending.len != (p.pages + 7) / 8 || first < 0 || (size_t)first > p.pages ||
        p.pages > UINT32_MAX || !source_fits(&p, &source, pending.buf) || whole.len < (Py_ssize_t)PAGE_BYTES ||
        (deltas && ((size_t)slots.len != p.pages * sizeof(uint32_t) ||
                    keep > shadow.len / (Py_ssize_t)PAGE_BYTES ||
                    changes.len < (Py_ssize_t)PAGE_BYTES))) {
        PyErr_SetString(PyExc_ValueError, "the buffers do not fit RAM");
        goto done;
    }
    p.source = source.buf;
    p.pending = pending.buf;
    p.next = p.packed ? count_before(p.pending, (size_t)first) : 0;
    p.whole = whole.buf;
    p.whole_room = (size_t)whole.len / PAGE_BYTES;
    p.changes = changes.buf;
    p.changes_room = (size_t)changes.len / PAGE_BYTES;
    p.shadow = deltas ? shadow.buf : NULL;
    p.slots = deltas ? slots.buf : NULL;
    p.shadow_pages = deltas ? (size_t)shadow.len / PAGE_BYTES : 0;
    p.last = keep < 0;
    p.keep = keep < 0 ? 0 : (size_t)keep;
    if (make_runs(&p)) {
        PyErr_NoMemory();
        goto done;
    }
    size_t next;
    Py_BEGIN_ALLOW_THREADS;
    next = pick(&p, (size_t)first);
    Py_END_ALLOW_THREADS;
    result = Py_BuildValue(
        "ny#y#y#n", (Py_ssize_t)next, (char *)p.whole_runs.pairs,
        (Py_ssize_t)(8 * p.whole_runs.count), (char *)p.change_runs.pairs,
        (Py_ssize_t)(8 * p.change_runs.count), (char *)p.zero_runs.pairs,
        (Py_ssize_t)(8 * p.zero_runs.count), (Py_ssize_t)p.keep);
done:
    free(p.whole_runs.pairs);
    free(p.change_runs.pairs);
    free(p.zero_runs.pairs);
    PyBuffer_Release(&source);
    PyBuffer_Release(&pending);
    PyBuffer_Release(&whole);
    PyBuffer_Release(&changes);
    PyBuffer_Release(&shadow);
    PyBuffer_Release(&slots);
    return result;
}

static PyObject *copy_pages(PyObject *module, PyObject *args)
{
    Py_buffer ram, pending, room;
    Py_ssize_t first;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nw*", &ram, &pending, &first, &room))
        return NULL;
    size_t pages = (size_t)ram.len / PAGE_BYTES, most = (size_t)room.len / PAGE_BYTES, copied = 0;
    if ((size_t)pending.len != (pages + 7) / 8 || first < 0 || (size_t)first > pages) {
        PyErr_SetString(PyExc_ValueError, "the buffers do not fit RAM");
        goto done;
    }
    const uint8_t *bitmap = pending.buf;
    /* The lock is kept: a guest stands still, and must not wait for others to give it back. */
    size_t page = next_in(bitmap, pages, (size_t)first);
    for (; page < pages && copied < most; page = next_in(bitmap, pages, page + 1))
        memcpy((uint8_t *)room.buf + copied++ * PAGE_BYTES,
               (uint8_t *)ram.buf + page * PAGE_BYTES, PAGE_BYTES);
    result = Py_BuildValue("nn", (Py_ssize_t)page, (Py_ssize_t)copied);
done:
    PyBuffer_Release(&ram);
    PyBuffer_Release(&pending);
    PyBuffer_Release(&room);
    return result;
}

static void put(uint8_t *ram, const uint32_t *pairs, size_t runs, const uint8_t *data, bool change)
{
    for (size_t i = 0; i < runs; i++) {
        uint8_t *to = ram + (size_t)pairs[2 * i] * PAGE_BYTES;
        size_t bytes = (size_t)pairs[2 * i + 1] * PAGE_BYTES;
        if (!change) {
            if (bytes > PAGE_BYTES)
                populate(to, bytes);
            memcpy(to, data, bytes);
        } else {
            for (size_t k = 0; k < bytes; k += sizeof(uint64_t)) {
                uint64_t now, difference;
                memcpy(&now, to + k, sizeof(now));
                memcpy(&difference, data + k, sizeof(difference));
                now += difference;
                memcpy(to + k, &now, sizeof(now));
            }
        }
        data += bytes;
    }
}

/* Whether the runs are in order and inside `pages`; how many pages they have. */
static bool runs_fit(const uint32_t *pairs, size_t runs, size_t pages, size_t *total)
{
    uint64_t end = 0, sum = 0;
    for (size_t i = 0; i < runs; i++) {
        uint64_t first = pairs[2 * i], count = pairs[2 * i + 1];
        if (!count || first < end || first + count > pages)
            return false;
        end = first + count;
        sum += count;
    }
    *total = sum;
    return true;
}

static PyObject *populate_pages(PyObject *module, PyObject *args)
{
    Py_buffer ram, runs;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*y*", &ram, &runs))
        return NULL;
    size_t count = (size_t)runs.len / 8, total;
    uint32_t *pairs = malloc((size_t)runs.len + 1);
    if (!pairs) {
        PyErr_NoMemory();
        goto done;
    }
    memcpy(pairs, runs.buf, (size_t)runs.len);
    if (runs.len % 8 || !runs_fit(pairs, count, (size_t)ram.len / PAGE_BYTES, &total)) {
        PyErr_SetString(PyExc_ValueError, "runs out of order, or outside RAM");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS;
    for (size_t i = 0; i < count; i++)
        populate((uint8_t *)ram.buf + (size_t)pairs[2 * i] * PAGE_BYTES,
                 (size_t)pairs[2 * i + 1] * PAGE_BYTES);
    Py_END_ALLOW_THREADS;
    result = Py_NewRef(Py_None);
done:
    free(pairs);
    PyBuffer_Release(&ram);
    PyBuffer_Release(&runs);
    return result;
}

static PyObject *put_pages(PyObject *module, PyObject *args)
{
    Py_buffer ram, runs, data;
    int change;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*y*y*p", &ram, &runs, &data, &change))
        return NULL;
    size_t count = (size_t)runs.len / 8, pages = (size_t)ram.len / PAGE_BYTES;
    uint32_t *pairs = malloc((size_t)runs.len + 1);
    if (!pairs) {
        PyErr_NoMemory();
        goto done;
    }
    memcpy(pairs, runs.buf, (size_t)runs.len);
    size_t total;
    if (runs.len % 8 || data.len % PAGE_BYTES || !runs_fit(pairs, count, pages, &total) ||
        total != (size_t)data.len / PAGE_BYTES) {
        PyErr_SetString(PyExc_ValueError, "runs out of order, outside RAM, or of other data");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS;
    put(ram.buf, pairs, count, data.buf, change);
    Py_END_ALLOW_THREADS;
    result = Py_NewRef(Py_None);
done:
    free(pairs);
    PyBuffer_Release(&ram);
    PyBuffer_Release(&runs);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *join(PyObject *module, PyObject *args)
{
    Py_buffer head, data;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*", &head, &data))
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, head.len + data.len);
    char *to = result ? PyBytes_AsString(result) : NULL;
    if (to) {
        Py_BEGIN_ALLOW_THREADS;
        memcpy(to, head.buf, (size_t)head.len);
        memcpy(to + head.len, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&head);
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef functions[] = {
    {"copy_pages", copy_pages, METH_VARARGS, NULL},
    {"join", join, METH_VARARGS, NULL},
    {"pick_pages", pick_pages, METH_VARARGS, NULL},
    {"put_pages", put_pages, METH_VARARGS, NULL},
    {"populate_pages", populate_pages, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int rv_pages_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
