#include "tick.h"

#include "vcpu.h"

#define NS_A_SECOND 1000000000
#define HORIZON_NS ((int64_t)1 << 60)

/* When the TSC will have reached the deadline; or now, if it has. */
static int64_t due_ns(const struct rv_vcpu *v, int64_t now_ns)
{
    const struct rv_tick *t = &v->tick;
    uint64_t tsc = rv_vcpu_tsc(v);
    if (tsc >= t->deadline)
        return now_ns;
    unsigned __int128 left = (unsigned __int128)(t->deadline - tsc) * NS_A_SECOND;
    left = (left + t->tsc_hz - 1) / t->tsc_hz;
    return left < (unsigned __int128)HORIZON_NS ? now_ns + (int64_t)left : now_ns + HORIZON_NS;
}

static void drive_intr(struct rv_vcpu *v, int64_t now_ns)
{
    bool level = v->tick.requested && !v->tick.in_service;
    bool was = __atomic_exchange_n(&v->intr, level, __ATOMIC_SEQ_CST);
    if (!level)
        return;
    if (!was)
        __atomic_store_n(&v->intr_since_ns, now_ns, __ATOMIC_RELAXED);
    rv_vcpu_ask(v);
    if (rv_current != v)
        pthread_cond_signal(&v->wake);
}

bool rv_tick_look_locked(struct rv_vcpu *v, int64_t now_ns)
{
    struct rv_tick *t = &v->tick;
    if (!t->lent || !t->deadline || now_ns < t->deadline_ns)
        return false;
    int64_t due = due_ns(v, now_ns);
    if (due > now_ns) { /* the host's clock and the TSC disagree by a little */
        t->deadline_ns = due;
        return true;
    }
    rv_lateness_count(&t->late, now_ns - t->deadline_ns);
    t->deadline = 0;
    t->deadline_ns = RV_NO_DEADLINE;
    t->requested = true;
    drive_intr(v, now_ns);
    return true;
}

static void set_deadline(struct rv_vcpu *v, uint64_t deadline)
{
    int64_t now_ns = rv_now_ns();
    v->tick.deadline = deadline;
    v->tick.deadline_ns = deadline ? due_ns(v, now_ns) : RV_NO_DEADLINE;
    if (!rv_tick_look_locked(v, now_ns))
        rv_alarm_rearm_locked(v);
}

void rv_tick_lend(struct rv_vcpu *v, int vector, uint64_t deadline, uint64_t tsc_hz)
{
    struct rv_tick *t = &v->tick;
    pthread_mutex_lock(&v->lock);
    t->lent = true;
    t->requested = t->in_service = false;
    t->vector = vector;
    t->tsc_hz = tsc_hz;
    set_deadline(v, deadline);
    pthread_mutex_unlock(&v->lock);
}

struct rv_tick rv_tick_take_back(struct rv_vcpu *v)
{
    pthread_mutex_lock(&v->lock);
    (void)rv_tick_look_locked(v, rv_now_ns()); /* the alarm may be late, the time is not */
    struct rv_tick was = v->tick;
    v->tick.lent = false;
    v->tick.deadline = 0;
    v->tick.deadline_ns = RV_NO_DEADLINE;
    pthread_mutex_unlock(&v->lock);
    return was;
}

void rv_tick_run(struct rv_vcpu *v, bool runs)
{
    struct rv_tick *t = &v->tick;
    pthread_mutex_lock(&v->lock);
    t->deadline_ns = runs && t->lent && t->deadline ? due_ns(v, rv_now_ns()) : RV_NO_DEADLINE;
    pthread_mutex_unlock(&v->lock);
}

bool rv_tick_end(struct rv_vcpu *v)
{
    struct rv_tick *t = &v->tick;
    pthread_mutex_lock(&v->lock);
    bool lent = t->lent;
    if (lent && t->in_service) {
        t->in_service = false;
        drive_intr(v, rv_now_ns());
    }
    pthread_mutex_unlock(&v->lock);
    return lent;
}

bool rv_tick_set(struct rv_vcpu *v, uint64_t deadline)
{
    pthread_mutex_lock(&v->lock);
    bool lent = v->tick.lent;
    if (lent)
        set_deadline(v, deadline);
    pthread_mutex_unlock(&v->lock);
    return lent;
}

int rv_tick_acknowledge(struct rv_vcpu *v)
{
    struct rv_tick *t = &v->tick;
    int vector = -1;
    pthread_mutex_lock(&v->lock);
    if (t->lent && t->requested && !t->in_service) {
        vector = t->vector;
        t->requested = false;
        t->in_service = true;
        drive_intr(v, 0);
    }
    pthread_mutex_unlock(&v->lock);
    return vector;
}
