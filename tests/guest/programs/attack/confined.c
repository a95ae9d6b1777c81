/* Processes that will not listen, and those that confine themselves. */
#define _GNU_SOURCE
#include "attack.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

_Noreturn static void spin(void) {
    for (;;)
        __asm__ volatile("1: jmp 1b");
}

static void pause_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}

/* A tight loop that blocks all signals: others go on, and it ends when it is told to. */
void attack_blocked(void) {
    pid_t pids[4];
    int status;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    for (int i = 0; i < 4; i++) {
        pids[i] = fork();
        REQUIRE(pids[i] >= 0);
        if (pids[i] == 0)
            spin();
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    for (int i = 0; i < 20; i++) {
        pause_ms(2);
        kill(pids[i & 3], SIGUSR1);
    }
    for (int i = 0; i < 4; i++) {
        REQUIRE(waitpid(pids[i], &status, WNOHANG) == 0);
        kill(pids[i], SIGKILL);
        REQUIRE(waitpid(pids[i], &status, 0) == pids[i]);
        say("spinner: ended by %s", signal_name(WTERMSIG(status)));
    }
}

static void stop_itself(void) {
    for (int i = 0; i < 5; i++)
        raise(SIGSTOP);
    _exit(5);
}
static void kill_itself(void) {
    raise(SIGKILL);
    for (;;)
        ;
}

void attack_stopped(void) {
    int status, stops = 0;
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        stop_itself();
    while (waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status)) {
        stops++;
        kill(pid, SIGCONT);
    }
    say("stopped %d times, exit %d", stops, WEXITSTATUS(status));
    say_child("kills itself", kill_itself);
    /* Stopped from outside in a tight loop, and set free again. */
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0)
        spin();
    for (int i = 0; i < 10; i++) {
        pause_ms(1);
        kill(pid, SIGSTOP);
        REQUIRE(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
        kill(pid, SIGCONT);
    }
    kill(pid, SIGKILL);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("spinner: ended by %s", signal_name(WTERMSIG(status)));
}

static void strict(void) {
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    volatile unsigned n = 0;
    while (++n < 1000000)
        ;
    syscall(SYS_getpid);
}
static void strict_exit(void) {
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    syscall(SYS_exit, 12);
}
static void strict_old_door(void) {
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    __asm__ volatile("int $0x80" : : "a"(20) : "memory");
}

/* getppid is an error, getpgrp a SIGSYS, of any other door everything ends the process. */
static void filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xC000003E, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgrp, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP | 77),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(50);
    catch_faults();
}
static void filtered(void) {
    filter();
    long error = syscall(SYS_getppid) == -1 && errno == EXDEV;
    TRY(syscall(SYS_getpgrp));
    _exit((int)error + (caught.signal == SIGSYS && caught.code == 1 ? 2 : 0) + (syscall(SYS_getpid) > 0 ? 4 : 0));
}
static void filtered_old_door(void) {
    filter();
    __asm__ volatile("int $0x80" : : "a"(20) : "memory");
}

void attack_seccomp(void) {
    say_child("strict", strict);
    say_child("strict, exit", strict_exit);
    say_child("strict, int 0x80", strict_old_door);
    say_child("filter", filtered);
    say_child("filter, int 0x80", filtered_old_door);
}

static void read_clock(void) {
    prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
    /* Long enough to be moved to wherever user code runs best. */
    for (volatile unsigned i = 0; i < 20000000; i++)
        ;
    catch_faults();
    TRY(__asm__ volatile("rdtsc" : : : "rax", "rdx"));
    int refused = caught.signal == SIGSEGV && caught.regs[REG_TRAPNO] == 13;
    prctl(PR_SET_TSC, PR_TSC_ENABLE);
    TRY(__asm__ volatile("rdtsc" : : : "rax", "rdx"));
    _exit(refused + 2 * !caught.signal);
}

/* CR4.TSD: the time-stamp counter is the kernel's to give. */
void attack_clock(void) { say_child("rdtsc, refused and then not", read_clock); }
