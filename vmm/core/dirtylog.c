#include "dirtylog.h"

#include <stdlib.h>
#include <string.h>

#include "direct.h"
#include "vcpu.h"

#define PAGE_SHIFT 12

size_t rv_dirtylog_bytes(const struct rv_vcpu *v)
{
    return (size_t)((v->ram_bytes >> PAGE_SHIFT) + 7) / 8;
}

int rv_dirtylog_start(struct rv_vcpu *v)
{
    if (v->dirty_pages)
        return 0;
    rv_direct_close_all(v); /* before it is on: every page is clean */
    v->dirty_pages = calloc(1, rv_dirtylog_bytes(v) + 1);
    if (!v->dirty_pages)
        return -1;
    rv_engine.tlb_flush(v->cpu);
    return 0;
}

void rv_dirtylog_stop(struct rv_vcpu *v)
{
    free(v->dirty_pages);
    v->dirty_pages = NULL;
}

void rv_dirtylog_harvest(struct rv_vcpu *v, uint8_t *bitmap, size_t most_open)
{
    if (rv_direct_mark_open(v, NULL) > most_open)
        rv_direct_close_all(v);
    memcpy(bitmap, v->dirty_pages, rv_dirtylog_bytes(v));
    memset(v->dirty_pages, 0, rv_dirtylog_bytes(v));
    /* Written, for all we know, and perhaps again without a trap: in this harvest and the next. */
    rv_direct_mark_open(v, bitmap);
    /* Stores take the slow path once more; loads and fetches keep what they have. */
    rv_engine.reset_dirty(v->cpu, (uint64_t)(uintptr_t)v->ram, v->ram_bytes);
}

void rv_dirtylog_mark(struct rv_vcpu *v, uint64_t offset, uint64_t count)
{
    if (!v->dirty_pages || !count)
        return;
    uint64_t last = (offset + count - 1) >> PAGE_SHIFT;
    for (uint64_t page = offset >> PAGE_SHIFT; page <= last; page++)
        v->dirty_pages[page >> 3] |= (uint8_t)(1u << (page & 7));
}

static void stored(struct rv_vcpu *v, uint64_t offset, uint64_t bytes)
{
    rv_dirtylog_mark(v, offset, bytes);
    rv_watch_wrote(v, offset);
}

void rv_slow_store(void *uc, void *pages, uint64_t ram_addr, int bytes, uintptr_t retaddr)
{
    struct rv_vcpu *v = rv_current;
    for (int i = 0; v && i < v->region_count; i++) {
        const struct rv_region *r = &v->regions[i];
        if (ram_addr - r->ram_addr < r->bytes) {
            stored(v, r->offset + ram_addr - r->ram_addr, (uint64_t)bytes);
            break;
        }
    }
    rv_engine.original.slow_store(uc, pages, ram_addr, bytes, retaddr);
}

void rv_store_entry(void *cpu, uint64_t gpa, uint32_t value)
{
    struct rv_vcpu *v = rv_current;
    for (int i = 0; v && i < v->region_count; i++) {
        const struct rv_region *r = &v->regions[i];
        if (gpa - r->gpa < r->bytes) {
            stored(v, r->offset + gpa - r->gpa, sizeof(value));
            break;
        }
    }
    rv_engine.original.store_entry(cpu, gpa, value);
}
