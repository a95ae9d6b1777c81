#define _GNU_SOURCE
#include "proof.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "flags.h"
#include "jumpcache.h"

#define CODE 0x1000u
#define DATA 0x2000u
#define RAM_BYTES 0x4000u
#define LOOPS 200000u
#define PROOF_CODE_BYTES (1u << 20)

struct probe {
    uc_engine *uc;
    void *cpu, *env;
    uint8_t *ram;
    char *why;
    size_t why_bytes;
    bool (*fill)(void *, uint64_t, int, int, int, bool, uintptr_t);
    unsigned fills, requests, interrupts;
    uint64_t after_int;
    int finished;
};

static struct probe *probe;

static int fail(struct probe *p, const char *what)
{
    snprintf(p->why, p->why_bytes,
             "this build of Unicorn %d.%d.%d keeps %s elsewhere: use the wheel from PyPI",
             RV_UNICORN_MAJOR, RV_UNICORN_MINOR, RV_UNICORN_PATCH, what);
    return -1;
}

/* A wrong layout yields wild pointers: ask the kernel whether they can be read. */
static bool readable(const void *at, size_t bytes)
{
    int pipe_fds[2];
    if (pipe(pipe_fds))
        return false;
    bool ok = write(pipe_fds[1], at, 1) == 1 && write(pipe_fds[1], (const char *)at + bytes - 1, 1) == 1;
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return ok;
}

static int prove_structures(struct probe *p)
{
    p->cpu = rv_cpu_of(p->uc);
    if (!readable(p->cpu, CPU_CLASS + 8) || RV_AT(p->cpu, CPU_UC, uc_engine *) != p->uc)
        return fail(p, "its CPU");
    void *class = RV_AT(p->cpu, CPU_CLASS, void *);
    if (!readable(class, CLASS_EXEC_INTERRUPT + 8) ||
        RV_AT(class, CLASS_DO_INTERRUPT, __typeof__(rv_engine.do_interrupt)) !=
            rv_engine.do_interrupt)
        return fail(p, "its CPU class");
    p->env = RV_AT(p->cpu, CPU_ENV, void *);
    if ((char *)p->env != (char *)p->cpu + CPU_ENV_AT ||
        RV_AT(p->cpu, CPU_ICOUNT_DECR, char *) != (char *)p->cpu + CPU_REQUEST ||
        RV_AT(p->env, ENV_ENGINE, uc_engine *) != p->uc)
        return fail(p, "its registers");
    if (!readable((char *)p->env + ENV_TLB, ENV_V_TPR + 1 - ENV_TLB))
        return fail(p, "its registers");
    return 0;
}

static int prove_register(struct probe *p, int reg, int offset, uint64_t pattern, const char *name)
{
    if (rv_engine.uc_reg_write(p->uc, reg, &pattern) || RV_AT(p->env, offset, uint64_t) != pattern)
        return fail(p, name);
    return 0;
}

static int prove_msr(struct probe *p, uint32_t index, int offset, uint64_t pattern, const char *name)
{
    uc_x86_msr msr = {.rid = index, .value = pattern};
    if (rv_engine.uc_reg_write(p->uc, UC_X86_REG_MSR, &msr) ||
        memcmp((char *)p->env + offset, &pattern, pattern >> 32 ? 8 : 4))
        return fail(p, name);
    return 0;
}

static int prove_table(struct probe *p, int reg, int offset, const char *name)
{
    uc_x86_mmr table = {.selector = 0x28, .base = 0x1234567890, .limit = 0x4321, .flags = 0x8b00};
    const struct rv_uc_segment *s = &RV_AT(p->env, offset, struct rv_uc_segment);
    if (rv_engine.uc_reg_write(p->uc, reg, &table) || s->base != table.base ||
        s->limit != table.limit)
        return fail(p, name);
    return 0;
}

static int prove_registers(struct probe *p)
{
    static const int gprs[16] = {UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX,
                                 UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI,
                                 UC_X86_REG_R8,  UC_X86_REG_R9,  UC_X86_REG_R10, UC_X86_REG_R11,
                                 UC_X86_REG_R12, UC_X86_REG_R13, UC_X86_REG_R14, UC_X86_REG_R15};
    static const struct {
        uint32_t index;
        int offset;
        uint64_t pattern;
    } msrs[] = {
        {0xc0000080, ENV_EFER, 0xd01},
        {0xc0000081, ENV_STAR, 0x1122334455667788},
        {0xc0000082, ENV_LSTAR, 0x2122334455667788},
        {0xc0000083, ENV_CSTAR, 0x3122334455667788},
        {0xc0000084, ENV_FMASK, 0x4122334455667788},
        {0xc0000102, ENV_KERNEL_GS_BASE, 0x5122334455667788},
        {0xc0000103, ENV_TSC_AUX, 0x61223344},
        {0x174, ENV_SYSENTER_CS, 0x1230},
        {0x175, ENV_SYSENTER_ESP, 0x7122334455667788},
        {0x176, ENV_SYSENTER_EIP, 0x8122334455667788},
        {0x277, ENV_PAT, 0x0007010600070106},
        {0x1a0, ENV_MISC_ENABLE, 0x40001},
    };
    int bad = 0;
    for (int i = 0; i < 16; i++)
        bad |= prove_register(p, gprs[i], ENV_REGS + 8 * i, 0x0102030405060708u * (i + 1u), "a GPR");
    bad |= prove_register(p, UC_X86_REG_RIP, ENV_EIP, CODE, "RIP");
    bad |= prove_register(p, UC_X86_REG_CR2, ENV_CR + 2 * 8, 0x123456, "CR2");
    bad |= prove_register(p, UC_X86_REG_DR2, ENV_DR + 2 * 8, 0x654321, "DR2");
    bad |= prove_register(p, UC_X86_REG_FS_BASE, ENV_SEGS + SEG_FS * 24 + 8, 0xabcdef0123, "FS");
    bad |= prove_table(p, UC_X86_REG_GDTR, ENV_GDT, "GDTR");
    bad |= prove_table(p, UC_X86_REG_IDTR, ENV_IDT, "IDTR");
    bad |= prove_table(p, UC_X86_REG_LDTR, ENV_LDT, "LDTR");
    bad |= prove_table(p, UC_X86_REG_TR, ENV_TR, "TR");
    for (size_t i = 0; i < sizeof(msrs) / sizeof(msrs[0]); i++)
        bad |= prove_msr(p, msrs[i].index, msrs[i].offset, msrs[i].pattern, "an MSR");
    return bad;
}

static int prove_fpu(struct probe *p)
{
    uint8_t xmm[16], real[10];
    uint32_t mxcsr = 0x1fa0;
    uint16_t status = 5u << 11 | 0x41, control = 0x27f;
    memset(xmm, 0x5a, sizeof(xmm));
    memset(real, 0xa5, sizeof(real));
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_XMM3, xmm);
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_MXCSR, &mxcsr);
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_FP4, real);
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_FPSW, &status);
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_FPCW, &control);
    if (memcmp((char *)p->env + ENV_XMM + 3 * ENV_XMM_BYTES, xmm, sizeof(xmm)) ||
        memcmp((char *)p->env + ENV_FPREGS + 4 * ENV_FPREG_BYTES, real, sizeof(real)) ||
        RV_AT(p->env, ENV_MXCSR, uint32_t) != mxcsr || RV_AT(p->env, ENV_FPUC, uint16_t) != control ||
        RV_AT(p->env, ENV_FPSTT, uint32_t) != 5)
        return fail(p, "the floating-point registers");
    return 0;
}

static void on_interrupt(uc_engine *uc, uint32_t vector, void *opaque)
{
    struct probe *p = opaque;
    (void)uc;
    if (vector == 0x21 && RV_AT(p->env, ENV_EXCEPTION_IS_INT, int32_t) == 1 &&
        RV_AT(p->cpu, CPU_EXCEPTION_INDEX, int32_t) == 0x21) {
        p->interrupts++;
        p->after_int = RV_AT(p->env, ENV_EXCEPTION_NEXT_EIP, uint64_t);
    }
}

static bool on_request(void *cpu, int request)
{
    (void)request;
    probe->requests++;
    __atomic_and_fetch(&RV_AT(cpu, CPU_INTERRUPT_REQUEST, uint32_t), ~CPU_INTERRUPT_HARD,
                       __ATOMIC_SEQ_CST);
    return false;
}

static bool on_fill(void *cpu, uint64_t address, int size, int access, int mode, bool probe_only,
                    uintptr_t retaddr)
{
    probe->fills++;
    return probe->fill(cpu, address, size, access, mode, probe_only, retaddr);
}

static void *disturb(void *opaque)
{
    struct probe *p = opaque;
    while (!__atomic_load_n(&p->finished, __ATOMIC_SEQ_CST)) {
        __atomic_or_fetch(&RV_AT(p->cpu, CPU_INTERRUPT_REQUEST, uint32_t), CPU_INTERRUPT_HARD,
                          __ATOMIC_SEQ_CST);
        __atomic_store_n(RV_AT(p->cpu, CPU_ICOUNT_DECR, uint16_t *) + 1, 0xffff, __ATOMIC_SEQ_CST);
        usleep(20);
    }
    return NULL;
}

static bool tlb_knows_data_page(const struct probe *p)
{
    for (int mode = 0; mode < TLB_MODES; mode++) {
        const struct rv_uc_tlb_fast *fast =
            (void *)((char *)p->env + ENV_TLB + TLB_FAST + mode * (int)sizeof(*fast));
        uint64_t index = DATA >> 12 & fast->mask / sizeof(*fast->table);
        if (!readable(fast->table, sizeof(*fast->table)))
            return false;
        const struct rv_uc_tlb_entry *e = &fast->table[index];
        if (e->addr_read == DATA && e->paddr == DATA &&
            DATA + e->addend == (uint64_t)(uintptr_t)(p->ram + DATA))
            return true;
    }
    return false;
}

/* The block that began at CODE, in the engine's table of jumps. */
static bool knows_block(const struct probe *p, const char *buffer, size_t bytes)
{
    const char *block = (&RV_AT(p->cpu, CPU_JUMPS, char *))[rv_jump_index(CODE)];
    return block > buffer && block < buffer + bytes - BLOCK_SECOND_PAGE - 8 &&
           RV_AT(block, BLOCK_PC, uint64_t) == CODE &&
           RV_AT(block, BLOCK_CODE, char *) > block &&
           RV_AT(block, BLOCK_CODE, char *) < buffer + bytes &&
           RV_AT(block, BLOCK_SECOND_PAGE, int64_t) == -1 &&
           !(RV_AT(block, BLOCK_CFLAGS, uint32_t) & BLOCK_INVALID);
}

static int prove_execution(struct probe *p)
{
    /* 1: inc dword [rdi]; dec ecx; jnz 1b; std; xor ebx,ebx; int 0x21; hlt */
    static const uint8_t code[] = {0xff, 0x07, 0xff, 0xc9, 0x75, 0xfa, 0xfd,
                                   0x31, 0xdb, 0xcd, 0x21, 0xf4};
    uint64_t data = DATA, loops = LOOPS;
    uint32_t counted = 0;
    pthread_t thread;
    void *class = RV_AT(p->cpu, CPU_CLASS, void *);

    memcpy(p->ram + CODE, code, sizeof(code));
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_RDI, &data);
    rv_engine.uc_reg_write(p->uc, UC_X86_REG_RCX, &loops);
    p->fill = RV_AT(class, CLASS_TLB_FILL, __typeof__(p->fill));
    RV_AT(class, CLASS_TLB_FILL, __typeof__(p->fill)) = on_fill;
    RV_AT(class, CLASS_EXEC_INTERRUPT, bool (*)(void *, int)) = on_request;
    RV_AT(p->uc, UC_NO_EXIT_REQUEST, uint8_t) = 1;
    /* One request for certain, however late the thread that makes the others. */
    RV_AT(p->cpu, CPU_INTERRUPT_REQUEST, uint32_t) |= CPU_INTERRUPT_HARD;
    if (pthread_create(&thread, NULL, disturb, p))
        return fail(p, "no thread: this machine is out of them; it");
    uc_err err = rv_engine.uc_emu_start(p->uc, CODE, 0, 0, 0);
    __atomic_store_n(&p->finished, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    memcpy(&counted, p->ram + DATA, sizeof(counted));
    if (err || RV_AT(p->cpu, CPU_HALTED, uint32_t) != 1)
        return fail(p, "HLT");
    if (p->interrupts != 1 || p->after_int != CODE + 11)
        return fail(p, "the pending exception");
    if (!p->requests || counted != LOOPS)
        return fail(p, "interrupt requests");
    if (!p->fills || !tlb_knows_data_page(p))
        return fail(p, "the TLB");
    void *tcg = RV_AT(p->uc, UC_TCG, void *);
    if (!readable(tcg, TCG_CODE_NEXT + 8))
        return fail(p, "its code buffer");
    int32_t fixed = RV_AT(tcg, TCG_GLOBALS, int32_t), used = RV_AT(tcg, TCG_TEMPORARIES, int32_t);
    if (fixed <= 0 || used < fixed || used > TCG_MOST_TEMPORARIES)
        return fail(p, "its count of temporaries");
    char *buffer = RV_AT(tcg, TCG_CODE_BUFFER, char *), *next = RV_AT(tcg, TCG_CODE_NEXT, char *);
    size_t bytes = RV_AT(tcg, TCG_CODE_BUFFER_BYTES, size_t);
    if (next <= buffer || next >= buffer + bytes || bytes > PROOF_CODE_BYTES ||
        !readable(buffer, bytes))
        return fail(p, "its code buffer");
    if (!knows_block(p, buffer, bytes))
        return fail(p, "translated blocks");
    rv_engine.tb_invalidate(p->uc, 0, RAM_BYTES);
    if (knows_block(p, buffer, bytes))
        return fail(p, "the end of translated blocks");
    if (RV_AT(p->env, ENV_DF, int32_t) != -1 ||
        (rv_read_rflags(p->env) & (RFLAGS_CONDITIONS | RFLAGS_DF)) != (0x44 | RFLAGS_DF))
        return fail(p, "RFLAGS");
    return 0;
}

static int prove_time_and_modes(struct probe *p)
{
    static const uint8_t code[] = {0x0f, 0x31, 0xf4}; /* rdtsc; hlt */
    uint64_t high = 0;
    memcpy(p->ram + CODE, code, sizeof(code));
    rv_engine.tb_flush(p->cpu);
    RV_AT(p->env, ENV_TSC_OFFSET, uint64_t) = (uint64_t)0x40 << 56;
    if (rv_engine.uc_emu_start(p->uc, CODE, 0, 0, 0))
        return fail(p, "RDTSC");
    rv_engine.uc_reg_read(p->uc, UC_X86_REG_RDX, &high);
    if (high >> 24 != 0x40)
        return fail(p, "the TSC offset");
    rv_engine.cpu_reset(p->cpu);
    const struct rv_uc_segment *cs =
        &RV_AT(p->env, ENV_SEGS + SEG_CS * 24, struct rv_uc_segment);
    uint32_t hflags = RV_AT(p->env, ENV_HFLAGS, uint32_t);
    if (cs->selector != 0xf000 || cs->base != 0xffff0000 || cs->limit != 0xffff ||
        RV_AT(p->env, ENV_EIP, uint64_t) != 0xfff0 || hflags & (HF_PE | HF_LMA) ||
        !(hflags & HF_ADDSEG) || !(RV_AT(p->env, ENV_HFLAGS2, uint32_t) & HF2_GIF))
        return fail(p, "the reset state");
    return 0;
}

int rv_prove_layout(char *why, size_t why_bytes)
{
    struct probe p = {.why = why, .why_bytes = why_bytes};
    int bad = -1;
    p.ram = aligned_alloc(0x1000, RAM_BYTES);
    if (!p.ram || rv_engine.uc_open(UC_ARCH_X86, UC_MODE_64, &p.uc)) {
        snprintf(why, why_bytes, "Unicorn cannot be started: out of memory");
        free(p.ram);
        return -1;
    }
    memset(p.ram, 0, RAM_BYTES);
    probe = &p;
    uc_hook hook;
    rv_engine.uc_ctl(p.uc, UC_CTL_WRITE(UC_CTL_TCG_BUFFER_SIZE, 1), PROOF_CODE_BYTES);
    rv_engine.uc_ctl(p.uc, UC_CTL_WRITE(UC_CTL_UC_USE_EXITS, 1), 1);
    if (rv_engine.uc_mem_map_ptr(p.uc, 0, RAM_BYTES, UC_PROT_ALL, p.ram) ||
        rv_engine.uc_hook_add(p.uc, &hook, UC_HOOK_INTR, (void *)on_interrupt, &p, 1, 0))
        fail(&p, "its memory");
    else if (!prove_structures(&p) && !prove_fpu(&p) && !prove_execution(&p) &&
             !prove_registers(&p) && !prove_time_and_modes(&p))
        bad = 0;
    rv_engine.uc_close(p.uc);
    free(p.ram);
    probe = NULL;
    return bad;
}
