#include "census.h"

#include <stdlib.h>
#include <string.h>

#define PROBES 16

static struct rv_site *find(struct rv_census *c, uint32_t kind, uint64_t detail, uint64_t rip)
{
    if (!c->sites) {
        c->sites = calloc(RV_CENSUS_SITES, sizeof(*c->sites));
        if (!c->sites)
            return NULL;
    }
    uint64_t hash = (rip ^ detail << 20 ^ (uint64_t)kind << 56) * 0x9e3779b97f4a7c15u >> 40;
    for (uint64_t i = 0; i < PROBES; i++) {
        struct rv_site *s = &c->sites[(hash + i) % RV_CENSUS_SITES];
        if (!s->count) {
            s->kind = kind;
            s->detail = detail;
            s->rip = rip;
            return s;
        }
        if (s->rip == rip && s->detail == detail && s->kind == kind)
            return s;
    }
    return NULL;
}

void rv_census_count(struct rv_census *c, enum rv_kind kind, uint64_t detail, uint64_t rip)
{
    c->counts[kind]++;
    struct rv_site *s = find(c, kind, detail, rip);
    if (s)
        s->count++;
    else
        c->unplaced++;
    uint64_t slot = c->next++ % RV_CENSUS_RECENT;
    c->recent[slot].kind = kind;
    c->recent[slot].detail = detail;
    c->recent[slot].rip = rip;
}

void rv_census_clear(struct rv_census *c)
{
    struct rv_site *sites = c->sites;
    memset(c, 0, sizeof(*c));
    c->sites = sites;
    if (sites)
        memset(sites, 0, RV_CENSUS_SITES * sizeof(*sites));
}

void rv_census_free(struct rv_census *c)
{
    free(c->sites);
    c->sites = NULL;
}
