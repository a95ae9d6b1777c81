/* The I/O port space: which Python chip answers at which port, and writes held back for one. */
#ifndef RV_PORTS_H
#define RV_PORTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "vcpu.h"

#define RV_MAX_PORT_RANGES 64
#define RV_BURST_BYTES 4096

struct rv_port_range {
    PyObject *read, *write; /* read(offset) -> int; write(offset, value) */
    uint32_t first;
};

struct rv_ports {
    uint8_t range_of[65536]; /* 1 + index into ranges; 0 for none */
    struct rv_port_range ranges[RV_MAX_PORT_RANGES];
    int count;
    PyObject *acknowledge; /* acknowledge() -> int */

    /* Coalesced port: byte writes wait here until anything else happens at any port. */
    PyObject *burst_sink; /* burst_sink(bytes) */
    uint32_t burst_port;
    uint32_t burst_bytes;
    uint8_t burst[RV_BURST_BYTES];

    struct rv_vcpu *vcpu;
    PyThreadState *thread; /* of the thread in run(), while the interpreter lock is released */
    PyObject *error;       /* the exception a chip raised, to be raised by run() */
};

/* The board that dispatches to `p`. */
struct rv_board rv_ports_board(struct rv_ports *p);

/* Answer `count` ports from `first` by the callables. 0, or -1 with a Python error set. */
int rv_ports_map(struct rv_ports *p, uint32_t first, uint32_t count, PyObject *read,
                 PyObject *write);
/* Coalesce byte writes to `port` into `sink`, or with NULL stop doing so. */
void rv_ports_coalesce(struct rv_ports *p, uint32_t port, PyObject *sink);
int rv_ports_traverse(struct rv_ports *p, visitproc visit, void *arg);
void rv_ports_clear(struct rv_ports *p);

#endif
