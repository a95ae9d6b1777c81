/* The Python type rayvisor.vmm.core._native.Vcpu. _native.pyi says what each method does. */
#ifndef RV_VCPU_TYPE_H
#define RV_VCPU_TYPE_H

#include "ports.h"
#include "vcpu.h"

typedef struct {
    PyObject_HEAD
    struct rv_vcpu *vcpu;
    struct rv_ports *ports;
    Py_buffer ram;
    bool has_ram, running;
} Vcpu;

/* rayvisor.vmm.errors.EngineError and CorruptStateError; set when the module is made. */
extern PyObject *rv_engine_error, *rv_state_error;

extern PyType_Spec rv_vcpu_spec;

/* The vCPU if it is open; or if it is open and not in run(). NULL with EngineError set. */
struct rv_vcpu *rv_open_vcpu(Vcpu *self);
struct rv_vcpu *rv_idle_vcpu(Vcpu *self);

/* vcpu_watch.c: RAM written, code translated, exits counted */
PyObject *vcpu_host_wrote(Vcpu *self, PyObject *args);
PyObject *vcpu_code_bytes(Vcpu *self, PyObject *unused);
PyObject *vcpu_trim(Vcpu *self, PyObject *unused);
PyObject *vcpu_start_dirty_log(Vcpu *self, PyObject *unused);
PyObject *vcpu_stop_dirty_log(Vcpu *self, PyObject *unused);
PyObject *vcpu_harvest_dirty(Vcpu *self, PyObject *args);
PyObject *vcpu_census(Vcpu *self, PyObject *unused);
PyObject *vcpu_exit_counts(Vcpu *self, PyObject *unused);
PyObject *vcpu_start_direct(Vcpu *self, PyObject *args);
PyObject *vcpu_choose_at_random(Vcpu *self, PyObject *seed);
PyObject *vcpu_direct_counts(Vcpu *self, PyObject *unused);
PyObject *vcpu_interrupt_lateness(Vcpu *self, PyObject *unused);
PyObject *vcpu_tick_lateness(Vcpu *self, PyObject *unused);
PyObject *vcpu_lend_tick(Vcpu *self, PyObject *args);
PyObject *vcpu_take_tick_back(Vcpu *self, PyObject *unused);
PyObject *vcpu_clear_census(Vcpu *self, PyObject *unused);

#endif
