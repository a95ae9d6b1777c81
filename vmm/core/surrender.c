/*
 * Where the engine cannot go on it ends the process: QEMU owns its process, a vCPU does not. The
 * core stands in between, notes what was said, and leaves the execution loop instead.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "vcpu.h"

static void leave(struct rv_vcpu *v)
{
    v->gave_up = true;
    RV_AT(v->cpu, CPU_EXCEPTION_INDEX, int32_t) = EXCP_HLT;
    rv_engine.leave_loop(v->cpu);
    abort();
}

/* A guest (or a restored state) in which delivering an exception makes no sense. */
void rv_cpu_abort(void *cpu, const char *format, ...)
{
    struct rv_vcpu *v = rv_current;
    (void)cpu;
    if (!v)
        abort();
    int used = snprintf(v->why, sizeof(v->why), "the translator gave up: ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(v->why + used, sizeof(v->why) - (size_t)used, format, arguments);
    va_end(arguments);
    leave(v);
}

/* An assertion inside the engine: it may be in the middle of anything. */
void rv_process_abort(void)
{
    struct rv_vcpu *v = rv_current;
    if (!v)
        abort();
    snprintf(v->why, sizeof(v->why), "the translator gave up: an assertion inside it failed");
    v->broken = true;
    leave(v);
}

void rv_process_exit(int status)
{
    if (!rv_current)
        exit(status);
    rv_process_abort();
}
