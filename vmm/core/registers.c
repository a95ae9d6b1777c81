/* Chips' registers that are no ports, answered in Python: see chipmem.h for the engine's side. */
#include "ports.h"

#define CHIP_PAGE_MASK 0xfffu

/* What `read` answers, or `otherwise` if it raises, which ends the run. */
static uint64_t ask(struct rv_ports *p, PyObject *read, PyObject *argument, uint64_t otherwise)
{
    PyObject *result = argument ? PyObject_CallFunctionObjArgs(read, argument, NULL)
                                : PyObject_CallNoArgs(read);
    uint64_t value = result ? PyLong_AsUnsignedLongLong(result) : otherwise;
    if (PyErr_Occurred()) {
        rv_ports_keep_error(p);
        value = otherwise;
    }
    Py_XDECREF(result);
    return value;
}

static bool tell(struct rv_ports *p, PyObject *write, PyObject *first, PyObject *second)
{
    PyObject *result = first ? PyObject_CallFunctionObjArgs(write, first, second, NULL) : NULL;
    bool refused = result == Py_False;
    if (!result)
        rv_ports_keep_error(p);
    Py_XDECREF(result);
    return !refused;
}

static uint32_t memory_in(void *opaque, uint32_t offset)
{
    struct rv_ports *p = opaque;
    rv_ports_enter(p);
    PyObject *where = PyLong_FromUnsignedLong(offset);
    uint32_t value = where ? (uint32_t)ask(p, p->memory_read, where, UINT32_MAX) : UINT32_MAX;
    Py_XDECREF(where);
    rv_ports_leave(p);
    return value;
}

static void memory_out(void *opaque, uint32_t offset, uint32_t value)
{
    struct rv_ports *p = opaque;
    rv_ports_enter(p);
    PyObject *where = PyLong_FromUnsignedLong(offset), *what = PyLong_FromUnsignedLong(value);
    tell(p, p->memory_write, what ? where : NULL, what);
    Py_XDECREF(where);
    Py_XDECREF(what);
    rv_ports_leave(p);
}

static const struct rv_msr *msr_at(const struct rv_ports *p, uint32_t index)
{
    for (int i = 0; i < p->msr_count; i++)
        if (p->msrs[i].index == index)
            return &p->msrs[i];
    return NULL;
}

static bool msr_in(void *opaque, uint32_t index, uint64_t *value)
{
    struct rv_ports *p = opaque;
    const struct rv_msr *m = msr_at(p, index);
    if (!m)
        return false;
    rv_ports_enter(p);
    *value = ask(p, m->read, NULL, 0);
    rv_ports_leave(p);
    return true;
}

static enum rv_msr_written msr_out(void *opaque, uint32_t index, uint64_t value)
{
    struct rv_ports *p = opaque;
    const struct rv_msr *m = msr_at(p, index);
    if (!m)
        return RV_MSR_NOT_OURS;
    rv_ports_enter(p);
    PyObject *what = PyLong_FromUnsignedLongLong(value);
    bool taken = tell(p, m->write, what, NULL);
    Py_XDECREF(what);
    rv_ports_leave(p);
    return taken ? RV_MSR_WRITTEN : RV_MSR_REFUSED;
}

static bool priority_in(void *opaque, uint32_t *value)
{
    struct rv_ports *p = opaque;
    if (!p->priority_read)
        return false;
    rv_ports_enter(p);
    *value = (uint32_t)ask(p, p->priority_read, NULL, 0);
    rv_ports_leave(p);
    return true;
}

static void priority_out(void *opaque, uint32_t value)
{
    struct rv_ports *p = opaque;
    if (!p->priority_write)
        return;
    rv_ports_enter(p);
    PyObject *what = PyLong_FromUnsignedLong(value);
    tell(p, p->priority_write, what, NULL);
    Py_XDECREF(what);
    rv_ports_leave(p);
}

void rv_registers_board(struct rv_board *board)
{
    board->memory_in = memory_in;
    board->memory_out = memory_out;
    board->msr_in = msr_in;
    board->msr_out = msr_out;
    board->priority_in = priority_in;
    board->priority_out = priority_out;
}

static void put(PyObject **slot, PyObject *callable)
{
    PyObject *old = *slot;
    Py_INCREF(callable);
    *slot = callable;
    Py_XDECREF(old);
}

int rv_registers_map_page(struct rv_ports *p, uint64_t gpa, PyObject *read, PyObject *write)
{
    const struct rv_vcpu *v = p->vcpu;
    bool free_page = gpa && !(gpa & CHIP_PAGE_MASK) && !v->chip_page;
    for (int i = 0; i < v->region_count; i++)
        free_page = free_page && (gpa < v->regions[i].gpa ||
                                  gpa - v->regions[i].gpa >= v->regions[i].bytes);
    if (!free_page) {
        PyErr_SetString(PyExc_ValueError, "one page that is not RAM can be a chip's");
        return -1;
    }
    put(&p->memory_read, read);
    put(&p->memory_write, write);
    p->vcpu->chip_page = gpa;
    return 0;
}

int rv_registers_map_msr(struct rv_ports *p, uint32_t index, PyObject *read, PyObject *write)
{
    if (p->msr_count == RV_MAX_MSRS || msr_at(p, index)) {
        PyErr_Format(PyExc_ValueError, "MSR %x is taken, or no more can be", (int)index);
        return -1;
    }
    struct rv_msr *m = &p->msrs[p->msr_count++];
    m->index = index;
    put(&m->read, read);
    put(&m->write, write);
    return 0;
}

void rv_registers_map_priority(struct rv_ports *p, PyObject *read, PyObject *write)
{
    put(&p->priority_read, read);
    put(&p->priority_write, write);
}

int rv_registers_traverse(struct rv_ports *p, visitproc visit, void *arg)
{
    for (int i = 0; i < p->msr_count; i++) {
        Py_VISIT(p->msrs[i].read);
        Py_VISIT(p->msrs[i].write);
    }
    Py_VISIT(p->memory_read);
    Py_VISIT(p->memory_write);
    Py_VISIT(p->priority_read);
    Py_VISIT(p->priority_write);
    return 0;
}

void rv_registers_clear(struct rv_ports *p)
{
    while (p->msr_count) {
        struct rv_msr *m = &p->msrs[--p->msr_count];
        Py_CLEAR(m->read);
        Py_CLEAR(m->write);
    }
    Py_CLEAR(p->memory_read);
    Py_CLEAR(p->memory_write);
    Py_CLEAR(p->priority_read);
    Py_CLEAR(p->priority_write);
}
