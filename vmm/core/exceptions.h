/* System calls that were made outside the engine, delivered while it rests. */
#ifndef RV_EXCEPTIONS_H
#define RV_EXCEPTIONS_H

struct rv_vcpu;

/* RIP is behind a SYSCALL in 64-bit user code: enter the guest's kernel as it says. */
void rv_syscall_at_rest(struct rv_vcpu *v);
/* The same for SYSENTER, wherever RIP is. */
void rv_sysenter_at_rest(struct rv_vcpu *v);

#endif
