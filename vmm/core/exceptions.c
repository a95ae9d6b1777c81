/*
 * Exceptions, system calls and interrupts, delivered without leaving C.
 *
 * Unicorn hands every exception to a hook and delivers none; the engine underneath still knows
 * how (Intel SDM 3A 6: gates, privilege changes, IST, error codes), so the hooks call it.
 */
#include "exceptions.h"

#include "direct.h"
#include "flags.h"
#include "vcpu.h"

#define VECTOR_NMI 2
#define VECTOR_BP 3
#define VECTOR_OF 4
#define VECTOR_UD 6
#define VECTOR_NP 11
#define VECTOR_GP 13
#define ERROR_IDT 2u
#define EFER_SCE 1u
#define OPCODE_INT3 0xccu
#define OPCODE_INTO 0xceu
#define MAX_INSTRUCTION_BYTES 15

enum { RCX = 1, RSP = 4, R11 = 11 };

static uint64_t *gpr(struct rv_vcpu *v, int index)
{
    return &RV_AT(v->env, ENV_REGS, uint64_t) + index;
}

/* An error code about an IDT entry names its index (Intel SDM 3A 6.13). The engine takes the
 * index of an eight-byte entry where long mode has sixteen. */
static void correct_error_code(struct rv_vcpu *v)
{
    uint32_t *error = &RV_AT(v->env, ENV_ERROR_CODE, uint32_t);
    if (*error & ERROR_IDT && RV_AT(v->env, ENV_HFLAGS, uint32_t) & HF_LMA)
        *error = (*error >> 1 & ~7u) | (*error & 7);
}

/* The engine has moved RIP behind the INT that is to be delivered, but a gate that refuses it
 * faults at the INT. Prefixes, which mean nothing there, are not counted. */
static void step_back(struct rv_vcpu *v, uint32_t vector)
{
    uint64_t *rip = &RV_AT(v->env, ENV_EIP, uint64_t);
    uint64_t last = rv_linear_rip(v) - 1;
    bool short_form = (vector == VECTOR_BP && rv_engine.fetch_byte(v->env, last) == OPCODE_INT3) ||
                      (vector == VECTOR_OF && rv_engine.fetch_byte(v->env, last) == OPCODE_INTO);
    *rip -= short_form ? 1 : 2;
}

static inline void leave_ring3(struct rv_vcpu *v)
{
    if (v->direct)
        rv_direct_ring0(v);
}

static void on_exception(uc_engine *uc, uint32_t vector, void *opaque)
{
    struct rv_vcpu *v = opaque;
    (void)uc;
    if (RV_AT(v->env, ENV_EXCEPTION_IS_INT, int32_t))
        step_back(v, vector);
    leave_ring3(v);
    rv_census_count(&v->census, RV_EXCEPTION, vector, rv_linear_rip(v));
    if (vector == VECTOR_NP || vector == VECTOR_GP)
        correct_error_code(v);
    rv_engine.do_interrupt(v->cpu);
}

static void deliver(struct rv_vcpu *v, int vector, uint32_t error, bool soft)
{
    RV_AT(v->cpu, CPU_EXCEPTION_INDEX, int32_t) = vector;
    RV_AT(v->env, ENV_ERROR_CODE, uint32_t) = error;
    RV_AT(v->env, ENV_EXCEPTION_IS_INT, int32_t) = soft;
    RV_AT(v->env, ENV_EXCEPTION_NEXT_EIP, uint64_t) = RV_AT(v->env, ENV_EIP, uint64_t);
    leave_ring3(v);
    rv_engine.do_interrupt(v->cpu);
}

static bool on_invalid_opcode(uc_engine *uc, void *opaque)
{
    struct rv_vcpu *v = opaque;
    (void)uc;
    rv_census_count(&v->census, RV_EXCEPTION, VECTOR_UD, rv_linear_rip(v));
    if (RV_AT(v->env, ENV_EXCEPTION_IS_INT, int32_t)) { /* INT 6, which a gate may refuse */
        leave_ring3(v);
        rv_engine.do_interrupt(v->cpu);
    } else {
        deliver(v, VECTOR_UD, 0, false);
    }
    return true;
}

/* The bytes from RIP to the end of SYSENTER, prefixes included. The engine adds as many to RIP when
 * the hook returns. */
static uint64_t sysenter_bytes(struct rv_vcpu *v)
{
    uint64_t at = rv_linear_rip(v);
    for (uint64_t i = 0; i < MAX_INSTRUCTION_BYTES - 1; i++)
        if (rv_engine.fetch_byte(v->env, at + i) == 0x0f &&
            rv_engine.fetch_byte(v->env, at + i + 1) == 0x34)
            return i + 2;
    return 2;
}

typedef void write_rflags_fn(void *env, uint64_t rflags);

/* SYSCALL (AMD64 APM 3; Intel SDM 2B) with the next instruction at `next_rip`. As on AMD it also
 * works outside 64-bit code. */
static void enter_by_syscall(struct rv_vcpu *v, uint64_t next_rip, write_rflags_fn *write_rflags)
{
    void *env = v->env;
    uint64_t star = RV_AT(env, ENV_STAR, uint64_t);
    uint32_t selector = star >> 32 & 0xffff;
    uint64_t rflags = rv_read_rflags(env) & ~(uint64_t)RFLAGS_RF;
    bool long_mode = RV_AT(env, ENV_HFLAGS, uint32_t) & HF_LMA;
    bool code64 = RV_AT(env, ENV_HFLAGS, uint32_t) & HF_CS64;

    leave_ring3(v);
    rv_census_count(&v->census, RV_SYSCALL, 0, rv_linear_rip(v));
    if (long_mode) {
        *gpr(v, RCX) = next_rip;
        *gpr(v, R11) = rflags;
        write_rflags(env, rflags & ~RV_AT(env, ENV_FMASK, uint64_t));
        RV_AT(env, ENV_EIP, uint64_t) = RV_AT(env, code64 ? ENV_LSTAR : ENV_CSTAR, uint64_t);
    } else {
        *gpr(v, RCX) = (uint32_t)next_rip;
        write_rflags(env, rflags & ~(uint64_t)(RFLAGS_IF | RFLAGS_VM));
        RV_AT(env, ENV_EIP, uint64_t) = (uint32_t)star;
    }
    rv_load_flat(env, SEG_CS, selector & 0xfffc, DESC_CODE | (long_mode ? DESC_L : DESC_B));
    rv_load_flat(env, SEG_SS, (selector + 8) & 0xfffc, DESC_B);
    rv_update_hflags(env);
}

/* In place of the engine's helper, which would look for hooks and work RIP out for each call. RIP
 * is that of the instruction, of `bytes` bytes. */
void rv_syscall(void *env, int bytes)
{
    struct rv_vcpu *v = rv_current;
    if (!v) {
        rv_engine.original.syscall(env, bytes);
        return;
    }
    if (!(RV_AT(env, ENV_EFER, uint64_t) & EFER_SCE))
        rv_engine.raise_exception(env, VECTOR_UD, 0);
    enter_by_syscall(v, RV_AT(env, ENV_EIP, uint64_t) + (uint64_t)bytes, rv_write_rflags);
}

void rv_syscall_at_rest(struct rv_vcpu *v)
{
    uint64_t *rip = &RV_AT(v->env, ENV_EIP, uint64_t);
    if (RV_AT(v->env, ENV_EFER, uint64_t) & EFER_SCE)
        enter_by_syscall(v, *rip, rv_write_rflags_at_rest);
    else
        *rip -= 2; /* the engine raises #UD there */
}

/* SYSENTER (Intel SDM 2B). */
static void enter_by_sysenter(struct rv_vcpu *v, write_rflags_fn *write_rflags)
{
    void *env = v->env;
    uint32_t selector = RV_AT(env, ENV_SYSENTER_CS, uint32_t) & 0xfffc;
    bool long_mode = RV_AT(env, ENV_HFLAGS, uint32_t) & HF_LMA;

    leave_ring3(v);
    rv_census_count(&v->census, RV_SYSENTER, 0, rv_linear_rip(v));
    write_rflags(env, rv_read_rflags(env) & ~(uint64_t)(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF));
    rv_load_flat(env, SEG_CS, selector, DESC_CODE | (long_mode ? DESC_L : DESC_B));
    rv_load_flat(env, SEG_SS, selector + 8, DESC_B);
    rv_update_hflags(env);
    *gpr(v, RSP) = RV_AT(env, ENV_SYSENTER_ESP, uint64_t);
    RV_AT(env, ENV_EIP, uint64_t) = RV_AT(env, ENV_SYSENTER_EIP, uint64_t);
}

static void on_sysenter(uc_engine *uc, void *opaque)
{
    struct rv_vcpu *v = opaque;
    (void)uc;
    if (!(RV_AT(v->env, ENV_SYSENTER_CS, uint32_t) & 0xfffc))
        rv_engine.raise_exception(v->env, VECTOR_GP, 0);
    uint64_t bytes = sysenter_bytes(v);
    enter_by_sysenter(v, rv_write_rflags);
    RV_AT(v->env, ENV_EIP, uint64_t) -= bytes;
}

void rv_sysenter_at_rest(struct rv_vcpu *v)
{
    if (RV_AT(v->env, ENV_SYSENTER_CS, uint32_t) & 0xfffc) {
        enter_by_sysenter(v, rv_write_rflags_at_rest);
    } else {
        v->pending_vector = VECTOR_GP;
        v->pending_error = 0;
        v->pending_soft = false;
    }
}

static void clear_request(struct rv_vcpu *v)
{
    uint32_t *request = &RV_AT(v->cpu, CPU_INTERRUPT_REQUEST, uint32_t);
    __atomic_and_fetch(request, ~CPU_INTERRUPT_HARD, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&v->stop, __ATOMIC_SEQ_CST) || __atomic_load_n(&v->intr, __ATOMIC_SEQ_CST) ||
        __atomic_load_n(&v->nmi, __ATOMIC_SEQ_CST))
        __atomic_or_fetch(request, CPU_INTERRUPT_HARD, __ATOMIC_SEQ_CST);
}

/* Called by the engine between two blocks while an interrupt is requested. True when RIP has
 * moved; the request stays up while something waits for the guest to become interruptible. */
static bool exec_interrupt(void *cpu, int request)
{
    struct rv_vcpu *v = rv_current;
    (void)cpu;
    (void)request;
    if (v->pending_vector != RV_NO_VECTOR) {
        int vector = v->pending_vector;
        v->pending_vector = RV_NO_VECTOR;
        deliver(v, vector, v->pending_error, v->pending_soft);
        return true;
    }
    if (__atomic_load_n(&v->stop, __ATOMIC_SEQ_CST)) {
        rv_census_count(&v->census, RV_STOP, v->stop, rv_linear_rip(v));
        rv_engine.uc_emu_stop(v->uc);
        return false;
    }
    bool shadow = RV_AT(v->env, ENV_HFLAGS, uint32_t) & HF_INHIBIT_IRQ;
    uint32_t *hflags2 = &RV_AT(v->env, ENV_HFLAGS2, uint32_t);
    if (__atomic_load_n(&v->nmi, __ATOMIC_SEQ_CST) && !shadow && !(*hflags2 & HF2_NMI)) {
        __atomic_store_n(&v->nmi, 0, __ATOMIC_SEQ_CST);
        *hflags2 |= HF2_NMI;
        leave_ring3(v);
        rv_census_count(&v->census, RV_INTERRUPT, VECTOR_NMI, rv_linear_rip(v));
        rv_engine.do_hardirq(v->env, VECTOR_NMI, 1);
        return true;
    }
    if (!__atomic_load_n(&v->intr, __ATOMIC_SEQ_CST)) {
        if (v->direct && rv_direct_stays_long(v))
            rv_engine.uc_emu_stop(v->uc);
        else
            clear_request(v);
        return false;
    }
    if (shadow || !(RV_AT(v->env, ENV_EFLAGS, uint64_t) & RFLAGS_IF))
        return false;
    rv_vcpu_note_taken(v);
    int vector = rv_tick_acknowledge(v);
    if (vector < 0)
        vector = v->board.acknowledge(v->board.opaque);
    if (vector < 0)
        return false;
    if (v->direct)
        rv_direct_ticked(v);
    leave_ring3(v);
    rv_census_count(&v->census, RV_INTERRUPT, (uint64_t)vector, rv_linear_rip(v));
    rv_engine.do_hardirq(v->env, vector, 1);
    return true;
}

void rv_reset_request(void *uc)
{
    if (rv_current)
        rv_current->triple_fault = true;
    rv_engine.original.reset_request(uc);
}

int rv_exceptions_attach(struct rv_vcpu *v)
{
    uc_hook hook;
    RV_AT(RV_AT(v->cpu, CPU_CLASS, char *), CLASS_EXEC_INTERRUPT, bool (*)(void *, int)) =
        exec_interrupt;
    uc_err err = rv_engine.uc_hook_add(v->uc, &hook, UC_HOOK_INTR, (void *)on_exception, v, 1, 0);
    if (!err)
        err = rv_engine.uc_hook_add(v->uc, &hook, UC_HOOK_INSN_INVALID, (void *)on_invalid_opcode,
                                    v, 1, 0);
    if (!err)
        err = rv_engine.uc_hook_add(v->uc, &hook, UC_HOOK_INSN, (void *)on_sysenter, v, 1, 0,
                                    UC_X86_INS_SYSENTER);
    return err;
}
