/* The thread that stops a running vCPU when the machine's next alarm is due. */
#define _GNU_SOURCE
#include <time.h>

#include "vcpu.h"

int64_t rv_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t next_ns(const struct rv_vcpu *v)
{
    if (!v->running)
        return RV_NO_DEADLINE;
    return v->deadline_ns < v->linger_ns ? v->deadline_ns : v->linger_ns;
}

/* Most alarms are moved further away: the thread finds out when it wakes. */
void rv_alarm_rearm_locked(struct rv_vcpu *v)
{
    if (next_ns(v) < v->alarm_until_ns)
        pthread_cond_signal(&v->rearm);
}

static void *watch(void *argument)
{
    struct rv_vcpu *v = argument;
    pthread_mutex_lock(&v->lock);
    while (!v->alarm_quit) {
        int64_t next = next_ns(v);
        if (__atomic_load_n(&v->stop, __ATOMIC_SEQ_CST))
            next = RV_NO_DEADLINE;
        if (next != RV_NO_DEADLINE && rv_now_ns() >= next) {
            __atomic_or_fetch(&v->stop, RV_STOP_ALARM, __ATOMIC_SEQ_CST);
            rv_vcpu_ask(v);
            continue;
        }
        v->alarm_until_ns = next;
        if (next == RV_NO_DEADLINE) {
            pthread_cond_wait(&v->rearm, &v->lock);
        } else {
            struct timespec until = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
            pthread_cond_timedwait(&v->rearm, &v->lock, &until);
        }
    }
    pthread_mutex_unlock(&v->lock);
    return NULL;
}

int rv_alarm_start(struct rv_vcpu *v)
{
    v->alarm_started = pthread_create(&v->alarm, NULL, watch, v) == 0;
    return v->alarm_started ? 0 : -1;
}

void rv_alarm_stop(struct rv_vcpu *v)
{
    if (!v->alarm_started)
        return;
    pthread_mutex_lock(&v->lock);
    v->alarm_quit = true;
    pthread_cond_signal(&v->rearm);
    pthread_mutex_unlock(&v->lock);
    pthread_join(v->alarm, NULL);
    v->alarm_started = false;
}
