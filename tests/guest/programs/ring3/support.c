/* Catching faults and running bytes, for all sections. */
#define _GNU_SOURCE
#include "ring3.h"
#include "storm.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct caught caught;
sigjmp_buf caught_back;
volatile sig_atomic_t caught_armed;

static uint8_t fault_stack[64 * 1024] __attribute__((aligned(16)));
static sigset_t before_quiet;

static char text[1 << 16];
static size_t text_bytes;

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(text + text_bytes, sizeof text - text_bytes, format, arguments);
    va_end(arguments);
    REQUIRE(wrote >= 0 && text_bytes + (size_t)wrote + 1 < sizeof text);
    text_bytes += (size_t)wrote;
    text[text_bytes++] = '\n';
    text[text_bytes] = 0;
}

const char *run_section(size_t number) {
    text_bytes = 0;
    text[0] = 0;
    catch_faults();
    sections[number].run();
    return text;
}

void broken(const char *file, int line, const char *what) {
    const char *name = strrchr(file, '/');
    dprintf(STDOUT_FILENO, "BROKEN %s:%d: %s\n", name ? name + 1 : file, line, what);
    _exit(1);
}

uint64_t digest(const void *bytes, size_t count) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < count; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
    return h;
}

const char *signal_name(int number) {
    static const char *const names[] = {
        [SIGILL] = "SIGILL",   [SIGTRAP] = "SIGTRAP", [SIGBUS] = "SIGBUS",   [SIGFPE] = "SIGFPE",
        [SIGSEGV] = "SIGSEGV", [SIGUSR1] = "SIGUSR1", [SIGUSR2] = "SIGUSR2", [SIGSYS] = "SIGSYS",
        [SIGKILL] = "SIGKILL", [SIGSTOP] = "SIGSTOP", [SIGCHLD] = "SIGCHLD",
    };
    size_t known = sizeof names / sizeof *names;
    return number > 0 && (size_t)number < known && names[number] ? names[number] : "?";
}

void say_caught(const char *name, uint64_t base) {
    if (!caught.signal) {
        say("%s: nothing", name);
        return;
    }
    /* si_addr of SIGTRAP is a matter of the kernel's version. */
    say("%s: %s %d trap %lld error %#llx at %#llx", name, signal_name(caught.signal), caught.code,
        caught.regs[REG_TRAPNO], caught.regs[REG_ERR],
        caught.signal == SIGTRAP || !caught.address ? 0ull
                                                    : (unsigned long long)(caught.address - base));
}

static void note(int number, siginfo_t *info, void *context) {
    const ucontext_t *uc = context;
    if (!caught_armed) {
        dprintf(STDOUT_FILENO, "BROKEN: %s code %d address %p ip %#llx trap %lld error %#llx\n",
                signal_name(number), info->si_code, info->si_addr,
                uc->uc_mcontext.gregs[REG_RIP], uc->uc_mcontext.gregs[REG_TRAPNO],
                uc->uc_mcontext.gregs[REG_ERR]);
        _exit(1);
    }
    caught_armed = 0;
    caught.signal = number;
    caught.code = info->si_code;
    caught.address = (uint64_t)info->si_addr;
    memcpy(caught.regs, uc->uc_mcontext.gregs, sizeof caught.regs);
    siglongjmp(caught_back, 1);
}

void catch_faults(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK, .sa_sigaction = note};
    stack_t stack = {.ss_sp = fault_stack, .ss_size = sizeof fault_stack};
    /* A kernel that steps or stops on the way must not see another signal in between. */
    sigfillset(&action.sa_mask);
    REQUIRE(sigaltstack(&stack, NULL) == 0);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        REQUIRE(sigaction(signals[i], &action, NULL) == 0);
}

void quiet_begin(void) {
    sigset_t storm;
    sigemptyset(&storm);
    sigaddset(&storm, SIGPROF);
    sigaddset(&storm, SIGUSR1);
    sigprocmask(SIG_BLOCK, &storm, &before_quiet);
}

void quiet_end(void) { sigprocmask(SIG_SETMASK, &before_quiet, NULL); }

uint64_t enter_code(uint64_t address);
__asm__(".text\n"
        "enter_code:\n"
        "    push %rbx\n    push %rbp\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    push %rdi\n"
        "    xor %eax, %eax\n    xor %ebx, %ebx\n    xor %ecx, %ecx\n    xor %edx, %edx\n"
        "    xor %esi, %esi\n    xor %edi, %edi\n    xor %ebp, %ebp\n    xor %r8d, %r8d\n"
        "    xor %r9d, %r9d\n    xor %r10d, %r10d\n    xor %r11d, %r11d\n    xor %r12d, %r12d\n"
        "    xor %r13d, %r13d\n    xor %r14d, %r14d\n    xor %r15d, %r15d\n"
        "    call *(%rsp)\n"
        "    cld\n"
        "    pop %rdi\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbp\n    pop %rbx\n"
        "    ret\n");

uint64_t run_code(const void *bytes, size_t count) {
    static void *page;
    volatile uint64_t result = 0;
    if (!page) {
        page = mmap((void *)CODE_AT, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        REQUIRE(page == (void *)CODE_AT);
    }
    memcpy(page, bytes, count);
    memset((uint8_t *)page + count, 0xC3, 32);
    TRY(result = enter_code(CODE_AT));
    return result;
}
