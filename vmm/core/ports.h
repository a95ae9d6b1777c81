/* Which Python chip answers at which port, or at another register, and writes held back for one. */
#ifndef RV_PORTS_H
#define RV_PORTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "vcpu.h"

#define RV_MAX_PORT_RANGES 64
#define RV_BURST_BYTES 4096
#define RV_MAX_MSRS 4

struct rv_port_range {
    PyObject *read, *write; /* read(offset) -> int; write(offset, value) */
    uint32_t first;
};

struct rv_msr {
    PyObject *read, *write; /* read() -> int; write(value), False: #GP */
    uint32_t index;
};

struct rv_ports {
    uint8_t range_of[65536]; /* 1 + index into ranges; 0 for none */
    struct rv_port_range ranges[RV_MAX_PORT_RANGES];
    int count;
    PyObject *acknowledge; /* acknowledge() -> int */
    PyObject *memory_read, *memory_write; /* the chip page: read(offset) -> int; write(offset, value) */
    struct rv_msr msrs[RV_MAX_MSRS];
    int msr_count;
    PyObject *priority_read, *priority_write; /* CR8: read() -> int; write(value) */

    /* Coalesced port: byte writes wait here until anything else happens at any port. */
    PyObject *burst_sink; /* burst_sink(bytes) */
    uint32_t burst_port;
    uint32_t burst_bytes;
    uint8_t burst[RV_BURST_BYTES];

    struct rv_vcpu *vcpu;
    PyThreadState *thread; /* of the thread in run(), while the interpreter lock is released */
    PyObject *error;       /* the exception a chip raised, to be raised by run() */
};

/* The interpreter lock, around a call of a chip; a chip must not raise: the first error of one that
 * does ends the run. */
void rv_ports_enter(struct rv_ports *p);
void rv_ports_leave(struct rv_ports *p);
void rv_ports_keep_error(struct rv_ports *p);

/* The board that dispatches to `p`. */
struct rv_board rv_ports_board(struct rv_ports *p);

/* Answer `count` ports from `first` by the callables. 0, or -1 with a Python error set. */
int rv_ports_map(struct rv_ports *p, uint32_t first, uint32_t count, PyObject *read,
                 PyObject *write);
/* Coalesce byte writes to `port` into `sink`, or with NULL stop doing so. */
void rv_ports_coalesce(struct rv_ports *p, uint32_t port, PyObject *sink);
int rv_ports_traverse(struct rv_ports *p, visitproc visit, void *arg);
void rv_ports_clear(struct rv_ports *p);

/* registers.c: have chips answer a page of memory (32-bit registers), an MSR, CR8. 0, or -1 with a
 * Python error set. */
int rv_registers_map_page(struct rv_ports *p, uint64_t gpa, PyObject *read, PyObject *write);
int rv_registers_map_msr(struct rv_ports *p, uint32_t index, PyObject *read, PyObject *write);
void rv_registers_map_priority(struct rv_ports *p, PyObject *read, PyObject *write);
void rv_registers_board(struct rv_board *board);
int rv_registers_traverse(struct rv_ports *p, visitproc visit, void *arg);
void rv_registers_clear(struct rv_ports *p);

#endif
