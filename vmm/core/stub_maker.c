/*
 * The maker of stubs, and how a stub confines itself.
 *
 * The maker is forked from the VMM and gives up everything but this library's own pages, a stack
 * and three descriptors. Its code may call nothing outside this file: what it was forked from is
 * gone. So it makes system calls by hand, and what needs thought (the filters) is made by the VMM
 * and lies in the window when it starts.
 */
#define _GNU_SOURCE
#include "stub_maker.h"

#include <asm/prctl.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* No library, no thread-local storage, no instrumentation. */
#define ALONE                                                                                      \
    __attribute__((no_stack_protector, no_sanitize("address", "undefined"),                        \
                   optimize("no-tree-loop-distribute-patterns")))

#define NOBODY 65534
#define SPARE_DESCRIPTOR 100
#define SA_RESTORER_FLAG 0x04000000

extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));

static const uint8_t trapped_signals[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                          SIGTRAP, SIGSYS, SIGUSR1};

ALONE static inline long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL1(n, a) call(n, (long)(a), 0, 0, 0, 0, 0)
#define CALL2(n, a, b) call(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define CALL3(n, a, b, c) call(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(n, a, b, c, d) call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define MMAP(at, bytes, prot, flags, fd, offset)                                                   \
    call(SYS_mmap, (long)(at), (long)(bytes), prot, flags, fd, (long)(offset))

/* A child on a stack of its own that runs `fn(argument)`, which does not return. */
__attribute__((naked)) static long clone_on(long flags __attribute__((unused)),
                                            void *stack __attribute__((unused)),
                                            void (*fn)(void *) __attribute__((unused)),
                                            void *argument __attribute__((unused)))
{
    __asm__("mov %rdx, -8(%rsi)\n"
            "mov %rcx, -16(%rsi)\n"
            "sub $16, %rsi\n"
            "xor %edx, %edx\n"
            "xor %r10d, %r10d\n"
            "xor %r8d, %r8d\n"
            "mov $56, %eax\n"
            "syscall\n"
            "test %rax, %rax\n"
            "jz 1f\n"
            "ret\n"
            "1: xor %ebp, %ebp\n"
            "pop %rdi\n"
            "pop %rax\n"
            "and $-16, %rsp\n"
            "call *%rax\n"
            "hlt\n");
}

ALONE __attribute__((noreturn)) static void quit(void)
{
    for (;;)
        CALL1(SYS_exit_group, 1);
}

ALONE static void filter(long flags, const struct rv_stub_program *program, long *result)
{
    struct {
        unsigned short count;
        const struct sock_filter *list;
    } bpf = {program->count, program->list};
    *result = CALL3(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &bpf);
}

struct birth {
    uint64_t base;
    struct rv_stub_setup *setup;
    long maker;
};

/* Give up all but answering traps. */
ALONE static void runner(void *argument)
{
    const struct birth *birth = argument;
    struct {
        void *handler;
        uint64_t flags;
        void *restorer;
        uint64_t mask;
    } action;
    stack_t signals;
    uint64_t nothing = 0;
    long result;

    if (CALL2(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL) || CALL1(SYS_getppid, 0) != birth->maker)
        quit();
    CALL3(SYS_close_range, 0, ~0u, 0);
    signals.ss_sp = (void *)(birth->base + STUB_SIGNALS * STUB_PAGE);
    signals.ss_flags = 0;
    signals.ss_size = STUB_SIGNAL_BYTES;
    if (CALL2(SYS_sigaltstack, &signals, 0))
        quit();
    action.handler = (void *)(birth->base + (uint64_t)(rv_stub_handler - rv_stub_text));
    action.flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER_FLAG;
    action.restorer = action.handler;
    action.mask = 0;
    for (unsigned i = 0; i < sizeof(trapped_signals); i++)
        if (CALL4(SYS_rt_sigaction, trapped_signals[i], &action, 0, sizeof(action.mask)))
            quit();
    if (CALL2(SYS_prctl, PR_SET_TSC, PR_TSC_SIGSEGV))
        quit();
    if (birth->setup->trap_cpuid && CALL2(SYS_arch_prctl, ARCH_SET_CPUID, 0))
        birth->setup->trap_cpuid = 0;
    if (CALL4(SYS_rt_sigprocmask, SIG_SETMASK, &nothing, 0, sizeof(nothing)))
        quit();
    filter(SECCOMP_FILTER_FLAG_SPEC_ALLOW, &birth->setup->runner, &result);
    if (result)
        quit();
    CALL1(SYS_getpid, 0); /* forbidden now: the first trap, from which it never comes back */
    quit();
}

ALONE static bool send_reply(const struct rv_stub_reply *reply, int fd)
{
    struct {
        struct cmsghdr header;
        int fd;
        int padding;
    } control;
    struct iovec part;
    struct msghdr message;
    part.iov_base = (void *)(uintptr_t)reply;
    part.iov_len = sizeof(*reply);
    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.fd = fd;
    message.msg_name = 0;
    message.msg_namelen = 0;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);
    message.msg_flags = 0;
    return CALL3(SYS_sendmsg, MAKER_SOCKET, &message, MSG_NOSIGNAL) == (long)sizeof(*reply);
}

/* Make the window, start the runner, become the mapper. */
ALONE __attribute__((noreturn)) static void become_stub(uint64_t base, int window, void *stack,
                                                        long maker)
{
    const int shared = MAP_SHARED | MAP_FIXED_NOREPLACE;
    const uint64_t open = STUB_REGISTERS * STUB_PAGE;
    struct rv_stub_reply reply;
    struct birth birth;
    long result;

    if (CALL2(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL) || CALL1(SYS_getppid, 0) != maker)
        quit();
    if (MMAP(base, STUB_PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED_NOREPLACE, MAKER_TEXT,
             0) != (long)base ||
        MMAP(base + STUB_PAGE, STUB_PAGE, PROT_READ, shared, window, 0) !=
            (long)(base + STUB_PAGE) ||
        MMAP(base + open, STUB_BYTES - open, PROT_READ | PROT_WRITE, shared, window, STUB_PAGE) !=
            (long)(base + open))
        quit();
    CALL1(SYS_close, window);
    CALL1(SYS_close, MAKER_TEXT);
    birth.base = base;
    birth.setup = (struct rv_stub_setup *)(base + STUB_SIGNALS * STUB_PAGE);
    birth.maker = maker;
    filter(SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | SECCOMP_FILTER_FLAG_SPEC_ALLOW,
           &birth.setup->both, &result);
    if (result < 0)
        quit();
    reply.mapper = (int)CALL1(SYS_getpid, 0);
    reply.runner = (int)clone_on(CLONE_VM | CLONE_PARENT | SIGCHLD, stack, runner, &birth);
    if (reply.runner < 0 || !send_reply(&reply, (int)result))
        quit();
    CALL1(SYS_close, result);
    CALL1(SYS_close, MAKER_SOCKET);
    filter(SECCOMP_FILTER_FLAG_SPEC_ALLOW, &birth.setup->mapper, &result);
    if (result)
        quit();
    ((void (*)(void))(base + (uint64_t)(rv_stub_mapper - rv_stub_text)))();
    __builtin_unreachable();
}

/* The next request, and the window that comes with it; -1 when the VMM has gone. */
ALONE static int next_request(struct rv_stub_request *request)
{
    struct {
        struct cmsghdr header;
        int fd;
        int padding;
    } control;
    struct iovec part;
    struct msghdr message;
    part.iov_base = request;
    part.iov_len = sizeof(*request);
    message.msg_name = 0;
    message.msg_namelen = 0;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);
    message.msg_flags = 0;
    if (CALL3(SYS_recvmsg, MAKER_SOCKET, &message, 0) != (long)sizeof(*request) ||
        message.msg_controllen < CMSG_LEN(sizeof(int)))
        return -1;
    return control.fd;
}

ALONE static void keep_descriptors(const int *fds)
{
    for (int i = 0; i < MAKER_DESCRIPTORS; i++)
        if (CALL3(SYS_dup3, fds[i], SPARE_DESCRIPTOR + i, 0) < 0)
            quit();
    for (int i = 0; i < MAKER_DESCRIPTORS; i++)
        CALL3(SYS_dup3, SPARE_DESCRIPTOR + i, i, 0);
    CALL3(SYS_close_range, MAKER_DESCRIPTORS, ~0u, 0);
}

ALONE static void keep_memory(const struct rv_stub_nursery *nursery)
{
    uint64_t kept[2][2] = {
        {(uint64_t)(uintptr_t)__ehdr_start & ~(uint64_t)(STUB_PAGE - 1),
         ((uint64_t)(uintptr_t)_end + STUB_PAGE - 1) & ~(uint64_t)(STUB_PAGE - 1)},
        {(uint64_t)(uintptr_t)nursery->stacks,
         (uint64_t)(uintptr_t)nursery->stacks + NURSERY_BYTES},
    };
    int first = kept[0][0] > kept[1][0];
    CALL2(SYS_munmap, 0, kept[first][0]);
    CALL2(SYS_munmap, kept[first][1], kept[!first][0] - kept[first][1]);
    CALL2(SYS_munmap, kept[!first][1], STUB_USER_END - kept[!first][1]);
}

/* The maker's whole life. Signals are blocked. */
ALONE void rv_stub_maker_main(void *argument)
{
    struct rv_stub_nursery nursery = *(struct rv_stub_nursery *)argument;
    struct rv_stub_request request;
    int window;

    if (nursery.rseq)
        CALL4(SYS_rseq, nursery.rseq, nursery.rseq_bytes, 1, 0x53053053);
    keep_descriptors(nursery.fds);
    CALL4(SYS_rt_sigaction, SIGCHLD, nursery.ignore, 0, 8);
    CALL1(SYS_umask, 077);
    CALL2(SYS_setgroups, 0, 0);
    CALL3(SYS_setresgid, NOBODY, NOBODY, NOBODY);
    CALL3(SYS_setresuid, NOBODY, NOBODY, NOBODY);
    if (call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0))
        quit();
    CALL2(SYS_prctl, PR_SET_DUMPABLE, 0);
    CALL2(SYS_prctl, PR_SET_NAME, "rayvisor-stub");
    keep_memory(&nursery);
    long maker = CALL1(SYS_getpid, 0);
    while ((window = next_request(&request)) >= 0) {
        long child = CALL2(SYS_clone, SIGCHLD, 0);
        if (child == 0)
            become_stub(request.base, window, nursery.stacks + NURSERY_BYTES, maker);
        CALL1(SYS_close, window);
    }
    quit();
}

long rv_stub_maker_fork(struct rv_stub_nursery *nursery)
{
    return clone_on(0, nursery->stacks + NURSERY_BYTES / 2, rv_stub_maker_main, nursery);
}
