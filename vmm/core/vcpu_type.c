#include "vcpu_type.h"

#include <string.h>

#include "cpu_state.h"

PyObject *rv_engine_error, *rv_state_error;

struct rv_vcpu *rv_open_vcpu(Vcpu *self)
{
    if (!self->vcpu)
        PyErr_SetString(rv_engine_error, "the vCPU is closed");
    return self->vcpu;
}

struct rv_vcpu *rv_idle_vcpu(Vcpu *self)
{
    if (self->running) {
        PyErr_SetString(rv_engine_error, "the vCPU is running: pause the machine first");
        return NULL;
    }
    return rv_open_vcpu(self);
}

static int parse_regions(PyObject *list, uint64_t ram_bytes, struct rv_region *regions)
{
    Py_ssize_t count = PySequence_Size(list);
    uint64_t end = 0;
    if (count < 0)
        return -1;
    if (count == 0 || count > RV_MAX_REGIONS) {
        PyErr_SetString(PyExc_ValueError, "between 1 and 8 RAM regions");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long gpa, bytes, offset;
        PyObject *item = PySequence_GetItem(list, i);
        int ok = item && PyArg_ParseTuple(item, "KKK", &gpa, &bytes, &offset);
        Py_XDECREF(item);
        if (!ok)
            return -1;
        if ((gpa | bytes | offset) & 0xfff || !bytes || gpa < end || bytes > ram_bytes ||
            offset > ram_bytes - bytes || gpa > UINT64_MAX - bytes) {
            PyErr_SetString(PyExc_ValueError,
                            "RAM regions are whole pages, ascending, inside the buffer");
            return -1;
        }
        end = gpa + bytes;
        regions[i] = (struct rv_region){.gpa = gpa, .bytes = bytes, .offset = offset};
    }
    return (int)count;
}

static PyObject *vcpu_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ram", "regions", NULL};
    struct rv_region regions[RV_MAX_REGIONS];
    PyObject *buffer, *list;
    char why[160] = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", names, &buffer, &list))
        return NULL;
    if (!rv_engine.uc_open) {
        PyErr_SetString(rv_engine_error, "load() the Unicorn library first");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Vcpu *self = (Vcpu *)allocate(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(buffer, &self->ram, PyBUF_WRITABLE | PyBUF_SIMPLE))
        goto failed;
    self->has_ram = true;
    uint64_t ram_bytes = (uint64_t)self->ram.len;
    int count = parse_regions(list, ram_bytes, regions);
    if (count < 0)
        goto failed;
    self->ports = PyMem_Calloc(1, sizeof(*self->ports));
    if (!self->ports) {
        PyErr_NoMemory();
        goto failed;
    }
    self->vcpu = rv_vcpu_new(self->ram.buf, ram_bytes, regions, count, why, sizeof(why));
    if (!self->vcpu) {
        PyErr_SetString(rv_engine_error, why);
        goto failed;
    }
    self->ports->vcpu = self->vcpu;
    self->vcpu->board = rv_ports_board(self->ports);
    return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void release(Vcpu *self)
{
    if (self->vcpu)
        rv_vcpu_free(self->vcpu);
    self->vcpu = NULL;
    if (self->has_ram)
        PyBuffer_Release(&self->ram);
    self->has_ram = false;
}

static int vcpu_traverse(Vcpu *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    return self->ports ? rv_ports_traverse(self->ports, visit, arg) : 0;
}

static int vcpu_clear(Vcpu *self)
{
    if (self->ports)
        rv_ports_clear(self->ports);
    return 0;
}

static void vcpu_dealloc(Vcpu *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    vcpu_clear(self);
    release(self);
    PyMem_Free(self->ports);
    freefunc deallocate = (freefunc)PyType_GetSlot(type, Py_tp_free);
    deallocate(self);
    Py_DECREF(type);
}

static PyObject *vcpu_close(Vcpu *self, PyObject *unused)
{
    (void)unused;
    if (self->running)
        return (PyObject *)rv_idle_vcpu(self);
    vcpu_clear(self);
    release(self);
    Py_RETURN_NONE;
}

static PyObject *vcpu_run(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    self->running = true;
    self->ports->thread = PyEval_SaveThread();
    enum rv_exit exit = rv_vcpu_run(v);
    PyEval_RestoreThread(self->ports->thread);
    self->ports->thread = NULL;
    self->running = false;
    PyObject *error = self->ports->error;
    if (error) {
        self->ports->error = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        return NULL;
    }
    if (exit == RV_EXIT_ENGINE) {
        PyErr_SetString(rv_engine_error, v->why);
        return NULL;
    }
    return PyLong_FromLong(exit);
}

static PyObject *vcpu_kick(Vcpu *self, PyObject *unused)
{
    (void)unused;
    if (!rv_open_vcpu(self))
        return NULL;
    rv_vcpu_kick(self->vcpu);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_intr(Vcpu *self, PyObject *level)
{
    int on = PyObject_IsTrue(level);
    if (on < 0 || !rv_open_vcpu(self))
        return NULL;
    rv_vcpu_set_intr(self->vcpu, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_raise_nmi(Vcpu *self, PyObject *unused)
{
    (void)unused;
    if (!rv_open_vcpu(self))
        return NULL;
    rv_vcpu_raise_nmi(self->vcpu);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_deadline(Vcpu *self, PyObject *deadline)
{
    if (!rv_open_vcpu(self))
        return NULL;
    long long ns = deadline == Py_None ? RV_NO_DEADLINE : PyLong_AsLongLong(deadline);
    if (PyErr_Occurred())
        return NULL;
    rv_vcpu_set_deadline(self->vcpu, ns);
    Py_RETURN_NONE;
}

static PyObject *vcpu_save(Vcpu *self, PyObject *unused)
{
    struct rv_cpu_state state;
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_cpu_save(v, &state);
    return PyBytes_FromStringAndSize((const char *)&state, sizeof(state));
}

static PyObject *vcpu_load(Vcpu *self, PyObject *data)
{
    struct rv_cpu_state state;
    char why[160] = "", *bytes;
    Py_ssize_t count;
    struct rv_vcpu *v = rv_idle_vcpu(self);
    if (!v || PyBytes_AsStringAndSize(data, &bytes, &count))
        return NULL;
    if (count != (Py_ssize_t)sizeof(state)) {
        PyErr_SetString(rv_state_error, "x86-cpu: wrong size");
        return NULL;
    }
    memcpy(&state, bytes, sizeof(state));
    if (rv_cpu_load(v, &state, why, sizeof(why))) {
        PyErr_SetString(rv_state_error, why);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *vcpu_reset(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_vcpu_reset(v);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_a20(Vcpu *self, PyObject *level)
{
    int on = PyObject_IsTrue(level);
    if (on < 0 || !rv_open_vcpu(self))
        return NULL;
    rv_engine.set_a20(self->vcpu->cpu, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_run_tsc(Vcpu *self, PyObject *runs)
{
    int on = PyObject_IsTrue(runs);
    struct rv_vcpu *v = rv_idle_vcpu(self);
    if (on < 0 || !v)
        return NULL;
    rv_vcpu_run_tsc(v, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_tsc(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
    (void)unused;
    return v ? PyLong_FromUnsignedLongLong(rv_vcpu_tsc(v)) : NULL;
}

static PyObject *vcpu_set_cpuid(Vcpu *self, PyObject *data)
{
    char *bytes;
    Py_ssize_t count;
    struct rv_vcpu *v = rv_idle_vcpu(self);
    if (!v || PyBytes_AsStringAndSize(data, &bytes, &count))
        return NULL;
    if (count % (Py_ssize_t)sizeof(*v->cpuid)) {
        PyErr_SetString(PyExc_ValueError, "CPUID entries are six 32-bit words each");
        return NULL;
    }
    struct rv_cpuid_entry *table = malloc((size_t)count + 1);
    if (!table)
        return PyErr_NoMemory();
    memcpy(table, bytes, (size_t)count);
    free(v->cpuid);
    v->cpuid = table;
    v->cpuid_count = (int)(count / (Py_ssize_t)sizeof(*table));
    Py_RETURN_NONE;
}

static PyObject *vcpu_engine_cpuid(Vcpu *self, PyObject *args)
{
    uint32_t leaf, subleaf, a = 0, b = 0, c = 0, d = 0;
    struct rv_vcpu *v = rv_idle_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "II", &leaf, &subleaf))
        return NULL;
    rv_engine.cpuid(v->env, leaf, subleaf, &a, &b, &c, &d);
    return Py_BuildValue("IIII", a, b, c, d);
}

static PyObject *vcpu_map_ports(Vcpu *self, PyObject *args)
{
    unsigned first, count;
    PyObject *read, *write;
    if (!rv_idle_vcpu(self) || !PyArg_ParseTuple(args, "IIOO", &first, &count, &read, &write))
        return NULL;
    if (rv_ports_map(self->ports, first, count, read, write))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *vcpu_map_page(Vcpu *self, PyObject *args)
{
    unsigned long long gpa;
    PyObject *read, *write;
    if (!rv_idle_vcpu(self) || !PyArg_ParseTuple(args, "KOO", &gpa, &read, &write) ||
        rv_registers_map_page(self->ports, gpa, read, write))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *vcpu_map_msr(Vcpu *self, PyObject *args)
{
    unsigned index;
    PyObject *read, *write;
    if (!rv_idle_vcpu(self) || !PyArg_ParseTuple(args, "IOO", &index, &read, &write) ||
        rv_registers_map_msr(self->ports, index, read, write))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *vcpu_map_priority(Vcpu *self, PyObject *args)
{
    PyObject *read, *write;
    if (!rv_idle_vcpu(self) || !PyArg_ParseTuple(args, "OO", &read, &write))
        return NULL;
    rv_registers_map_priority(self->ports, read, write);
    Py_RETURN_NONE;
}

static PyObject *vcpu_coalesce_port(Vcpu *self, PyObject *args)
{
    unsigned port;
    PyObject *sink;
    if (!rv_open_vcpu(self) || !PyArg_ParseTuple(args, "IO", &port, &sink))
        return NULL;
    rv_ports_coalesce(self->ports, port & 0xffff, sink == Py_None ? NULL : sink);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_acknowledge(Vcpu *self, PyObject *callable)
{
    if (!rv_idle_vcpu(self))
        return NULL;
    PyObject *old = self->ports->acknowledge;
    Py_INCREF(callable);
    self->ports->acknowledge = callable;
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

#define METHOD(name, flags) {#name, (PyCFunction)vcpu_##name, flags, NULL}
static PyMethodDef vcpu_methods[] = {
    METHOD(close, METH_NOARGS),
    METHOD(run, METH_NOARGS),
    METHOD(kick, METH_NOARGS),
    METHOD(set_intr, METH_O),
    METHOD(raise_nmi, METH_NOARGS),
    METHOD(set_deadline, METH_O),
    METHOD(save, METH_NOARGS),
    METHOD(load, METH_O),
    METHOD(reset, METH_NOARGS),
    METHOD(set_a20, METH_O),
    METHOD(run_tsc, METH_O),
    METHOD(tsc, METH_NOARGS),
    METHOD(host_wrote, METH_VARARGS),
    METHOD(code_bytes, METH_NOARGS),
    METHOD(trim, METH_NOARGS),
    METHOD(start_dirty_log, METH_NOARGS),
    METHOD(stop_dirty_log, METH_NOARGS),
    METHOD(harvest_dirty, METH_VARARGS),
    METHOD(set_cpuid, METH_O),
    METHOD(engine_cpuid, METH_VARARGS),
    METHOD(map_ports, METH_VARARGS),
    METHOD(map_page, METH_VARARGS),
    METHOD(map_msr, METH_VARARGS),
    METHOD(map_priority, METH_VARARGS),
    METHOD(coalesce_port, METH_VARARGS),
    METHOD(set_acknowledge, METH_O),
    METHOD(census, METH_NOARGS),
    METHOD(exit_counts, METH_NOARGS),
    METHOD(interrupt_lateness, METH_NOARGS),
    METHOD(tick_lateness, METH_NOARGS),
    METHOD(lend_tick, METH_VARARGS),
    METHOD(take_tick_back, METH_NOARGS),
    METHOD(clear_census, METH_NOARGS),
    METHOD(start_direct, METH_VARARGS),
    METHOD(choose_at_random, METH_O),
    METHOD(direct_counts, METH_NOARGS),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot vcpu_slots[] = {
    {Py_tp_new, vcpu_new},
    {Py_tp_dealloc, vcpu_dealloc},
    {Py_tp_traverse, vcpu_traverse},
    {Py_tp_clear, vcpu_clear},
    {Py_tp_methods, vcpu_methods},
    {0, NULL},
};

PyType_Spec rv_vcpu_spec = {
    .name = "rayvisor.vmm.core._native.Vcpu",
    .basicsize = sizeof(Vcpu),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = vcpu_slots,
};
