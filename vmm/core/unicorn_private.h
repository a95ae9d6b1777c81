/*
 * Everything private that the core knows of Unicorn 2.1.4 (x86-64 wheel), in one place.
 *
 * Unicorn's public interface neither delivers an interrupt nor stops precisely, so the core
 * reaches into the engine: fields by offset, functions by symbol, calls between them by their
 * slot in the library's own linkage table. engine.c proves all of it at load time and refuses
 * any other build. To move to another Unicorn: print the offsets from its headers, change them
 * here, and let the proof and the storm tests speak.
 */
#ifndef RV_UNICORN_PRIVATE_H
#define RV_UNICORN_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

#define RV_UNICORN_MAJOR 2
#define RV_UNICORN_MINOR 1
#define RV_UNICORN_PATCH 4

/* struct uc_struct */
#define UC_CPU 440             /* CPUState * */
#define UC_TCG 768             /* TCGContext * */
#define UC_NO_EXIT_REQUEST 2034 /* bool: no exit check after each memory access */

/* TCGContext: how many temporaries the block has that is translated now, or was last; the buffer of
 * translated code, and where the next block will lie */
#define TCG_GLOBALS 44 /* int32_t: the first temporaries, which every block has */
#define TCG_TEMPORARIES 48 /* int32_t */
#define TCG_MOST_TEMPORARIES 512
#define TCG_CODE_BUFFER 160
#define TCG_CODE_BUFFER_BYTES 184
#define TCG_CODE_NEXT 192

/* CPUState */
#define CPU_INTERRUPT_REQUEST 28 /* uint32_t, CPU_INTERRUPT_* */
#define CPU_ENV 296              /* CPUX86State * */
#define CPU_ICOUNT_DECR 304      /* pointer to {u16 low, u16 high}; high != 0 leaves the block chain */
#define CPU_HALTED 33176         /* uint32_t */
#define CPU_EXCEPTION_INDEX 33184 /* int32_t */
#define CPU_UC 33192             /* uc_engine * */
#define CPU_CLASS 33200          /* CPUClass * */

/* CPUClass */
#define CLASS_DO_INTERRUPT 16
#define CLASS_TLB_FILL 72
#define CLASS_EXEC_INTERRUPT 144

#define CPU_ENV_AT 35408         /* where the CPUX86State lies in it */
#define CPU_REQUEST 35392        /* where CPU_ICOUNT_DECR points: within it */
#define CPU_JUMPS 312            /* TranslationBlock *[4096]: blocks by where they begin */

#define CPU_INTERRUPT_HARD 0x2u
#define EXCP_HLT 0x10001 /* leave the execution loop */

/* TranslationBlock */
#define BLOCK_PC 0
#define BLOCK_FLAGS 16  /* uint32_t: hflags and BLOCK_RFLAGS of RFLAGS */
#define BLOCK_BYTES 20  /* uint16_t: of the guest's code */
#define BLOCK_CFLAGS 24 /* uint32_t */
#define BLOCK_CODE 32   /* the translation */
#define BLOCK_SECOND_PAGE 80 /* -1: all of it lies in one page */
#define BLOCK_HEADER_BYTES 64
#define BLOCK_INVALID 0x40000u
#define BLOCK_KIND 0xff0effffu /* of its cflags: what is asked for when a block is looked up */
#define BLOCK_RFLAGS 0x73100u /* the translation depends on: TF IOPL RF VM AC */

/* TranslatorOps: what is called while a block is translated. DisasContextBase: what they share. */
#define TRANSLATOR_INSTRUCTION 32 /* void (*)(DisasContextBase *, CPUState *) */
#define TRANSLATOR_BYTES 56
#define CONTEXT_NEXT_PC 16           /* uint64_t: linear address of the next instruction */
#define CONTEXT_GOES_ON 24           /* int32_t: 0, or how the block ends */
#define CONTEXT_NEXT_BLOCK 1         /* with a jump to the next instruction */
#define CONTEXT_INSTRUCTIONS 28      /* int32_t: so many, the present one included */
#define CONTEXT_MOST_INSTRUCTIONS 32 /* int32_t: no more than so many */

/* CPUX86State: while translated code runs, RBP points to it */
#define ENV_ENGINE -2216 /* CPU_UC, from there */
#define ENV_REGS 0
#define ENV_EIP 128
#define ENV_EFLAGS 136
#define ENV_CC_SRC 152
#define ENV_CC_OP 168
#define ENV_DF 172 /* int32_t: 1 upwards, -1 downwards */
#define ENV_HFLAGS 176
#define ENV_HFLAGS2 180
#define ENV_SEGS 184 /* ES CS SS DS FS GS */
#define ENV_LDT 328
#define ENV_TR 352
#define ENV_GDT 376
#define ENV_IDT 400
#define ENV_CR 424 /* cr0..cr8 */
#define ENV_EFER 592
#define ENV_FPSTT 604
#define ENV_FPUS 608
#define ENV_FPUC 610
#define ENV_FPTAGS 612 /* uint8_t[8], 1 = empty */
#define ENV_FPREGS 624 /* 16 bytes each, physical order */
#define ENV_FPOP 752
#define ENV_FPIP 760
#define ENV_FPDP 768
#define ENV_MXCSR 816
#define ENV_XMM 824 /* 64 bytes each */
#define ENV_SYSENTER_CS 4800
#define ENV_SYSENTER_ESP 4808
#define ENV_SYSENTER_EIP 4816
#define ENV_STAR 4824
#define ENV_LSTAR 4840
#define ENV_CSTAR 4848
#define ENV_FMASK 4856
#define ENV_KERNEL_GS_BASE 4864
#define ENV_TSC_AUX 4896
#define ENV_MISC_ENABLE 4920
#define ENV_PAT 5280
#define ENV_ERROR_CODE 5384
#define ENV_EXCEPTION_IS_INT 5388
#define ENV_EXCEPTION_NEXT_EIP 5392
#define ENV_DR 5400 /* dr0..dr7 */
#define ENV_TSC_OFFSET 5512
#define ENV_V_TPR 5556
#define ENV_FPREG_BYTES 16
#define ENV_XMM_BYTES 64

/* SegmentCache */
struct rv_uc_segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags; /* the descriptor's second word, limit and base bits zero */
};

enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

#define CC_OP_EFLAGS 1 /* the condition codes lie in cc_src as RFLAGS has them */

/* hflags: what translated code depends on */
#define HF_CPL 0x3u
#define HF_INHIBIT_IRQ (1u << 3)
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_ADDSEG (1u << 6)
#define HF_PE (1u << 7)
#define HF_MP_SHIFT 9
#define HF_LMA (1u << 14)
#define HF_CS64 (1u << 15)
#define HF_OSFXSR (1u << 22)
#define HF_SMAP (1u << 23)
/* TF, IOPL, RF, VM and AC: the engine adds them from RFLAGS itself, and never takes them out */
#define HF_FROM_RFLAGS ((1u << 8) | (3u << 12) | (1u << 16) | (1u << 17) | (1u << 18))
#define HF2_GIF (1u << 0)
#define HF2_NMI (1u << 2)

/* The software TLB, before the CPUX86State in memory */
#define ENV_TLB (-2192)        /* first, a uint16_t: a bit for each mode that is not empty */
#define TLB_DESC 32 /* per mode: large pages, ..., victim table */
#define TLB_DESC_BYTES 696
#define TLB_DESC_USED 32 /* uint64_t: entries in use */
#define TLB_DESC_VICTIMS 48
#define TLB_VICTIMS 8
#define TLB_FAST 2128 /* per mode: {uint64_t mask, entry *table} */
#define TLB_MODES 3
enum { MODE_KERNEL_SMAP, MODE_USER, MODE_KERNEL };

struct rv_uc_tlb_fast {
    uint64_t mask; /* (entries - 1) * sizeof(entry) */
    struct rv_uc_tlb_entry *table;
};

struct rv_uc_tlb_entry {
    uint64_t addr_read;
    uint64_t addr_write;
    uint64_t addr_code;
    uint64_t paddr;
    uint64_t addend;
    uint64_t mark; /* from here on unused by the engine, but copied with the rest */
    uint64_t unused[2];
};

#define TLB_NOTDIRTY 0x400u
#define TLB_MMIO 0x200u
#define TLB_DISCARD_WRITE 0x40u

enum rv_uc_access { ACCESS_LOAD, ACCESS_STORE, ACCESS_FETCH };

/* Exported functions, by the names the wheel gives them: RV_PRIVATE(member, symbol, result, arguments) */
#define RV_PRIVATE_SYMBOLS(RV_PRIVATE)                                                             \
    RV_PRIVATE(do_interrupt, "x86_cpu_do_interrupt_x86_64", void, (void *cpu))                     \
    RV_PRIVATE(do_hardirq, "do_interrupt_x86_hardirq_x86_64", void, (void *env, int vector, int hw)) \
    RV_PRIVATE(raise_exception, "raise_exception_err_x86_64", void,                                \
               (void *env, int vector, int error))                                                 \
    RV_PRIVATE(restore_state, "cpu_restore_state_x86_64", bool,                                    \
               (void *cpu, uintptr_t retaddr, bool will_exit))                                     \
    RV_PRIVATE(leave_loop, "cpu_loop_exit_x86_64", void, (void *cpu))                              \
    RV_PRIVATE(condition_codes, "cpu_cc_compute_all_x86_64", uint32_t, (void *env, int op))        \
    RV_PRIVATE(fetch_byte, "cpu_ldub_code_x86_64", uint32_t, (void *env, uint64_t address))        \
    RV_PRIVATE(check_io_8, "helper_check_iob_x86_64", void, (void *env, uint32_t port))            \
    RV_PRIVATE(check_io_16, "helper_check_iow_x86_64", void, (void *env, uint32_t port))           \
    RV_PRIVATE(check_io_32, "helper_check_iol_x86_64", void, (void *env, uint32_t port))           \
    RV_PRIVATE(cpu_reset, "cpu_reset", void, (void *cpu))                                          \
    RV_PRIVATE(update_cr0, "cpu_x86_update_cr0_x86_64", void, (void *env, uint32_t value))         \
    RV_PRIVATE(update_cr4, "cpu_x86_update_cr4_x86_64", void, (void *env, uint32_t value))         \
    RV_PRIVATE(set_dr, "helper_set_dr_x86_64", void, (void *env, int reg, uint64_t value))         \
    RV_PRIVATE(set_a20, "x86_cpu_set_a20_x86_64", void, (void *cpu, int state))                    \
    RV_PRIVATE(cpuid, "cpu_x86_cpuid_x86_64", void,                                                \
               (void *env, uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c,     \
                uint32_t *d))                                                                      \
    RV_PRIVATE(tlb_flush, "tlb_flush_x86_64", void, (void *cpu))                                   \
    RV_PRIVATE(reset_dirty, "tlb_reset_dirty_x86_64", void,                                        \
               (void *cpu, uint64_t host_start, uint64_t length))                                  \
    RV_PRIVATE(tb_flush, "tb_flush_x86_64", void, (void *cpu))                                     \
    RV_PRIVATE(tb_invalidate, "tb_invalidate_phys_range_x86_64", void,                             \
               (void *uc, uint64_t start, uint64_t end))                                           \
    RV_PRIVATE(ram_addr_from_host, "qemu_ram_addr_from_host_x86_64", uint64_t,                     \
               (void *uc, void *host))                                                             \
    RV_PRIVATE(update_mxcsr, "update_mxcsr_status_x86_64", void, (void *env))                      \
    RV_PRIVATE(fldcw, "helper_fldcw_x86_64", void, (void *env, uint32_t value))

/* Functions of the library that it reaches through its linkage table, or whose addresses it hands
 * to translated code, where the core stands in between: RV_INTERPOSED(member, symbol, result, arguments) */
#define RV_INTERPOSED_SYMBOLS(RV_INTERPOSED)                                                       \
    RV_INTERPOSED(protect_code, "tlb_protect_code_x86_64", void, (void *uc, uint64_t ram_addr))    \
    RV_INTERPOSED(unprotect_code, "tlb_unprotect_code_x86_64", void, (void *uc, uint64_t ram_addr)) \
    RV_INTERPOSED(reset_dirty_by_vaddr, "tlb_reset_dirty_by_vaddr_x86_64", void,                   \
                  (void *cpu, uint64_t start, uint64_t length))                                    \
    RV_INTERPOSED(slow_store, "tb_invalidate_phys_page_fast_x86_64", void,                         \
                  (void *uc, void *pages, uint64_t ram_addr, int bytes, uintptr_t retaddr))        \
    RV_INTERPOSED(store_entry, "x86_stl_phys_notdirty_x86_64", void,                               \
                  (void *cpu, uint64_t gpa, uint32_t value))                                       \
    RV_INTERPOSED(flush_code, "tb_flush_x86_64", void, (void *cpu))                                \
    RV_INTERPOSED(in_8, "cpu_inb_x86_64", uint8_t, (void *uc, uint32_t port, uintptr_t retaddr))   \
    RV_INTERPOSED(in_16, "cpu_inw_x86_64", uint16_t, (void *uc, uint32_t port, uintptr_t retaddr)) \
    RV_INTERPOSED(in_32, "cpu_inl_x86_64", uint32_t, (void *uc, uint32_t port, uintptr_t retaddr)) \
    RV_INTERPOSED(out_8, "cpu_outb_x86_64", void,                                                  \
                  (void *uc, uint32_t port, uint8_t value, uintptr_t retaddr))                     \
    RV_INTERPOSED(out_16, "cpu_outw_x86_64", void,                                                 \
                  (void *uc, uint32_t port, uint16_t value, uintptr_t retaddr))                    \
    RV_INTERPOSED(out_32, "cpu_outl_x86_64", void,                                                 \
                  (void *uc, uint32_t port, uint32_t value, uintptr_t retaddr))                    \
    RV_INTERPOSED(load_cr3, "cpu_x86_update_cr3_x86_64", void, (void *env, uint64_t cr3))          \
    RV_INTERPOSED(lookup_block, "helper_lookup_tb_ptr_x86_64", void *, (void *env))                \
    RV_INTERPOSED(find_block, "tb_htable_lookup_x86_64", void *,                                   \
                  (void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cflags))     \
    RV_INTERPOSED(flush_jumps, "tb_flush_jmp_cache_x86_64", void, (void *cpu, uint64_t address))   \
    RV_INTERPOSED(translate_block, "translator_loop_x86_64", void,                                 \
                  (const void *steps, void *block, void *cpu, void *made, int instructions))       \
    RV_INTERPOSED(keep_block, "tcg_tb_insert_x86_64", void, (void *tcg, void *block))              \
    RV_INTERPOSED(exit_asked, "helper_check_exit_request_x86_64", void, (void *uc, uint32_t slot)) \
    RV_INTERPOSED(syscall, "helper_syscall_x86_64", void, (void *env, int bytes))                  \
    RV_INTERPOSED(sysret, "helper_sysret_x86_64", void, (void *env, int dflag))                    \
    RV_INTERPOSED(sysexit, "helper_sysexit_x86_64", void, (void *env, int dflag))                  \
    RV_INTERPOSED(iret, "helper_iret_protected_x86_64", void, (void *env, int shift, int next))    \
    RV_INTERPOSED(test_cr4, "helper_cr4_testbit_x86_64", void, (void *env, uint32_t bit))          \
    RV_INTERPOSED(rdmsr, "helper_rdmsr_x86_64", void, (void *env))                                 \
    RV_INTERPOSED(wrmsr, "helper_wrmsr_x86_64", void, (void *env))                                 \
    RV_INTERPOSED(read_cr, "helper_read_crN_x86_64", uint64_t, (void *env, int reg))               \
    RV_INTERPOSED(write_cr, "helper_write_crN_x86_64", void, (void *env, int reg, uint64_t value)) \
    RV_INTERPOSED(cpu_abort, "cpu_abort_x86_64", void, (void *cpu, const char *format, ...))       \
    RV_INTERPOSED(process_abort, "abort", void, (void))                                            \
    RV_INTERPOSED(process_exit, "exit", void, (int status))                                        \
    RV_INTERPOSED(reset_request, "qemu_system_reset_request", void, (void *uc))

#endif
