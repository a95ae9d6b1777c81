/* The world switch: the registers of user code, from the engine to the stub and back. */
#ifndef RV_WORLD_H
#define RV_WORLD_H

#include <stdbool.h>

#include "stub.h"

struct rv_vcpu;

/* Whether the vCPU stands in user code of a kind that the stub can run: 64-bit, with the flat
 * segments that Linux has there too, and nothing that must trap and would not. */
bool rv_world_native(const struct rv_vcpu *v);

/* Registers and floating point, to the stub's page. */
void rv_world_leave(struct rv_vcpu *v, struct rv_stub_registers *r);

/* And back. The stub's word is hostile: nothing in it brings the vCPU out of ring 3. */
void rv_world_enter(struct rv_vcpu *v, const struct rv_stub_registers *r,
                    const struct rv_stub_trap *trap);

#endif
