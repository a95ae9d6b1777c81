#include "ports.h"

#include <string.h>

/* A guest that only computes after its last byte must still get it out. */
#define BURST_LINGER_NS 200000

void rv_ports_enter(struct rv_ports *p)
{
    PyEval_RestoreThread(p->thread);
    p->thread = NULL;
}

void rv_ports_leave(struct rv_ports *p)
{
    p->thread = PyEval_SaveThread();
}

void rv_ports_keep_error(struct rv_ports *p)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (p->error || !value) {
        Py_XDECREF(value);
    } else {
        if (traceback)
            PyException_SetTraceback(value, traceback);
        p->error = value;
        rv_vcpu_kick(p->vcpu);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
}

static void finish_call(struct rv_ports *p, PyObject *result)
{
    if (result)
        Py_DECREF(result);
    else
        rv_ports_keep_error(p);
}

static void hand_over_burst(struct rv_ports *p)
{
    uint32_t count = p->burst_bytes;
    p->burst_bytes = 0;
    PyObject *data = PyBytes_FromStringAndSize((const char *)p->burst, count);
    PyObject *sink = p->burst_sink;
    Py_XINCREF(sink);
    finish_call(p, data && sink ? PyObject_CallFunctionObjArgs(sink, data, NULL) : NULL);
    Py_XDECREF(sink);
    Py_XDECREF(data);
}

static struct rv_port_range *range_at(struct rv_ports *p, uint32_t port)
{
    uint8_t index = p->range_of[port & 0xffff];
    return index ? &p->ranges[index - 1] : NULL;
}

static uint32_t read_byte(struct rv_ports *p, uint32_t port)
{
    struct rv_port_range *r = range_at(p, port);
    if (!r || r->read == Py_None)
        return 0xff;
    PyObject *offset = PyLong_FromUnsignedLong((port & 0xffff) - r->first);
    PyObject *result = offset ? PyObject_CallFunctionObjArgs(r->read, offset, NULL) : NULL;
    Py_XDECREF(offset);
    unsigned long value = result ? PyLong_AsUnsignedLong(result) : 0xff;
    if (PyErr_Occurred())
        rv_ports_keep_error(p);
    Py_XDECREF(result);
    return value & 0xff;
}

static void write_byte(struct rv_ports *p, uint32_t port, uint32_t value)
{
    struct rv_port_range *r = range_at(p, port);
    if (!r || r->write == Py_None)
        return;
    PyObject *offset = PyLong_FromUnsignedLong((port & 0xffff) - r->first);
    PyObject *byte = PyLong_FromUnsignedLong(value & 0xff);
    finish_call(p, offset && byte ? PyObject_CallFunctionObjArgs(r->write, offset, byte, NULL)
                                  : NULL);
    Py_XDECREF(offset);
    Py_XDECREF(byte);
}

/* Chips are byte-wide, as on the ISA bus: wider accesses are split, low byte first. */
static uint32_t port_in(void *opaque, uint32_t port, int bytes)
{
    struct rv_ports *p = opaque;
    uint32_t value = 0;
    if (!p->burst_bytes && !range_at(p, port))
        return UINT32_MAX;
    rv_ports_enter(p);
    if (p->burst_bytes)
        hand_over_burst(p);
    for (int i = 0; i < bytes; i++)
        value |= read_byte(p, port + (uint32_t)i) << 8 * i;
    rv_ports_leave(p);
    return value;
}

static void port_out(void *opaque, uint32_t port, int bytes, uint32_t value)
{
    struct rv_ports *p = opaque;
    if (p->burst_sink && port == p->burst_port && bytes == 1) {
        if (!p->burst_bytes)
            rv_vcpu_linger(p->vcpu, BURST_LINGER_NS);
        p->burst[p->burst_bytes++] = (uint8_t)value;
        if (p->burst_bytes < RV_BURST_BYTES)
            return;
        rv_ports_enter(p);
        hand_over_burst(p);
        rv_ports_leave(p);
        return;
    }
    if (!p->burst_bytes && !range_at(p, port))
        return;
    rv_ports_enter(p);
    if (p->burst_bytes)
        hand_over_burst(p);
    for (int i = 0; i < bytes; i++)
        write_byte(p, port + (uint32_t)i, value >> 8 * i);
    rv_ports_leave(p);
}

static int acknowledge(void *opaque)
{
    struct rv_ports *p = opaque;
    rv_ports_enter(p);
    PyObject *result = p->acknowledge ? PyObject_CallNoArgs(p->acknowledge) : NULL;
    long vector = result ? PyLong_AsLong(result) : -1;
    if (PyErr_Occurred()) {
        rv_ports_keep_error(p);
        vector = -1;
    }
    Py_XDECREF(result);
    rv_ports_leave(p);
    return vector >= 0 && vector <= 255 ? (int)vector : -1;
}

static void left(void *opaque)
{
    struct rv_ports *p = opaque;
    if (!p->burst_bytes)
        return;
    rv_ports_enter(p);
    hand_over_burst(p);
    rv_ports_leave(p);
}

struct rv_board rv_ports_board(struct rv_ports *p)
{
    struct rv_board board = {.port_in = port_in,
                             .port_out = port_out,
                             .acknowledge = acknowledge,
                             .left = left,
                             .opaque = p};
    rv_registers_board(&board);
    return board;
}

int rv_ports_map(struct rv_ports *p, uint32_t first, uint32_t count, PyObject *read,
                 PyObject *write)
{
    if (!count || first > 0xffff || count > 0x10000 - first) {
        PyErr_SetString(PyExc_ValueError, "ports lie in 0..0xffff");
        return -1;
    }
    if (p->count == RV_MAX_PORT_RANGES) {
        PyErr_SetString(PyExc_ValueError, "too many port ranges");
        return -1;
    }
    for (uint32_t port = first; port < first + count; port++) {
        if (p->range_of[port]) {
            PyErr_Format(PyExc_ValueError, "port %x is taken", (int)port);
            return -1;
        }
    }
    struct rv_port_range *r = &p->ranges[p->count++];
    *r = (struct rv_port_range){.read = read, .write = write, .first = first};
    Py_INCREF(read);
    Py_INCREF(write);
    memset(p->range_of + first, p->count, count);
    return 0;
}

void rv_ports_coalesce(struct rv_ports *p, uint32_t port, PyObject *sink)
{
    PyObject *old = p->burst_sink;
    Py_XINCREF(sink);
    p->burst_sink = sink;
    p->burst_port = port;
    Py_XDECREF(old);
}

int rv_ports_traverse(struct rv_ports *p, visitproc visit, void *arg)
{
    for (int i = 0; i < p->count; i++) {
        Py_VISIT(p->ranges[i].read);
        Py_VISIT(p->ranges[i].write);
    }
    Py_VISIT(p->acknowledge);
    Py_VISIT(p->burst_sink);
    Py_VISIT(p->error);
    return rv_registers_traverse(p, visit, arg);
}

void rv_ports_clear(struct rv_ports *p)
{
    memset(p->range_of, 0, sizeof(p->range_of));
    while (p->count) {
        struct rv_port_range *r = &p->ranges[--p->count];
        Py_CLEAR(r->read);
        Py_CLEAR(r->write);
    }
    Py_CLEAR(p->acknowledge);
    Py_CLEAR(p->burst_sink);
    Py_CLEAR(p->error);
    rv_registers_clear(p);
}
