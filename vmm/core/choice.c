#define _GNU_SOURCE
#include "choice.h"

#include <time.h>
#include <x86intrin.h>

#include "vcpu.h"

/* How much faster the processor is than the engine, at the least that pays. */
#define SPEEDUP 3
/* What a switch costs, and what it costs besides: caches, and the way back into the engine. In us. */
#define SWITCH_US 5
#define AFTER_SWITCH_US 2
/* What it costs where pages have to be mapped each time; more will not go on for long. */
#define MOST_TOLL_US 20
/* A stub is made when the stays in the engine so far would have saved what it costs and, in us, what
 * it takes to fill it; one that is timed, and stands for others, counts for no more than a part. */
#define FILL_US 500
#define SAMPLE_PART 4
/* One that there is, and that did not pay, is used again when they would have saved so much; twice as
 * much each time, up to 2 to this power, until it has saved more. */
#define RETURN_US 100
#define WON_US 1000
#define MOST_DOUBLINGS 8u
/* So many stays are all timed after it has not paid: what made it so may be over soon. */
#define WATCHED_STAYS 64u
/* What native stays may lose at first, while pages are mapped, and later what good ones have saved. */
#define FIRST_CREDIT_US 1000
#define MOST_CREDIT_US 150
/* Stays longer than this, on average, are not told by the clock of one in so many: a look that finds
 * user code stands for all the time since the last. */
#define LONG_STAY_US 100
/* What stays in the engine took is forgotten in about 2 to this power of native ones. */
#define FORGET 6
#define BAN_STAYS 65536u
#define LONG_NATIVE_US 500
/* User code that stays longer than this goes native at once. Where looks find nothing they come
 * less often, down to 2 to this power: the guest's own ticks are looks as well. */
#define LOOK_NS 500000
#define MOST_IDLE_LOOKS 4u
#define MOST_SWITCH_US 50
/* Time in which a busy host has run something else is not the guest's. */
#define LEAST_CPU_NS 250000

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t ticks(const struct rv_direct *d, int64_t us)
{
    return us * (int64_t)d->ticks_a_us;
}

static int64_t stub_price(const struct rv_direct *d)
{
    return d->stub_ticks + ticks(d, FILL_US);
}

struct rv_record *rv_choice_record(struct rv_direct *d, uint64_t cr3)
{
    struct rv_record *r = rv_choice_place(d, cr3);
    if (r->cr3 != cr3)
        *r = (struct rv_record){.cr3 = cr3};
    return r;
}

void rv_choice_ban(struct rv_record *r)
{
    r->wait = BAN_STAYS;
}

void rv_choice_beside_cpuid(struct rv_direct *d)
{
    d->beside_since = __rdtsc();
}

void rv_choice_forget(struct rv_direct *d, uint64_t cr3)
{
    struct rv_record *r = rv_choice_place(d, cr3);
    if (r->cr3 == cr3)
        *r = (struct rv_record){.cr3 = cr3};
}

static void add_beside(struct rv_direct *d)
{
    struct rv_record *r = d->here;
    r->beside += (int64_t)(__rdtsc() - d->beside_since);
    d->beside_since = 0;
    if (r->beside >= stub_price(d))
        r->needs_cpuid = true;
}

static bool banned(const struct rv_record *r)
{
    return r->wait >= BAN_STAYS / 2;
}

uint32_t rv_choice_random(struct rv_direct *d)
{
    static _Thread_local uint64_t state;
    if (!state)
        state = __rdtsc() | 1;
    (void)d;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* What stays in the engine must have missed before user code goes native. */
static int64_t price(const struct rv_direct *d, const struct rv_record *r)
{
    if (!r->failures)
        return stub_price(d);
    uint32_t doublings = r->failures - 1 < MOST_DOUBLINGS ? r->failures - 1 : MOST_DOUBLINGS;
    return ticks(d, RETURN_US) << doublings;
}

static void give_credit(const struct rv_direct *d, struct rv_record *r)
{
    int64_t credit = ticks(d, r->failures ? MOST_CREDIT_US : FIRST_CREDIT_US);
    if (r->credit < credit)
        r->credit = credit;
    r->won = 0;
}

static void keep_account(const struct rv_direct *d, struct rv_record *r, int64_t gain)
{
    int64_t most = ticks(d, MOST_CREDIT_US);
    if (gain < 0)
        r->credit += gain;
    else if (r->credit < most)
        r->credit = most - r->credit < gain ? most : r->credit + gain;
    r->won += gain;
    if (r->won >= ticks(d, WON_US) && r->failures)
        r->failures = 1;
    if (r->credit >= 0)
        return;
    r->credit = 0;
    r->missed = 0;
    r->failures++;
    r->watched = WATCHED_STAYS;
}

static bool choose(struct rv_vcpu *v, struct rv_record *r)
{
    struct rv_direct *d = v->direct;
    if (d->coin)
        return rv_choice_random(d) & 1;
    if (r->wait) {
        r->wait--;
        return false;
    }
    return r->missed >= price(d, r);
}

/* User code of this address space stays long: it is worth a stub, whatever it was before. */
static void promote(struct rv_direct *d)
{
    d->here->quiet = 0;
    d->idle_looks = 0;
    d->here->wait = 0;
    d->here->missed = price(d, d->here);
    give_credit(d, d->here);
}

/* As many stays, of so many ticks each, would have saved this by being native; or so much at most. */
static void miss(struct rv_direct *d, int64_t stay, int64_t stays, int64_t most)
{
    struct rv_record *r = d->here;
    int64_t toll = r->toll ? r->toll : ticks(d, SWITCH_US), before = r->missed;
    if (toll > ticks(d, MOST_TOLL_US))
        toll = ticks(d, MOST_TOLL_US);
    int64_t saved = (stay - stay / SPEEDUP - toll) * stays;
    r->missed += saved < most ? saved : most;
    if (r->missed < 0)
        r->missed = 0;
    if (before < price(d, r) && r->missed >= price(d, r)) {
        r->quiet = 0;
        give_credit(d, r);
    }
}

/* A single one may have been longer for other reasons: code that was translated, a busy host. */
static void note_stay(struct rv_direct *d, int64_t stay)
{
    struct rv_record *r = d->here;
    int64_t most = 4 * r->stay + ticks(d, 2 * SWITCH_US);
    r->stay += ((stay < most ? stay : most) - r->stay) / 4;
}

/* A look, or a tick, has found user code, and not in the stay in which the time began. */
static void weigh(struct rv_direct *d, int64_t ran_ns, int64_t stays)
{
    int64_t stay = ticks(d, ran_ns / 1000) / stays;
    if (stay < ticks(d, LONG_STAY_US) || banned(d->here))
        return;
    miss(d, stay, stays, INT64_MAX);
    if (d->here->missed >= price(d, d->here))
        promote(d);
}

static void leave_engine(struct rv_vcpu *v)
{
    v->direct->go = true;
    rv_vcpu_ask(v);
}

void rv_choice_ring3(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    struct rv_record *r = d->here = rv_choice_record(d, rv_choice_cr3(v));
    d->entered = 0;
    d->in_ring3 = true;
    d->entries++;
    bool quiet = !r->wait && !r->watched && !d->coin;
    r->quiet = 0;
    if (choose(v, r)) {
        leave_engine(v);
        return;
    }
    if (quiet)
        r->quiet = d->looks;
    if (d->entries % CHOICE_SAMPLE == 0 || r->watched)
        d->entered = __rdtsc();
    if (!d->look_entries && !banned(r)) {
        uint32_t idle = d->idle_looks < MOST_IDLE_LOOKS ? d->idle_looks : MOST_IDLE_LOOKS;
        d->look_entries = d->entries;
        d->look_cpu_ns = cpu_ns();
        rv_vcpu_look(v, (int64_t)LOOK_NS << idle);
    }
}

void rv_direct_look(struct rv_vcpu *v)
{
    __atomic_store_n(&v->direct->look, 1, __ATOMIC_SEQ_CST);
    rv_vcpu_ask(v);
}

bool rv_direct_stays_long(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    if (d->interrupted) {
        d->interrupted = false;
        d->go = true;
    }
    if (d->go || !__atomic_exchange_n(&d->look, 0, __ATOMIC_SEQ_CST))
        return d->go;
    int64_t ran_ns = cpu_ns() - d->look_cpu_ns;
    bool same = d->look_entries == d->entries;
    if (d->in_ring3 && same && ran_ns >= LEAST_CPU_NS) {
        d->here->stay = ticks(d, ran_ns / 1000);
        promote(d);
        d->go = true;
    } else {
        d->idle_looks++;
        if (d->in_ring3 && !same)
            weigh(d, ran_ns, (int64_t)(d->entries - d->look_entries) + 1);
    }
    d->look_entries = 0;
    d->looks++; /* the next stay asks for another */
    return d->go;
}

void rv_direct_ticked(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    int64_t now = cpu_ns();
    uint32_t stays = d->entries - d->tick_entries;
    if (d->in_ring3 && stays && !banned(d->here)) {
        if (stays > 1)
            weigh(d, now - d->tick_cpu_ns, stays);
        else if (now - d->tick_cpu_ns >= LEAST_CPU_NS)
            promote(d);
    }
    d->tick_entries = d->entries;
    d->tick_cpu_ns = now;
}

void rv_direct_ring0(struct rv_vcpu *v)
{
    struct rv_direct *d = v->direct;
    d->go = d->in_ring3 = d->interrupted = false;
    if (d->stay_goes_on)
        rv_choice_end(d, d->spaces[0] ? d->spaces[0]->switch_ticks : 0);
    if (d->beside_since)
        add_beside(d);
    if (!d->entered)
        return;
    int64_t stay = (int64_t)(__rdtsc() - d->entered);
    d->entered = 0;
    bool watched = d->here->watched;
    d->here->watched -= watched;
    miss(d, stay, watched ? 1 : CHOICE_SAMPLE, stub_price(d) / SAMPLE_PART);
    note_stay(d, stay);
}

void rv_choice_begin(struct rv_direct *d)
{
    if (d->stay_goes_on) {
        d->stay_goes_on = false;
        return;
    }
    d->stay_began = __rdtsc();
    d->stay_running = 0;
    d->stay_runs = 0;
}

void rv_choice_ran(struct rv_mirror *m, uint64_t ticks)
{
    struct rv_direct *d = m->vcpu->direct;
    d->stay_running += ticks;
    d->stay_runs++;
    /* The shortest is a switch and nothing else; slowly forgotten. */
    if (!m->switch_ticks || ticks < m->switch_ticks)
        m->switch_ticks = ticks;
    else
        m->switch_ticks += m->switch_ticks >> 12;
    if (m->switch_ticks > MOST_SWITCH_US * d->ticks_a_us)
        m->switch_ticks = MOST_SWITCH_US * d->ticks_a_us;
}

void rv_choice_end(struct rv_direct *d, uint64_t switch_ticks)
{
    struct rv_record *r = d->here;
    d->stay_goes_on = d->interrupted;
    if (d->interrupted)
        return;
    uint64_t total = __rdtsc() - d->stay_began, switches = d->stay_runs * switch_ticks;
    uint64_t native = d->stay_running > switches ? d->stay_running - switches : 0;
    uint64_t after = d->stay_runs * AFTER_SWITCH_US * d->ticks_a_us;
    int64_t engine = (int64_t)(native * SPEEDUP);
    if (engine < r->stay)
        engine = r->stay;
    int64_t gain = engine - (int64_t)(total + after);
    r->stay -= r->stay >> FORGET;
    r->beside -= r->beside >> FORGET;
    r->toll += ((int64_t)(total - native) - r->toll) / 8;
    d->stays++;
    d->native_ticks += native;
    d->switching_ticks += total - native;
    /* What a long one has mapped, it has for long. */
    if (total > LONG_NATIVE_US * d->ticks_a_us && gain < 0)
        return;
    keep_account(d, r, gain);
}
