/* rayvisor.vmm.core._native: the vCPU as a Python type. _native.pyi says what each member does. */
#include <string.h>
#include <x86intrin.h>

#include "codepages.h"
#include "cpu_state.h"
#include "dirtylog.h"
#include "pages.h"
#include "ports.h"
#include "vcpu.h"

#define TSC_MEASUREMENT_NS 10000000

typedef struct {
    PyObject_HEAD
    struct rv_vcpu *vcpu;
    struct rv_ports *ports;
    Py_buffer ram;
    bool has_ram, running;
} Vcpu;

static PyObject *engine_error; /* rayvisor.vmm.errors.EngineError */
static PyObject *state_error;  /* rayvisor.vmm.errors.CorruptStateError */

static struct rv_vcpu *open_vcpu(Vcpu *self)
{
    if (!self->vcpu)
        PyErr_SetString(engine_error, "the vCPU is closed");
    return self->vcpu;
}

/* The vCPU, if it is open and not in run(). */
static struct rv_vcpu *idle_vcpu(Vcpu *self)
{
    if (self->running) {
        PyErr_SetString(engine_error, "the vCPU is running: pause the machine first");
        return NULL;
    }
    return open_vcpu(self);
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
        PyErr_SetString(engine_error, "load() the Unicorn library first");
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
        PyErr_SetString(engine_error, why);
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
        return (PyObject *)idle_vcpu(self);
    vcpu_clear(self);
    release(self);
    Py_RETURN_NONE;
}

static PyObject *vcpu_run(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
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
        PyErr_SetString(engine_error, v->why);
        return NULL;
    }
    return PyLong_FromLong(exit);
}

static PyObject *vcpu_kick(Vcpu *self, PyObject *unused)
{
    (void)unused;
    if (!open_vcpu(self))
        return NULL;
    rv_vcpu_kick(self->vcpu);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_intr(Vcpu *self, PyObject *level)
{
    int on = PyObject_IsTrue(level);
    if (on < 0 || !open_vcpu(self))
        return NULL;
    rv_vcpu_set_intr(self->vcpu, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_raise_nmi(Vcpu *self, PyObject *unused)
{
    (void)unused;
    if (!open_vcpu(self))
        return NULL;
    rv_vcpu_raise_nmi(self->vcpu);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_deadline(Vcpu *self, PyObject *deadline)
{
    if (!open_vcpu(self))
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
    struct rv_vcpu *v = idle_vcpu(self);
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
    struct rv_vcpu *v = idle_vcpu(self);
    if (!v || PyBytes_AsStringAndSize(data, &bytes, &count))
        return NULL;
    if (count != (Py_ssize_t)sizeof(state)) {
        PyErr_SetString(state_error, "x86-cpu: wrong size");
        return NULL;
    }
    memcpy(&state, bytes, sizeof(state));
    if (rv_cpu_load(v, &state, why, sizeof(why))) {
        PyErr_SetString(state_error, why);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *vcpu_reset(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_vcpu_reset(v);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_a20(Vcpu *self, PyObject *level)
{
    int on = PyObject_IsTrue(level);
    if (on < 0 || !open_vcpu(self))
        return NULL;
    rv_engine.set_a20(self->vcpu->cpu, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_run_tsc(Vcpu *self, PyObject *runs)
{
    int on = PyObject_IsTrue(runs);
    struct rv_vcpu *v = idle_vcpu(self);
    if (on < 0 || !v)
        return NULL;
    rv_vcpu_run_tsc(v, on);
    Py_RETURN_NONE;
}

static PyObject *vcpu_host_wrote(Vcpu *self, PyObject *args)
{
    unsigned long long offset, count;
    struct rv_vcpu *v = open_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "KK", &offset, &count))
        return NULL;
    if (offset > v->ram_bytes || count > v->ram_bytes - offset) {
        PyErr_SetString(PyExc_ValueError, "outside RAM");
        return NULL;
    }
    rv_codepages_invalidate(v, offset, count);
    rv_dirtylog_mark(v, offset, count);
    Py_RETURN_NONE;
}

static PyObject *vcpu_code_bytes(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    return v ? PyLong_FromSize_t(rv_vcpu_code_bytes(v)) : NULL;
}

static PyObject *vcpu_trim(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_vcpu_trim(v);
    Py_RETURN_NONE;
}

static PyObject *vcpu_start_dirty_log(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    if (rv_dirtylog_start(v))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *vcpu_stop_dirty_log(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_dirtylog_stop(v);
    Py_RETURN_NONE;
}

static PyObject *vcpu_harvest_dirty(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    if (!v->dirty_pages) {
        PyErr_SetString(engine_error, "the dirty log is off: start it first");
        return NULL;
    }
    size_t bytes = rv_dirtylog_bytes(v);
    uint8_t *bitmap = malloc(bytes);
    if (!bitmap)
        return PyErr_NoMemory();
    rv_dirtylog_harvest(v, bitmap);
    PyObject *result = PyBytes_FromStringAndSize((const char *)bitmap, (Py_ssize_t)bytes);
    free(bitmap);
    return result;
}

static PyObject *vcpu_set_cpuid(Vcpu *self, PyObject *data)
{
    char *bytes;
    Py_ssize_t count;
    struct rv_vcpu *v = idle_vcpu(self);
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
    struct rv_vcpu *v = idle_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "II", &leaf, &subleaf))
        return NULL;
    rv_engine.cpuid(v->env, leaf, subleaf, &a, &b, &c, &d);
    return Py_BuildValue("IIII", a, b, c, d);
}

static PyObject *vcpu_map_ports(Vcpu *self, PyObject *args)
{
    unsigned first, count;
    PyObject *read, *write;
    if (!idle_vcpu(self) || !PyArg_ParseTuple(args, "IIOO", &first, &count, &read, &write))
        return NULL;
    if (rv_ports_map(self->ports, first, count, read, write))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *vcpu_coalesce_port(Vcpu *self, PyObject *args)
{
    unsigned port;
    PyObject *sink;
    if (!open_vcpu(self) || !PyArg_ParseTuple(args, "IO", &port, &sink))
        return NULL;
    rv_ports_coalesce(self->ports, port & 0xffff, sink == Py_None ? NULL : sink);
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_acknowledge(Vcpu *self, PyObject *callable)
{
    if (!idle_vcpu(self))
        return NULL;
    PyObject *old = self->ports->acknowledge;
    Py_INCREF(callable);
    self->ports->acknowledge = callable;
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

/* (counts, unplaced, [(kind, detail, rip, count)], [(kind, detail, rip)]): the machine's thread,
 * or while not running; another thread would see a site half written. */
static PyObject *vcpu_census(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = open_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    const struct rv_census *c = &v->census;
    PyObject *counts = PyList_New(0), *sites = PyList_New(0), *recent = PyList_New(0);
    bool ok = counts && sites && recent;
    for (int i = 0; ok && i < RV_KINDS; i++) {
        PyObject *n = PyLong_FromUnsignedLongLong(c->counts[i]);
        ok = n && !PyList_Append(counts, n);
        Py_XDECREF(n);
    }
    for (int i = 0; ok && c->sites && i < RV_CENSUS_SITES; i++) {
        const struct rv_site *s = &c->sites[i];
        if (!s->count)
            continue;
        PyObject *site = Py_BuildValue("IKKK", s->kind, s->detail, s->rip, s->count);
        ok = site && !PyList_Append(sites, site);
        Py_XDECREF(site);
    }
    uint64_t first = c->next > RV_CENSUS_RECENT ? c->next - RV_CENSUS_RECENT : 0;
    for (uint64_t i = first; ok && i < c->next; i++) {
        uint64_t slot = i % RV_CENSUS_RECENT;
        PyObject *exit = Py_BuildValue("IKK", c->recent[slot].kind, c->recent[slot].detail,
                                       c->recent[slot].rip);
        ok = exit && !PyList_Append(recent, exit);
        Py_XDECREF(exit);
    }
    PyObject *result = ok ? Py_BuildValue("OKOO", counts, c->unplaced, sites, recent) : NULL;
    Py_XDECREF(counts);
    Py_XDECREF(sites);
    Py_XDECREF(recent);
    return result;
}

/* Exits by kind. Any thread: each count is one aligned word that only ever grows. */
static PyObject *vcpu_exit_counts(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = open_vcpu(self);
    (void)unused;
    PyObject *counts = v ? PyTuple_New(RV_KINDS) : NULL;
    for (int i = 0; counts && i < RV_KINDS; i++) {
        uint64_t count = __atomic_load_n(&v->census.counts[i], __ATOMIC_RELAXED);
        PyObject *n = PyLong_FromUnsignedLongLong(count);
        if (!n || PyTuple_SetItem(counts, i, n))
            Py_CLEAR(counts);
    }
    return counts;
}

static PyObject *vcpu_clear_census(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_census_clear(&v->census);
    Py_RETURN_NONE;
}

static PyObject *native_load(PyObject *module, PyObject *path)
{
    char why[256] = "";
    PyObject *encoded;
    (void)module;
    if (!PyUnicode_FSConverter(path, &encoded))
        return NULL;
    int bad = rv_engine_load(PyBytes_AsString(encoded), why, sizeof(why));
    Py_DECREF(encoded);
    if (bad) {
        PyErr_SetString(engine_error, why);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* A pair of readings closest together of several, so that being descheduled does no harm. */
static void read_clocks(uint64_t *tsc, int64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        uint64_t before = __rdtsc();
        int64_t now = rv_now_ns();
        uint64_t after = __rdtsc();
        if (after - before < best) {
            best = after - before;
            *tsc = before + best / 2;
            *ns = now;
        }
    }
}

static PyObject *native_measure_tsc_hz(PyObject *module, PyObject *unused)
{
    uint64_t tsc0 = 0, tsc1 = 0;
    int64_t ns0 = 0, ns1 = 0;
    (void)module;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS;
    read_clocks(&tsc0, &ns0);
    while (rv_now_ns() - ns0 < TSC_MEASUREMENT_NS)
        continue;
    read_clocks(&tsc1, &ns1);
    Py_END_ALLOW_THREADS;
    double hz = (double)(tsc1 - tsc0) * 1e9 / (double)(ns1 - ns0);
    return PyLong_FromDouble(hz);
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
    METHOD(host_wrote, METH_VARARGS),
    METHOD(code_bytes, METH_NOARGS),
    METHOD(trim, METH_NOARGS),
    METHOD(start_dirty_log, METH_NOARGS),
    METHOD(stop_dirty_log, METH_NOARGS),
    METHOD(harvest_dirty, METH_NOARGS),
    METHOD(set_cpuid, METH_O),
    METHOD(engine_cpuid, METH_VARARGS),
    METHOD(map_ports, METH_VARARGS),
    METHOD(coalesce_port, METH_VARARGS),
    METHOD(set_acknowledge, METH_O),
    METHOD(census, METH_NOARGS),
    METHOD(exit_counts, METH_NOARGS),
    METHOD(clear_census, METH_NOARGS),
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

static PyType_Spec vcpu_spec = {
    .name = "rayvisor.vmm.core._native.Vcpu",
    .basicsize = sizeof(Vcpu),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = vcpu_slots,
};

static PyMethodDef native_functions[] = {
    {"load", native_load, METH_O, NULL},
    {"measure_tsc_hz", native_measure_tsc_hz, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = native_functions,
};

static PyObject *import_error(const char *name)
{
    PyObject *errors = PyImport_ImportModule("rayvisor.vmm.errors");
    PyObject *error = errors ? PyObject_GetAttrString(errors, name) : NULL;
    Py_XDECREF(errors);
    return error;
}

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&native_module);
    PyObject *type = PyType_FromSpec(&vcpu_spec);
    engine_error = import_error("EngineError");
    state_error = import_error("CorruptStateError");
    if (module && type && engine_error && state_error &&
        !rv_pages_add(module) && !PyModule_AddObjectRef(module, "Vcpu", type) &&
        !PyModule_AddIntConstant(module, "CPU_STATE_BYTES", sizeof(struct rv_cpu_state)) &&
        !PyModule_AddIntConstant(module, "EXIT_DEADLINE", RV_EXIT_DEADLINE) &&
        !PyModule_AddIntConstant(module, "EXIT_KICK", RV_EXIT_KICK) &&
        !PyModule_AddIntConstant(module, "EXIT_HALTED", RV_EXIT_HALTED) &&
        !PyModule_AddIntConstant(module, "EXIT_TRIPLE_FAULT", RV_EXIT_TRIPLE_FAULT)) {
        Py_DECREF(type);
        return module;
    }
    Py_XDECREF(type);
    Py_XDECREF(module);
    return NULL;
}
