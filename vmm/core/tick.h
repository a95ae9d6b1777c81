/*
 * The tick of a guest's kernel: what its local APIC does hundreds of times a second, without Python.
 *
 * While nothing is requested or in service, the chip lends the core its timer. The core then
 * performs the circle of a deadline of the TSC, an interrupt with one vector, its acknowledgement
 * and its end. Whatever else anybody wants of the chip makes it take the timer back first, with what
 * has become of it.
 */
#ifndef RV_TICK_H
#define RV_TICK_H

#include <stdbool.h>
#include <stdint.h>

#include "lateness.h"

struct rv_vcpu;

#define TICK_EOI 0xb0u /* of the chip's page */
#define TICK_MSR 0x6e0u

/* Under the vCPU's lock. */
struct rv_tick {
    bool lent, requested, in_service;
    int vector;
    uint64_t tsc_hz;
    uint64_t deadline;    /* of the TSC; 0 for none */
    int64_t deadline_ns;  /* on CLOCK_MONOTONIC */
    struct rv_lateness late;
};

/* The vCPU's thread, or while it does not run. */
void rv_tick_lend(struct rv_vcpu *v, int vector, uint64_t deadline, uint64_t tsc_hz);
/* What has become of it; not lent any more. */
struct rv_tick rv_tick_take_back(struct rv_vcpu *v);
/* The guest's time goes on, or stands still. */
void rv_tick_run(struct rv_vcpu *v, bool runs);

/* The guest's accesses. False: the chip's to answer. */
bool rv_tick_end(struct rv_vcpu *v);
bool rv_tick_set(struct rv_vcpu *v, uint64_t deadline);
/* The vector of the interrupt that the guest takes, or -1: ask the chip. */
int rv_tick_acknowledge(struct rv_vcpu *v);

/* Any thread, with the lock held: expire if that is due. True: it was. */
bool rv_tick_look_locked(struct rv_vcpu *v, int64_t now_ns);

#endif
