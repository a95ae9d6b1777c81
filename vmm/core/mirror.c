#define _GNU_SOURCE
#include "mirror.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "codepages.h"
#include "direct.h"
#include "dirtylog.h"
#include "vcpu.h"

#define PAGE 4096u
#define TABLE_BYTES ((uint64_t)512 * PAGE)
/* Pages mapped along with the first one that is touched under a page table; twice as many with the
 * next one there, up to all of them. */
#define AROUND 16u
#define MOST_DOUBLINGS 5u
#define ONE_STAY ((uint64_t)1 << 52)
/* Where Linux lets nobody without privilege map (vm.mmap_min_addr). */
#define LOWEST 0x10000u
/* What of an entry decides where a page is and who may do what. */
#define MEANING (PTE_P | PTE_W | PTE_U | PTE_PS | PTE_NX | PTE_ADDRESS)

static uint64_t load(const struct rv_vcpu *v, uint64_t offset)
{
    uint64_t value;
    memcpy(&value, v->ram + offset, sizeof(value));
    return value;
}

/* Set bits in an entry as a processor does when it walks. */
static void set_bits(struct rv_vcpu *v, uint64_t offset, uint64_t bits)
{
    uint64_t value = load(v, offset);
    if ((value & bits) == bits)
        return;
    value |= bits;
    memcpy(v->ram + offset, &value, sizeof(value));
    rv_dirtylog_mark(v, offset, sizeof(value));
}

static int perform(struct rv_mirror *m)
{
    if (!m->queued)
        return 0;
    m->stub->commands->count = m->queued;
    m->queued = 0;
    return rv_stub_map(m->stub);
}

static int queue(struct rv_mirror *m, struct rv_stub_command command)
{
    m->stub->commands->list[m->queued++] = command;
    return m->queued == STUB_MAX_COMMANDS ? perform(m) : 0;
}

static int protection(uint64_t copy)
{
    return PROT_READ | (copy & MIRROR_WRITE ? PROT_WRITE : 0) |
           (copy & MIRROR_EXEC ? PROT_EXEC : 0);
}

/* The offset in RAM of the page that entry `i` of a table names. */
static uint64_t page_offset(const struct rv_mirror_table *t, const struct rv_vcpu *v, unsigned i)
{
    uint64_t gpa = t->copy[i] & PTE_ADDRESS;
    return rv_ram_offset(v, gpa);
}

static int map_run(struct rv_mirror *m, const struct rv_mirror_table *t, unsigned first,
                   unsigned count)
{
    return queue(m, (struct rv_stub_command){
                        SYS_mmap,
                        {t->va + (uint64_t)first * PAGE, (uint64_t)count * PAGE,
                         (uint64_t)protection(t->copy[first]), MAP_SHARED | MAP_FIXED | MAP_POPULATE, STUB_RAM_FD,
                         page_offset(t, m->vcpu, first)},
                        0});
}

/* Map entries [first, end) that are in `copy` and in `fresh`, in as few pieces as can be. */
static int map_fresh(struct rv_mirror *m, struct rv_mirror_table *t, unsigned first, unsigned end,
                     const bool *fresh)
{
    unsigned i = first;
    while (i < end) {
        if (!fresh[i - first]) {
            i++;
            continue;
        }
        unsigned run = 1;
        while (i + run < end && fresh[i + run - first] &&
               protection(t->copy[i + run]) == protection(t->copy[i]) &&
               page_offset(t, m->vcpu, i + run) == page_offset(t, m->vcpu, i) + run * PAGE)
            run++;
        if (map_run(m, t, i, run))
            return -1;
        i += run;
    }
    return 0;
}

static int unmap(struct rv_mirror *m, struct rv_mirror_table *t, unsigned first, unsigned count)
{
    for (unsigned i = first; i < first + count; i++) {
        if (t->copy[i]) {
            t->copy[i] = 0;
            t->mapped--;
            m->mappings--;
        }
    }
    return queue(m, (struct rv_stub_command){
                        SYS_munmap, {t->va + (uint64_t)first * PAGE, (uint64_t)count * PAGE}, 0});
}

static struct rv_mirror_table **bucket(struct rv_mirror *m, uint64_t va)
{
    return &m->buckets[(va / TABLE_BYTES ^ va / TABLE_BYTES / 509) % MIRROR_BUCKETS];
}

static struct rv_mirror_table *find(struct rv_mirror *m, uint64_t va)
{
    struct rv_mirror_table *t = *bucket(m, va);
    while (t && t->va != va)
        t = t->next;
    return t;
}

/* The entry pages above and, where there is one, the page table itself. */
static int watched_pages(const struct rv_mirror_table *t)
{
    return t->large ? t->levels : 4;
}

static struct rv_mirror_table *add_table(struct rv_mirror *m, uint64_t va, const struct rv_walk *w)
{
    struct rv_mirror_table *t = calloc(1, sizeof(*t)), **head = bucket(m, va);
    if (!t)
        return NULL;
    t->va = va;
    t->large = w->last < 3;
    t->levels = t->large ? w->last + 1 : 3;
    for (int i = 0; i < t->levels; i++)
        t->value[i] = w->entry[i];
    memcpy(t->path, w->table, sizeof(t->path[0]) * (size_t)(w->last + 1));
    t->path[3] &= ~(uint64_t)(PAGE - 1);
    for (int i = 0; i < watched_pages(t); i++)
        rv_watch_add(m->vcpu, t->path[i]);
    t->seen = m->vcpu->watch.now;
    t->next = *head;
    *head = t;
    m->tables++;
    return t;
}

static void forget_table(struct rv_mirror *m, struct rv_mirror_table **at)
{
    struct rv_mirror_table *t = *at;
    for (int i = 0; i < watched_pages(t); i++)
        rv_watch_drop(m->vcpu, t->path[i]);
    *at = t->next;
    m->tables--;
    free(t);
}

static int drop_table(struct rv_mirror *m, struct rv_mirror_table **at)
{
    int result = (*at)->mapped ? unmap(m, *at, 0, 512) : 0;
    forget_table(m, at);
    return result;
}

static int drop_all(struct rv_mirror *m)
{
    int result = 0;
    for (unsigned b = 0; b < MIRROR_BUCKETS; b++)
        while (m->buckets[b])
            result |= drop_table(m, &m->buckets[b]);
    return result;
}

static bool path_holds(struct rv_mirror *m, const struct rv_mirror_table *t)
{
    for (int i = 0; i < t->levels; i++)
        if ((load(m->vcpu, t->path[i]) ^ t->value[i]) & MEANING)
            return false;
    return true;
}

/* The entry of page `i` as the guest has it now; a large page's parts look like small ones. */
static uint64_t guest_entry(const struct rv_mirror *m, const struct rv_mirror_table *t, unsigned i)
{
    if (!t->large)
        return load(m->vcpu, t->path[3] + i * 8);
    uint64_t leaf = load(m->vcpu, t->path[t->levels - 1]);
    uint64_t inside = ((uint64_t)1 << (t->levels == 3 ? 21 : 30)) - 1;
    uint64_t base = (leaf & PTE_ADDRESS & ~inside) | (t->va & inside);
    return (leaf & ~(PTE_ADDRESS | PTE_PS)) | (base + (uint64_t)i * PAGE);
}

/* Unmap what the guest has changed since. */
static int follow_entries(struct rv_mirror *m, struct rv_mirror_table *t)
{
    unsigned run = 0;
    for (unsigned i = 0; i <= 512; i++) {
        bool stale = false;
        if (i < 512 && t->copy[i]) {
            uint64_t now = guest_entry(m, t, i);
            stale = (now ^ t->copy[i]) & MEANING || !(now & PTE_A) ||
                    (t->copy[i] & MIRROR_WRITE && !(now & PTE_D));
        }
        if (stale) {
            run++;
        } else if (run) {
            if (unmap(m, t, i - run, run))
                return -1;
            run = 0;
        }
    }
    return 0;
}

static int follow_table(struct rv_mirror *m, struct rv_mirror_table **at)
{
    struct rv_mirror_table *t = *at;
    struct rv_watch *watch = &m->vcpu->watch;
    bool above = false, changed = false;
    for (int i = 0; i < watched_pages(t); i++) {
        bool this = rv_watch_changed(watch, t->path[i], t->seen);
        changed |= this;
        above |= this && i < t->levels;
        if (this && watch->pages[t->path[i] >> 12].changed == UINT64_MAX)
            return drop_table(m, at);
    }
    if (!changed)
        return 0;
    if (above && !path_holds(m, t))
        return drop_table(m, at);
    t->seen = watch->now;
    return follow_entries(m, t);
}

static bool same_rights(uint64_t one, uint64_t other)
{
    return protection(one) == protection(other);
}

static int protect_run(struct rv_mirror *m, const struct rv_mirror_table *t, unsigned first,
                       unsigned count)
{
    return queue(m, (struct rv_stub_command){
                        SYS_mprotect,
                        {t->va + (uint64_t)first * PAGE, (uint64_t)count * PAGE,
                         (uint64_t)protection(t->copy[first])},
                        0});
}

/* Take note that the stub may write a page from now on. */
static void open_for_writing(struct rv_vcpu *v, uint64_t offset)
{
    rv_dirtylog_mark(v, offset, 1);
    if (rv_codepages_has_code(v, offset >> 12))
        rv_codepages_invalidate(v, offset, PAGE);
    rv_direct_opened(v, offset >> 12);
}

/* Whether a page may be open for writing before it is written: nobody has to see each write. */
static bool may_be_open(const struct rv_vcpu *v, uint64_t offset)
{
    return !rv_watched(&v->watch, offset >> 12) && !rv_codepages_has_code(v, offset >> 12);
}

/* Whether a page that is open is left so, and noted as written, where all are to be closed: if it
 * was written in two periods in a row, and for a few to come. */
static bool stays_open(struct rv_mirror *m, struct rv_mirror_table *t, unsigned i)
{
    uint64_t copy = t->copy[i], offset = page_offset(t, m->vcpu, i);
    uint64_t stays = copy & MIRROR_WROTE ? MIRROR_STAYS : copy & MIRROR_STAYS;
    t->copy[i] = copy & ~(MIRROR_WROTE | MIRROR_STAYS);
    if (!stays || !may_be_open(m->vcpu, offset))
        return false;
    t->copy[i] |= stays - ONE_STAY;
    open_for_writing(m->vcpu, offset);
    return true;
}

static int protect_table(struct rv_mirror *m, struct rv_mirror_table *t)
{
    unsigned run = 0;
    t->reopened = 0;
    for (unsigned i = 0; i <= 512; i++) {
        bool closes = i < 512 && t->copy[i] & MIRROR_WRITE && !stays_open(m, t, i);
        if (i < 512 && !(t->copy[i] & MIRROR_WRITE))
            t->copy[i] &= ~MIRROR_WROTE;
        if (closes)
            t->copy[i] = (t->copy[i] & ~MIRROR_WRITE) | MIRROR_WROTE;
        if (run && (!closes || !same_rights(t->copy[i], t->copy[i - 1]))) {
            if (protect_run(m, t, i - run, run))
                return -1;
            run = 0;
        }
        run += closes;
    }
    return 0;
}

/* Take the right to write from all pages but those that will be written at once. */
static int protect_all(struct rv_mirror *m)
{
    for (unsigned b = 0; b < MIRROR_BUCKETS; b++)
        for (struct rv_mirror_table *t = m->buckets[b]; t; t = t->next)
            if (protect_table(m, t))
                return -1;
    return 0;
}

int rv_mirror_sync(struct rv_mirror *m)
{
    struct rv_vcpu *v = m->vcpu;
    if (m->writes != v->direct->write_epoch) {
        m->writes = v->direct->write_epoch;
        if (protect_all(m))
            return -1;
    }
    if (m->seen != v->watch.now) {
        m->seen = v->watch.now;
        for (unsigned b = 0; b < MIRROR_BUCKETS; b++) {
            struct rv_mirror_table **at = &m->buckets[b];
            while (*at) {
                struct rv_mirror_table *t = *at;
                if (follow_table(m, at))
                    return -1;
                if (*at == t)
                    at = &t->next;
            }
        }
    }
    return perform(m);
}

/* Whether CPUID, which would tell of this host, may be executed in a page (opcode 0F A2). One that
 * crosses into this page from the one before it counts here, and only here: it needs both. */
static bool may_tell_cpuid(const struct rv_vcpu *v, uint64_t offset)
{
    const uint8_t *page = v->ram + offset, *at = page;
    while ((at = memchr(at, 0xa2, (size_t)(page + PAGE - at)))) {
        if (at == page || at[-1] == 0x0f)
            return true;
        at++;
    }
    return false;
}

/* Put entry `i` into the copy, with the rights its page may have in the stub now. */
static bool note(struct rv_mirror *m, struct rv_mirror_table *t, unsigned i, bool writable,
                 bool executable, bool touched)
{
    struct rv_vcpu *v = m->vcpu;
    uint64_t entry = guest_entry(m, t, i), offset = rv_ram_offset(v, entry & PTE_ADDRESS);
    if (offset == UINT64_MAX || t->va + (uint64_t)i * PAGE < LOWEST)
        return false;
    bool write = writable && entry & PTE_D && !rv_watched(&v->watch, offset >> 12) &&
                 (touched || (!v->dirty_pages && !rv_codepages_has_code(v, offset >> 12)));
    if (!t->copy[i]) {
        t->mapped++;
        m->mappings++;
    }
    bool execute = executable && (m->stub->traps_cpuid || !may_tell_cpuid(v, offset));
    t->copy[i] = (entry & ~MIRROR_BITS) | (write ? MIRROR_WRITE : 0) |
                 (execute ? MIRROR_EXEC : 0);
    if (write)
        open_for_writing(v, offset);
    return true;
}

/* The pages around one that was touched, as far as the guest has used them already. */
static int map_around(struct rv_mirror *m, struct rv_mirror_table *t, unsigned touched,
                      const struct rv_walk *w, bool write)
{
    unsigned doublings = t->large || t->touches > MOST_DOUBLINGS ? MOST_DOUBLINGS : t->touches;
    unsigned around = AROUND << doublings, first = touched / around * around;
    bool fresh[512] = {false};
    t->touches++;
    uint64_t above = PTE_W, nx = 0;
    for (int i = 0; i < t->levels; i++) {
        above &= t->value[i];
        nx |= t->value[i] & PTE_NX;
    }
    for (unsigned i = first; i < first + around; i++) {
        uint64_t entry = guest_entry(m, t, i);
        if (i == touched) {
            fresh[i - first] = note(m, t, i, w->writable && (write || entry & PTE_D),
                                    w->executable, write);
        } else if (!t->copy[i] && (entry & (PTE_P | PTE_U | PTE_A)) == (PTE_P | PTE_U | PTE_A) &&
                   (entry & PTE_ADDRESS) < (uint64_t)1 << 40) {
            fresh[i - first] = note(m, t, i, above && entry & PTE_W, !((entry | nx) & PTE_NX), false);
        }
    }
    return map_fresh(m, t, first, first + around, fresh);
}

/* Whether nothing but the dirty log stands in the way of writing a page. */
static bool may_reopen(const struct rv_mirror *m, const struct rv_mirror_table *t, unsigned i)
{
    uint64_t entry = guest_entry(m, t, i);
    return t->copy[i] && !(t->copy[i] & MIRROR_WRITE) &&
           (entry & (PTE_W | PTE_D)) == (PTE_W | PTE_D) &&
           may_be_open(m->vcpu, page_offset(t, m->vcpu, i));
}

/* A page is written for the first time since the dirty log was read. Who writes one page after the
 * other is going to write the next: with each trap twice as many are opened, and noted as written. */
static int reopen(struct rv_mirror *m, struct rv_mirror_table *t, unsigned touched)
{
    if (touched == t->reopened && touched) {
        t->reach = t->reach < 256 ? 2 * t->reach : 512;
    } else {
        struct rv_mirror_table *before = touched ? NULL : find(m, t->va - TABLE_BYTES);
        t->reach = before && before->reopened == 512 ? before->reach : 1;
    }
    unsigned end = touched;
    do {
        open_for_writing(m->vcpu, page_offset(t, m->vcpu, end));
        t->copy[end++] |= MIRROR_WRITE;
    } while (end < 512 && end - touched < t->reach && may_reopen(m, t, end) &&
             same_rights(t->copy[end], t->copy[touched] & ~MIRROR_WRITE));
    t->reopened = end;
    return protect_run(m, t, touched, end - touched);
}

enum rv_mirror_result rv_mirror_fault(struct rv_mirror *m, uint64_t va, bool write, bool fetch,
                                      uint32_t *error)
{
    struct rv_vcpu *v = m->vcpu;
    struct rv_walk w;
    enum rv_walk_result found = rv_walk(v, m->cr3, va, write, fetch, &w);
    *error = w.error;
    if (found != WALK_MAPPED)
        return found == WALK_FAULT ? MIRROR_FAULT : MIRROR_ODD;
    uint64_t offset = rv_ram_offset(v, w.gpa);
    if (offset == UINT64_MAX || va < LOWEST || va / TABLE_BYTES == m->stub->base / TABLE_BYTES ||
        (write && rv_watched(&v->watch, offset >> 12)))
        return MIRROR_ODD;
    for (int i = 0; i <= w.last; i++)
        set_bits(v, w.table[i], i == w.last && write ? PTE_A | PTE_D : PTE_A);
    uint64_t table_va = va & ~(TABLE_BYTES - 1);
    if ((m->mappings + 512 > MIRROR_MAX_MAPPINGS || m->tables == MIRROR_MAX_TABLES) && drop_all(m))
        return MIRROR_LOST;
    struct rv_mirror_table *t = find(m, table_va);
    if (!t)
        t = add_table(m, table_va, &w);
    if (!t)
        return MIRROR_ODD;
    unsigned index = (unsigned)(va / PAGE % 512);
    bool again = write && w.writable && may_reopen(m, t, index);
    if ((again ? reopen(m, t, index) : map_around(m, t, index, &w, write)) || perform(m))
        return MIRROR_LOST;
    uint64_t copy = t->copy[index];
    if (fetch && copy && !(copy & MIRROR_EXEC))
        return MIRROR_CPUID;
    if (!copy || (write && !(copy & MIRROR_WRITE)))
        return MIRROR_ODD;
    return MIRROR_DONE;
}

int rv_mirror_expect(struct rv_mirror *m, uint64_t va, bool write, bool fetch)
{
    struct rv_walk w;
    uint32_t error;
    uint64_t used = PTE_A | (write ? PTE_D : 0);
    if (rv_walk(m->vcpu, m->cr3, va, write, fetch, &w) != WALK_MAPPED ||
        (w.entry[w.last] & used) != used)
        return 0;
    return rv_mirror_fault(m, va, write, fetch, &error) == MIRROR_LOST ? -1 : 0;
}

struct rv_mirror *rv_mirror_new(struct rv_vcpu *v, struct rv_stub *stub, uint64_t cr3)
{
    struct rv_mirror *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    m->vcpu = v;
    m->stub = stub;
    m->cr3 = cr3;
    m->seen = v->watch.now;
    m->writes = v->direct->write_epoch;
    return m;
}

void rv_mirror_free(struct rv_mirror *m)
{
    for (unsigned b = 0; b < MIRROR_BUCKETS; b++)
        while (m->buckets[b])
            forget_table(m, &m->buckets[b]);
    rv_stub_free(m->stub);
    free(m);
}
