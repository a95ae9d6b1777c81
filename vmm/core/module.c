/* rayvisor.vmm.core._native: loading the engine, and the vCPU type. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include "cpu_state.h"
#include "pages.h"
#include "vcpu_type.h"

#define TSC_MEASUREMENT_NS 10000000

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
        PyErr_SetString(rv_engine_error, why);
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

/* map_file(room, fd, count, alignment, /): see _native.pyi */
static PyObject *native_map_file(PyObject *module, PyObject *args)
{
    Py_buffer room;
    int fd;
    Py_ssize_t count, alignment;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*inn", &room, &fd, &count, &alignment))
        return NULL;
    uintptr_t first = (uintptr_t)room.buf, aligned = first;
    bool fits = count > 0 && alignment > 0;
    if (fits) {
        aligned = (first + (uintptr_t)alignment - 1) / (uintptr_t)alignment * (uintptr_t)alignment;
        fits = aligned - first <= (uintptr_t)room.len &&
               (uintptr_t)count <= (uintptr_t)room.len - (aligned - first);
    }
    void *there = fits ? mmap((void *)aligned, (size_t)count, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_FIXED, fd, 0)
                       : MAP_FAILED;
    int error = fits ? errno : EINVAL;
    PyBuffer_Release(&room);
    if (there == MAP_FAILED) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSize_t(aligned - first);
}

static PyMethodDef native_functions[] = {
    {"load", native_load, METH_O, NULL},
    {"measure_tsc_hz", native_measure_tsc_hz, METH_NOARGS, NULL},
    {"map_file", native_map_file, METH_VARARGS, NULL},
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

static int add_bounds(PyObject *module)
{
    PyObject *bounds = PyTuple_New(RV_LATENESS_BUCKETS - 1);
    for (int i = 0; bounds && i < RV_LATENESS_BUCKETS - 1; i++) {
        PyObject *bound = PyLong_FromLongLong(rv_lateness_bounds_ns[i]);
        if (!bound || PyTuple_SetItem(bounds, i, bound))
            Py_CLEAR(bounds);
    }
    int failed = !bounds || PyModule_AddObjectRef(module, "LATENESS_BOUNDS_NS", bounds);
    Py_XDECREF(bounds);
    return failed;
}

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&native_module);
    PyObject *type = PyType_FromSpec(&rv_vcpu_spec);
    rv_engine_error = import_error("EngineError");
    rv_state_error = import_error("CorruptStateError");
    if (module && type && rv_engine_error && rv_state_error &&
        !rv_pages_add(module) && !add_bounds(module) && !PyModule_AddObjectRef(module, "Vcpu", type) &&
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
