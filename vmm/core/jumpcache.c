#include "jumpcache.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "softtlb.h"
#include "vcpu.h"

#define ENTRY_BITS 13
#define ENTRIES (1u << ENTRY_BITS)
#define LINE_BYTES 64
#define GOLDEN 0x9e3779b97f4a7c15u /* spreads addresses over the table */
/* The entry of the engine's own table in which we stand: any would do. */
#define SENTINEL_INDEX 2741u
/* Not canonical: no block begins there. */
#define SENTINEL_PC 0x5a5a000000000001u

struct entry {
    uint64_t pc;
    char *block;
    uint64_t host_page; /* where its code lies in RAM; 0: not known, or it lies in two pages */
    uint32_t flags;
    uint32_t epoch; /* of the TLB: the entry holds while that is the cache's */
};

/* Begins like a block of the engine's, because a pointer to it lies in the engine's own table. The
 * engine empties that whenever it flushes its TLB, and so tells. */
struct rv_jumpcache {
    alignas(LINE_BYTES) char sentinel[BLOCK_HEADER_BYTES];
    struct entry entries[ENTRIES];
    uint32_t epoch;
};

static inline uint32_t block_flags(const void *env)
{
    return RV_AT(env, ENV_HFLAGS, uint32_t) |
           (uint32_t)(RV_AT(env, ENV_EFLAGS, uint64_t) & BLOCK_RFLAGS);
}

static inline struct entry *entry_of(struct rv_jumpcache *c, uint64_t pc)
{
    return &c->entries[pc * GOLDEN >> (64 - ENTRY_BITS)];
}

static inline char **engine_table(void *env)
{
    return &RV_AT(env, CPU_JUMPS - CPU_ENV_AT, char *);
}

/* Where in RAM the guest's code at `pc` lies, if the TLB has its page for fetching; or 0. */
static uint64_t host_page(void *env, uint64_t pc, uint32_t flags)
{
    const struct rv_uc_tlb_entry *e = rv_tlb_entry(env, rv_tlb_mode(flags), pc);
    uint64_t page = pc & TLB_PAGE_MASK;
    return e->addr_code == page ? page + e->addend : 0;
}

static void next_epoch(struct rv_jumpcache *c)
{
    if (!++c->epoch) {
        memset(c->entries, 0, sizeof(c->entries));
        c->epoch = 1;
    }
}

/* The table, in the present epoch. */
static struct rv_jumpcache *present(struct rv_vcpu *v)
{
    char **table = engine_table(v->env);
    if (table[SENTINEL_INDEX] != v->jumps->sentinel) {
        next_epoch(v->jumps);
        table[SENTINEL_INDEX] = v->jumps->sentinel;
    }
    return v->jumps;
}

/* The block that begins at `pc`, if it is known and its code is still mapped there; or NULL. */
static char *known_block(struct rv_vcpu *v, uint64_t pc, uint32_t flags)
{
    struct rv_jumpcache *c = present(v);
    struct entry *e = entry_of(c, pc);
    if (e->pc != pc || e->flags != flags ||
        RV_AT(e->block, BLOCK_CFLAGS, uint32_t) & BLOCK_INVALID)
        return NULL;
    if (e->epoch != c->epoch) {
        uint64_t page = host_page(v->env, pc, flags);
        if (!page || page != e->host_page)
            return NULL;
        e->epoch = c->epoch;
    }
    return e->block;
}

static void learn(struct rv_vcpu *v, uint64_t pc, uint32_t flags, char *block)
{
    struct entry *e = entry_of(v->jumps, pc);
    *e = (struct entry){.pc = pc, .block = block, .flags = flags, .epoch = v->jumps->epoch};
    if (RV_AT(block, BLOCK_SECOND_PAGE, int64_t) == -1)
        e->host_page = host_page(v->env, pc, flags);
}

/* Not inlined: the common case shall save no registers. */
__attribute__((noinline)) static void *look_up(void *env, uint64_t pc, uint32_t flags)
{
    struct rv_vcpu *v = rv_current;
    if (!v || v->env != env)
        return rv_engine.original.lookup_block(env);
    char *block = known_block(v, pc, flags);
    if (block)
        return RV_AT(block, BLOCK_CODE, void *);
    void *code = rv_engine.original.lookup_block(env);
    block = engine_table(env)[rv_jump_index(pc)];
    if (rv_jump_index(pc) == SENTINEL_INDEX)
        engine_table(env)[SENTINEL_INDEX] = v->jumps->sentinel;
    if (block && RV_AT(block, BLOCK_PC, uint64_t) == pc && RV_AT(block, BLOCK_CODE, void *) == code)
        learn(v, pc, flags, block);
    return code;
}

void *rv_find_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cflags)
{
    struct rv_vcpu *v = rv_current;
    if (v && v->cpu == cpu && !cs_base) {
        char *block = known_block(v, pc, flags);
        if (block && (RV_AT(block, BLOCK_CFLAGS, uint32_t) & BLOCK_KIND) == cflags)
            return block;
    }
    return rv_engine.original.find_block(cpu, pc, cs_base, flags, cflags);
}

void *rv_lookup_block(void *env)
{
    uint64_t pc = RV_AT(env, ENV_EIP, uint64_t);
    uint32_t flags = block_flags(env);
    char *sentinel = engine_table(env)[SENTINEL_INDEX];
    if (RV_AT(env, ENV_SEGS + SEG_CS * 24 + 8, uint64_t)) /* a code segment with a base: rare */
        return rv_engine.original.lookup_block(env);
    if (sentinel && RV_AT(sentinel, BLOCK_PC, uint64_t) == SENTINEL_PC) {
        struct rv_jumpcache *c = (struct rv_jumpcache *)sentinel;
        const struct entry *e = entry_of(c, pc);
        if (e->pc == pc && e->flags == flags && e->epoch == c->epoch &&
            !(RV_AT(e->block, BLOCK_CFLAGS, uint32_t) & BLOCK_INVALID))
            return RV_AT(e->block, BLOCK_CODE, void *);
    }
    return look_up(env, pc, flags);
}

/* The engine flushes one page of its TLB, which empties a part of its table. */
void rv_flush_jumps(void *cpu, uint64_t address)
{
    rv_engine.original.flush_jumps(cpu, address);
    (&RV_AT(cpu, CPU_JUMPS, char *))[SENTINEL_INDEX] = NULL;
}

void rv_jumpcache_forget(struct rv_vcpu *v)
{
    memset(v->jumps->entries, 0, sizeof(v->jumps->entries));
}

int rv_jumpcache_attach(struct rv_vcpu *v)
{
    v->jumps = aligned_alloc(LINE_BYTES, sizeof(*v->jumps));
    if (!v->jumps)
        return -1;
    memset(v->jumps, 0, sizeof(*v->jumps));
    RV_AT(v->jumps->sentinel, BLOCK_PC, uint64_t) = SENTINEL_PC;
    RV_AT(v->jumps->sentinel, BLOCK_CFLAGS, uint32_t) = BLOCK_INVALID;
    v->jumps->epoch = 1;
    return 0;
}

void rv_jumpcache_detach(struct rv_vcpu *v)
{
    free(v->jumps);
    v->jumps = NULL;
}
