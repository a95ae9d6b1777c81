/* The VMM's side of a stub: have one made, have it map, run it, read its traps. */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "stub_filter.h"

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, uint64_t)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1u
#endif

#define HWCAP2_FSGSBASE_BIT 2u
#define GIVE_UP_MS 5000

extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
/* glibc 2.35 and later; NULL elsewhere, where nothing is registered. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static int memory_file(const char *name, const void *content, size_t bytes, size_t room)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd >= 0 && (ftruncate(fd, (off_t)room) ||
                    (bytes && pwrite(fd, content, bytes, 0) != (ssize_t)bytes))) {
        close(fd);
        return -1;
    }
    return fd;
}

static long fork_maker(int socket, int ram_fd, int text)
{
    struct {
        void *handler;
        uint64_t flags, restorer, mask;
    } *ignore;
    struct rv_stub_nursery nursery = {.fds = {socket, ram_fd, text}};
    uint8_t *stacks = mmap(NULL, NURSERY_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigset_t all, before;
    if (stacks == MAP_FAILED)
        return -errno;
    ignore = (void *)stacks;
    ignore->handler = (void *)SIG_IGN;
    nursery.stacks = stacks;
    nursery.ignore = ignore;
    if (&__rseq_offset && &__rseq_size && __rseq_size) {
        nursery.rseq = (char *)__builtin_thread_pointer() + __rseq_offset;
        nursery.rseq_bytes = 32;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long pid = rv_stub_maker_fork(&nursery);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stacks, NURSERY_BYTES);
    return pid;
}

struct rv_stub_maker *rv_stub_maker_start(int ram_fd, char *why, size_t why_bytes)
{
    int sockets[2] = {-1, -1}, text = -1;
    long pid = -1;
    struct rv_stub_maker *maker = calloc(1, sizeof(*maker));
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT)) {
        snprintf(why, why_bytes, "the kernel does not let programs set FS and GS bases");
    } else if (!maker || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) ||
               (text = memory_file("rayvisor-stub-text", rv_stub_text,
                                   (size_t)(rv_stub_text_end - rv_stub_text), STUB_PAGE)) < 0) {
        snprintf(why, why_bytes, "no process for guest code: %s", strerror(errno));
    } else {
        pid = fork_maker(sockets[1], ram_fd, text);
        if (pid < 0)
            snprintf(why, why_bytes, "no process for guest code: %s", strerror((int)-pid));
    }
    if (text >= 0)
        close(text);
    if (sockets[1] >= 0)
        close(sockets[1]);
    if (pid < 0) {
        if (sockets[0] >= 0)
            close(sockets[0]);
        free(maker);
        return NULL;
    }
    struct timeval patience = {.tv_sec = GIVE_UP_MS / 1000};
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    maker->pid = (int)pid;
    maker->socket = sockets[0];
    return maker;
}

void rv_stub_maker_stop(struct rv_stub_maker *maker)
{
    close(maker->socket);
    kill(maker->pid, SIGKILL);
    while (waitpid(maker->pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
    free(maker);
}

static bool send_window(const struct rv_stub_maker *maker, uint64_t base, int window)
{
    struct rv_stub_request request = {.base = base};
    struct iovec part = {.iov_base = &request, .iov_len = sizeof(request)};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    memcpy(CMSG_DATA(&control.header), &window, sizeof(window));
    return sendmsg(maker->socket, &message, MSG_NOSIGNAL) == (ssize_t)sizeof(request);
}

static int take_listener(const struct rv_stub_maker *maker, struct rv_stub_reply *reply)
{
    struct iovec part = {.iov_base = reply, .iov_len = sizeof(*reply)};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    int fd = -1;
    if (recvmsg(maker->socket, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*reply) ||
        message.msg_controllen < CMSG_LEN(sizeof(int)))
        return -1;
    memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
    return fd;
}

/* The next question of the runner or the mapper. 0, or -1 when both are gone. */
static int next_question(struct rv_stub *s, struct seccomp_notif *asked, int timeout_ms)
{
    for (;;) {
        struct pollfd ready = {.fd = s->listener, .events = POLLIN};
        int count = poll(&ready, 1, timeout_ms);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0 || !(ready.revents & POLLIN))
            return -1;
        memset(asked, 0, sizeof(*asked));
        if (!ioctl(s->listener, SECCOMP_IOCTL_NOTIF_RECV, asked))
            return 0;
        if (errno != EINTR && errno != ENOENT)
            return -1;
    }
}

static int reply_to(struct rv_stub *s, uint64_t *ask)
{
    struct seccomp_notif_resp answer = {.id = *ask};
    *ask = 0;
    return ioctl(s->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) ? -1 : 0;
}

static bool in_signals(const struct rv_stub *s, uint64_t address, uint64_t bytes, uint64_t *at)
{
    *at = address - (s->base + STUB_SIGNALS * STUB_PAGE);
    return *at <= STUB_SIGNAL_BYTES && bytes <= STUB_SIGNAL_BYTES - *at;
}

/* Where the kernel lays down the first frame on an empty signal stack: always there. A frame below
 * it is one of a signal in the handler, and tells nothing that the first does not. */
static int find_frame(struct rv_stub *s, const __u64 *handler_arguments)
{
    if (!in_signals(s, handler_arguments[1], sizeof(siginfo_t), &s->info) ||
        !in_signals(s, handler_arguments[2], offsetof(ucontext_t, uc_sigmask), &s->frame))
        return -1;
    const mcontext_t *context = &((ucontext_t *)(s->signals + s->frame))->uc_mcontext;
    s->registers->stack = handler_arguments[2] - sizeof(uint64_t); /* the frame's first word */
    return in_signals(s, (uint64_t)(uintptr_t)context->fpregs, 512, &s->fx) ? 0 : -1;
}

/* Both ask once they have begun; the runner by way of its first trap. */
static int hear_both(struct rv_stub *s)
{
    while (!s->runner_ask || !s->mapper_ask) {
        struct seccomp_notif asked;
        if (next_question(s, &asked, GIVE_UP_MS))
            return -1;
        if ((int)asked.pid == s->mapper) {
            s->mapper_ask = asked.id;
        } else {
            s->runner_ask = asked.id;
            if (find_frame(s, asked.data.args))
                return -1;
        }
    }
    return 0;
}

/* Let go of all that the maker left in the stub. */
static int clear_space(struct rv_stub *s)
{
    uint64_t end = s->base + STUB_BYTES;
    s->commands->list[0] = (struct rv_stub_command){SYS_munmap, {0, s->base}, 0};
    s->commands->list[1] = (struct rv_stub_command){SYS_munmap, {end, STUB_USER_END - end}, 0};
    s->commands->count = 2;
    return rv_stub_map(s);
}

struct rv_stub *rv_stub_new(struct rv_stub_maker *maker, uint64_t base, bool trap_cpuid)
{
    struct rv_stub *s = calloc(1, sizeof(*s));
    struct rv_stub_reply reply;
    size_t room = STUB_BYTES - STUB_PAGE;
    int window = memory_file("rayvisor-stub", NULL, 0, room);
    void *memory = window < 0 ? MAP_FAILED
                              : mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, window, 0);
    if (s)
        s->listener = s->runner_fd = -1;
    if (!s || memory == MAP_FAILED)
        goto failed;
    s->base = base;
    s->commands = memory;
    s->registers = (void *)((uint8_t *)memory + STUB_PAGE);
    s->signals = (uint8_t *)memory + (STUB_SIGNALS - 1) * STUB_PAGE;
    struct rv_stub_setup *setup = (void *)s->signals;
    setup->trap_cpuid = trap_cpuid;
    rv_stub_filters(setup, base, (uint64_t)(uintptr_t)__ehdr_start, (uint64_t)(uintptr_t)_end);
    if (!send_window(maker, base, window) || (s->listener = take_listener(maker, &reply)) < 0)
        goto failed;
    uint64_t flags = SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP;
    ioctl(s->listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags); /* faster where it is known */
    s->runner = reply.runner;
    s->mapper = reply.mapper;
    s->runner_fd = (int)syscall(SYS_pidfd_open, s->runner, 0);
    if (s->runner_fd < 0 || hear_both(s))
        goto failed;
    s->traps_cpuid = setup->trap_cpuid;
    if (clear_space(s))
        goto failed;
    close(window);
    return s;
failed:
    if (window >= 0)
        close(window);
    if (s) {
        s->commands = memory == MAP_FAILED ? NULL : memory;
        rv_stub_free(s);
    } else if (memory != MAP_FAILED) {
        munmap(memory, room);
    }
    return NULL;
}

void rv_stub_free(struct rv_stub *s)
{
    if (s->runner > 0)
        kill(s->runner, SIGKILL);
    if (s->mapper > 0)
        kill(s->mapper, SIGKILL);
    if (s->listener >= 0)
        close(s->listener);
    if (s->runner_fd >= 0)
        close(s->runner_fd);
    if (s->commands)
        munmap(s->commands, STUB_BYTES - STUB_PAGE);
    free(s);
}

int rv_stub_map(struct rv_stub *s)
{
    struct seccomp_notif asked;
    if (!s->mapper_ask || reply_to(s, &s->mapper_ask))
        return -1;
    if (next_question(s, &asked, GIVE_UP_MS) || (int)asked.pid != s->mapper)
        return -1;
    s->mapper_ask = asked.id;
    return asked.data.args[0] ? -1 : 0;
}

/* A field of the first signal frame. What lies there is the guest's word. */
#define FRAME(s, at, type) (*(type *)((s)->signals + (at)))

static void read_trap(const struct rv_stub *s, struct rv_stub_trap *trap)
{
    /* Where the registers are that instructions number 0 to 15. */
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                      REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                      REG_R12, REG_R13, REG_R14, REG_R15};
    const siginfo_t *info = &FRAME(s, s->info, siginfo_t);
    const greg_t *gregs = FRAME(s, s->frame, ucontext_t).uc_mcontext.gregs;
    trap->signal = info->si_signo;
    trap->arch = info->si_arch;
    trap->call_at = (uint64_t)(uintptr_t)info->si_call_addr;
    trap->vector = (uint64_t)gregs[REG_TRAPNO];
    trap->error = (uint64_t)gregs[REG_ERR];
    trap->cr2 = (uint64_t)gregs[REG_CR2];
    for (int i = 0; i < 16; i++)
        trap->gpr[i] = (uint64_t)gregs[order[i]];
    trap->rip = (uint64_t)gregs[REG_RIP];
    trap->cs = (uint64_t)gregs[REG_CSGSFS] & 0xffff;
    trap->rflags = (uint64_t)gregs[REG_EFL];
    memcpy(trap->fx, s->signals + s->fx, sizeof(trap->fx));
}

int rv_stub_run(struct rv_stub *s, struct rv_stub_trap *trap)
{
    struct seccomp_notif asked;
    FRAME(s, s->info, siginfo_t).si_signo = 0;
    if (!s->runner_ask || reply_to(s, &s->runner_ask))
        return -1;
    if (next_question(s, &asked, -1) || (int)asked.pid != s->runner)
        return -1;
    s->runner_ask = asked.id;
    read_trap(s, trap);
    return 0;
}

void rv_stub_interrupt(struct rv_stub *s, bool told)
{
    struct pollfd ends = {.fd = s->runner_fd, .events = POLLIN};
    if (poll(&ends, 1, 0) > 0)
        kill(s->mapper, SIGKILL); /* it alone keeps the listener open */
    else if (!told)
        syscall(SYS_pidfd_send_signal, s->runner_fd, SIGUSR1, NULL, 0);
}
