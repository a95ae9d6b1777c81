/* The thread that stops a running vCPU when the machine's next alarm is due.
 *
 * It waits on a timer that the vCPU's thread sets: setting one wakes nobody, so a guest that halts
 * again before its alarm, as an idle one does some tens of times a second, never wakes the thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "direct.h"
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
    int64_t next = v->deadline_ns < v->linger_ns ? v->deadline_ns : v->linger_ns;
    next = v->tick.deadline_ns < next ? v->tick.deadline_ns : next;
    return v->look_ns < next ? v->look_ns : next;
}

static void set_timer(struct rv_vcpu *v, int64_t at_ns)
{
    struct itimerspec t = {0}; /* zero stops the timer */
    v->alarm_until_ns = at_ns;
    if (at_ns != RV_NO_DEADLINE) {
        int64_t positive = at_ns > 0 ? at_ns : 1;
        t.it_value.tv_sec = positive / 1000000000;
        t.it_value.tv_nsec = positive % 1000000000;
    }
    timerfd_settime(v->alarm_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

/* Most alarms are moved further away: the thread finds out when it wakes. */
void rv_alarm_rearm_locked(struct rv_vcpu *v)
{
    int64_t next = next_ns(v);
    if (next < v->alarm_until_ns)
        set_timer(v, next);
}

/* A halted vCPU waits for its deadline itself. */
void rv_alarm_rest_locked(struct rv_vcpu *v)
{
    if (v->alarm_until_ns != RV_NO_DEADLINE)
        set_timer(v, RV_NO_DEADLINE);
}

static void *watch(void *argument)
{
    struct rv_vcpu *v = argument;
    uint64_t expired;
    while (read(v->alarm_fd, &expired, sizeof(expired)) > 0 || errno == EINTR) {
        pthread_mutex_lock(&v->lock);
        bool quit = v->alarm_quit;
        int64_t next = next_ns(v);
        v->alarm_until_ns = RV_NO_DEADLINE;
        /* Asked to stop already: the timer is set again when the guest goes on. */
        if (next != RV_NO_DEADLINE && !__atomic_load_n(&v->stop, __ATOMIC_SEQ_CST)) {
            int64_t now = rv_now_ns();
            if (now < next) {
                set_timer(v, next);
            } else if (rv_tick_look_locked(v, now)) {
                rv_alarm_rearm_locked(v);
            } else if (next == v->look_ns) {
                v->look_ns = RV_NO_DEADLINE;
                rv_direct_look(v);
                rv_alarm_rearm_locked(v);
            } else {
                __atomic_or_fetch(&v->stop, RV_STOP_ALARM, __ATOMIC_SEQ_CST);
                rv_vcpu_ask(v);
            }
        }
        pthread_mutex_unlock(&v->lock);
        if (quit)
            break;
    }
    return NULL;
}

int rv_alarm_start(struct rv_vcpu *v)
{
    v->alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (v->alarm_fd < 0)
        return -1;
    int error = pthread_create(&v->alarm, NULL, watch, v);
    if (error) {
        close(v->alarm_fd);
        errno = error;
        return -1;
    }
    v->alarm_started = true;
    return 0;
}

void rv_alarm_stop(struct rv_vcpu *v)
{
    if (!v->alarm_started)
        return;
    pthread_mutex_lock(&v->lock);
    v->alarm_quit = true;
    set_timer(v, 0);
    pthread_mutex_unlock(&v->lock);
    pthread_join(v->alarm, NULL);
    close(v->alarm_fd);
    v->alarm_started = false;
}
