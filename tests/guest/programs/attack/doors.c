/* Every way into a kernel. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <stdio.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

void say_child(const char *name, void (*body)(void)) {
    int status = -1;
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        for (int number = 1; number < 32; number++)
            signal(number, SIG_DFL);
        body();
        _exit(99);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    if (WIFSIGNALED(status))
        say("%s: ended by %s", name, signal_name(WTERMSIG(status)));
    else
        say("%s: exit %d", name, WEXITSTATUS(status));
}

static int64_t by_syscall(uint64_t number) {
    int64_t result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(0ull), "S"(0ull), "d"(0ull) : "rcx", "r11", "memory");
    return result;
}

static int64_t by_int80(uint64_t number) {
    int64_t result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(0ull), "c"(0ull), "d"(0ull) : "memory");
    return result;
}

static void say_result(const char *door, uint64_t number, int64_t result) {
    say("%s %#llx: %s", door, (unsigned long long)number,
        result == getpid() ? "a pid" : result == -ENOSYS ? "ENOSYS" : result < 0 ? "an error" : "something");
}

/* Numbers that the guest's kernel has not but the host's might; x32; garbage in the upper half. */
void attack_calls(void) {
    static const uint64_t numbers[] = {SYS_getpid, SYS_getpid | 1ull << 32, SYS_getpid | 0xFFFFFFFFull << 32,
                                       400, 423, 499, 512, 547, 600, 1000, 0x1000, 0xFFFF, 0x7FFFFFFF,
                                       0x80000000, 0xFFFFFFFF, ~0ull, ~0ull - 1, 0x40000000 | SYS_getpid,
                                       0x40000000 | 513, 0x40000000 | 520, 0x7FFFFFFF40000000};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        say_result("syscall", numbers[i], by_syscall(numbers[i]));
    static const uint64_t old[] = {20, 20 | 1ull << 32, 222, 251, 285, 499, 600, 0xFFFF, 0x7FFFFFFF, 0x80000000,
                                   0xFFFFFFFF, 0x40000000 | 20};
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        say_result("int 0x80", old[i], by_int80(old[i]));
    /* Registers come back, and the kernel's are not in those it may spoil. */
    uint64_t kernel_values = 0;
    for (int i = 0; i < 200; i++) {
        uint64_t rcx, r11, rdx = 0x1234, r10;
        register uint64_t r10_in __asm__("r10") = 0x5678;
        __asm__ volatile("syscall\n\tmov %%r11, %1\n\tmov %%r10, %3"
                         : "=c"(rcx), "=&r"(r11), "+d"(rdx), "=&r"(r10), "+r"(r10_in)
                         : "a"(SYS_getppid)
                         : "r11", "memory");
        kernel_values += rcx >> 47 || r11 >> 32 || rdx != 0x1234 || r10 != 0x5678;
    }
    say("values of the kernel: %llu", (unsigned long long)kernel_values);
}

/* Calls that newer kernels have and the guest's has not: the host's must not answer for it. */
void attack_newer(void) {
    for (uint64_t number = 455; number < 480; number++)
        say_result("syscall", number, by_syscall(number));
}

static void sysenter_plain(void) { __asm__ volatile("mov $39, %%eax\n\tsysenter" : : : "rax", "memory"); }
static void sysenter_bad_stack(void) {
    __asm__ volatile("mov $39, %%eax\n\tmov $0x7FFFFFFFF000, %%rbp\n\tsysenter" : : : "rax", "memory");
}
static void sysenter_null_stack(void) {
    __asm__ volatile("mov $20, %%eax\n\txor %%ebp, %%ebp\n\txor %%esp, %%esp\n\tsysenter" : : : "rax", "memory");
}
static void sysenter_kernel_stack(void) {
    __asm__ volatile("mov $20, %%eax\n\tmov $0xFFFFFFFF81000000, %%rbp\n\tmov %%rbp, %%rsp\n\tsysenter"
                     : : : "rax", "memory");
}
static void sysenter_stepped(void) {
    __asm__ volatile("mov $20, %%eax\n\tpushfq\n\torq $0x4100, (%%rsp)\n\tpopfq\n\tsysenter" : : : "rax", "memory");
}
static void sysenter_exit(void) {
    static uint32_t *low;
    low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    /* exit(33) of the 32-bit table, with the stack it wants. */
    __asm__ volatile("mov %%rax, %%rbp\n\tmov $1, %%eax\n\tmov $33, %%ebx\n\tsysenter" : : "a"(low) : "rbx", "memory");
}

/* In 64-bit code of a 64-bit process, where no kernel expects it. Intel's processors alone. */
void attack_sysenter(void) {
    say_child("plain", sysenter_plain);
    say_child("bad stack", sysenter_bad_stack);
    say_child("null stack", sysenter_null_stack);
    say_child("kernel's stack", sysenter_kernel_stack);
    say_child("exit", sysenter_exit);
}

/* A single step into the kernel. Which of two signals comes first is the kernel's affair. */
void attack_stepped(void) { say_child("stepped", sysenter_stepped); }

/* Returns to where a system call stands in the last bytes that a program can have. */
void attack_returns(void) {
    uint8_t *last = (uint8_t *)0x7FFFFFFFE000;
    uint8_t *page = mmap(last, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    say("the last page: %s", page == last ? "mapped" : "refused");
    if (page != last)
        return;
    page[4094] = 0x0F;
    page[4095] = 0x05;
    TRY(__asm__ volatile("mov $39, %%eax\n\tjmp *%0" : : "r"(last + 4094) : "rax", "rcx", "r11", "memory"));
    say_caught("syscall in the last bytes", 0);
    say("    ip %#llx", (unsigned long long)caught.regs[REG_RIP]);
    page[4094] = 0xCD;
    page[4095] = 0x80;
    TRY(__asm__ volatile("mov $20, %%eax\n\tjmp *%0" : : "r"(last + 4094) : "rax", "memory"));
    say_caught("int 0x80 in the last bytes", 0);
    page[4094] = 0x0F;
    page[4095] = 0x0B;
    TRY(__asm__ volatile("jmp *%0" : : "r"(last + 4094) : "memory"));
    say_caught("ud2 in the last bytes", (uint64_t)last);
    page[4095] = 0x90;
    TRY(__asm__ volatile("jmp *%0" : : "r"(last + 4095) : "memory"));
    say_caught("nop in the last byte", 0);
    page[4095] = 0x0F;
    TRY(__asm__ volatile("jmp *%0" : : "r"(last + 4095) : "memory"));
    say_caught("half of an instruction", 0);
    munmap(last, PAGE);
}

/* The kernel was told vsyscall=none: the page is not there, whatever the host's kernel has. */
void attack_no_vsyscall(void) {
    static const unsigned offsets[] = {0, 0x400, 0x800, 1, 0xFFF};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        TRY(__asm__ volatile("call *%0" : : "r"(0xFFFFFFFFFF600000 + offsets[i]), "D"(0ull), "S"(0ull)
                             : "rax", "rcx", "r11", "memory"));
        say_caught("call", 0);
    }
}

/* Root may ask for ports and for the interrupt flag. */
void attack_ports(void) {
    say("ioperm %d", ioperm(0x80, 1, 1));
    TRY(outb(1, 0x80));
    say_caught("out 0x80", 0);
    TRY(outb(1, 0x81));
    say_caught("out 0x81", 0);
    say("iopl %d", iopl(3));
    TRY(outb(1, 0x81));
    say_caught("out 0x81", 0);
    TRY(__asm__ volatile("cli"));
    say_caught("cli", 0);
    TRY(__asm__ volatile("sti"));
    say_caught("sti", 0);
    uint64_t flags;
    __asm__ volatile("pushfq\n\tandq $~0x200, (%%rsp)\n\tpopfq\n\tpushfq\n\tpop %0" : "=r"(flags) : : "cc", "memory");
    say("interrupts %s, IOPL %llu", flags & 0x200 ? "on" : "off", (unsigned long long)flags >> 12 & 3);
    iopl(0);
    ioperm(0x80, 1, 0);
    TRY(outb(1, 0x80));
    say_caught("out 0x80, given back", 0);
}
