/* What a machine asks its vCPU about: RAM written, code translated, exits counted. */
#include <stdlib.h>

#include "codepages.h"
#include "direct.h"
#include "dirtylog.h"
#include "vcpu_type.h"

PyObject *vcpu_host_wrote(Vcpu *self, PyObject *args)
{
    unsigned long long offset, count;
    struct rv_vcpu *v = rv_open_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "KK", &offset, &count))
        return NULL;
    if (offset > v->ram_bytes || count > v->ram_bytes - offset) {
        PyErr_SetString(PyExc_ValueError, "outside RAM");
        return NULL;
    }
    rv_codepages_invalidate(v, offset, count);
    rv_dirtylog_mark(v, offset, count);
    for (uint64_t at = offset & ~(uint64_t)0xfff; v->direct && at < offset + count; at += 0x1000)
        rv_watch_wrote(v, at);
    Py_RETURN_NONE;
}

PyObject *vcpu_code_bytes(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    return v ? PyLong_FromSize_t(rv_vcpu_code_bytes(v)) : NULL;
}

PyObject *vcpu_trim(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_vcpu_trim(v);
    Py_RETURN_NONE;
}

PyObject *vcpu_start_dirty_log(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    if (rv_dirtylog_start(v))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject *vcpu_stop_dirty_log(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_dirtylog_stop(v);
    Py_RETURN_NONE;
}

/* harvest_dirty(most_open=0) */
PyObject *vcpu_harvest_dirty(Vcpu *self, PyObject *args)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    Py_ssize_t most_open = 0;
    if (!v || !PyArg_ParseTuple(args, "|n", &most_open))
        return NULL;
    if (!v->dirty_pages) {
        PyErr_SetString(rv_engine_error, "the dirty log is off: start it first");
        return NULL;
    }
    size_t bytes = rv_dirtylog_bytes(v);
    uint8_t *bitmap = malloc(bytes);
    if (!bitmap)
        return PyErr_NoMemory();
    rv_dirtylog_harvest(v, bitmap, most_open > 0 ? (size_t)most_open : 0);
    PyObject *result = PyBytes_FromStringAndSize((const char *)bitmap, (Py_ssize_t)bytes);
    free(bitmap);
    return result;
}

/* (counts, unplaced, [(kind, detail, rip, count)], [(kind, detail, rip)]): the machine's thread,
 * or while not running; another thread would see a site half written. */
PyObject *vcpu_census(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
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
PyObject *vcpu_exit_counts(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
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

/* start_direct(ram_fd, tsc_hz): None, or why not. */
PyObject *vcpu_start_direct(Vcpu *self, PyObject *args)
{
    int ram_fd;
    unsigned long long tsc_hz;
    char why[160] = "";
    struct rv_vcpu *v = rv_idle_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "iK", &ram_fd, &tsc_hz))
        return NULL;
    if (v->direct || !rv_direct_start(v, ram_fd, tsc_hz, why, sizeof(why)))
        Py_RETURN_NONE;
    return PyUnicode_FromString(why);
}

/* choose_at_random(seed): the world by a coin, for tests; 0 ends that. */
PyObject *vcpu_choose_at_random(Vcpu *self, PyObject *seed)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    unsigned long value = v ? PyLong_AsUnsignedLong(seed) : 0;
    if (!v || PyErr_Occurred())
        return NULL;
    if (v->direct)
        v->direct->coin = (uint32_t)value;
    Py_RETURN_NONE;
}

/* (native ns, switching ns, stays, traps) of direct execution; None where there is none. Any
 * thread: each is one aligned word that only ever grows. */
PyObject *vcpu_direct_counts(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    const struct rv_direct *d = v->direct;
    if (!d)
        Py_RETURN_NONE;
    uint64_t native = __atomic_load_n(&d->native_ticks, __ATOMIC_RELAXED);
    uint64_t switching = __atomic_load_n(&d->switching_ticks, __ATOMIC_RELAXED);
    return Py_BuildValue("KKKK", native * 1000 / d->ticks_a_us,
                         switching * 1000 / d->ticks_a_us,
                         __atomic_load_n(&d->stays, __ATOMIC_RELAXED),
                         __atomic_load_n(&d->traps, __ATOMIC_RELAXED));
}

static PyObject *lateness(const struct rv_lateness *l)
{
    PyObject *counts = PyTuple_New(RV_LATENESS_BUCKETS);
    for (int i = 0; counts && i < RV_LATENESS_BUCKETS; i++) {
        uint64_t count = __atomic_load_n(&l->counts[i], __ATOMIC_RELAXED);
        PyObject *n = PyLong_FromUnsignedLongLong(count);
        if (!n || PyTuple_SetItem(counts, i, n))
            Py_CLEAR(counts);
    }
    if (!counts)
        return NULL;
    return Py_BuildValue("NK", counts, __atomic_load_n(&l->total_ns, __ATOMIC_RELAXED));
}

/* (counts by bucket, ns together) that interrupts waited for the guest. Any thread. */
PyObject *vcpu_interrupt_lateness(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
    (void)unused;
    return v ? lateness(&v->intr_late) : NULL;
}

/* The same, of the timer that was lent. */
PyObject *vcpu_tick_lateness(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
    (void)unused;
    return v ? lateness(&v->tick.late) : NULL;
}

/* lend_tick(vector, deadline, tsc_hz) */
PyObject *vcpu_lend_tick(Vcpu *self, PyObject *args)
{
    int vector;
    unsigned long long deadline, tsc_hz;
    struct rv_vcpu *v = rv_open_vcpu(self);
    if (!v || !PyArg_ParseTuple(args, "iKK", &vector, &deadline, &tsc_hz))
        return NULL;
    if (vector < 16 || vector > 255 || !tsc_hz) {
        PyErr_SetString(PyExc_ValueError, "no vector of an interrupt, or no frequency");
        return NULL;
    }
    rv_tick_lend(v, vector, deadline, tsc_hz);
    Py_RETURN_NONE;
}

/* (requested, in service, deadline), or None if it was not lent. */
PyObject *vcpu_take_tick_back(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_open_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    struct rv_tick was = rv_tick_take_back(v);
    if (!was.lent)
        Py_RETURN_NONE;
    return Py_BuildValue("NNK", PyBool_FromLong(was.requested), PyBool_FromLong(was.in_service),
                         was.deadline);
}

PyObject *vcpu_clear_census(Vcpu *self, PyObject *unused)
{
    struct rv_vcpu *v = rv_idle_vcpu(self);
    (void)unused;
    if (!v)
        return NULL;
    rv_census_clear(&v->census);
    Py_RETURN_NONE;
}
