/*
 * The seccomp filters of a stub. Each system call is judged by where it was made.
 *
 * `both` is installed first and lets this library's own pages do as they like, for the stub is
 * still beginning; `mapper` and `runner` come last and take that away. Of two filters the
 * stricter answer counts, and a notification is stricter than leave.
 */
#include "stub_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
#define IP_LOW FIELD(instruction_pointer)
#define IP_HIGH (FIELD(instruction_pointer) + 4)

static void add(struct rv_stub_program *p, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
    p->list[p->count++] = (struct sock_filter){.code = code, .jt = yes, .jf = no, .k = k};
}

static void load(struct rv_stub_program *p, uint32_t field)
{
    add(p, BPF_LD | BPF_W | BPF_ABS, field, 0, 0);
}

static void answer(struct rv_stub_program *p, uint32_t action)
{
    add(p, BPF_RET | BPF_K, action, 0, 0);
}

/* `action` for a call made by this architecture's instruction just before `ip`, if its number is
 * one of `numbers`. */
static void rule(struct rv_stub_program *p, uint64_t ip, const uint32_t *numbers, uint8_t count,
                 uint32_t action)
{
    load(p, IP_HIGH);
    add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(ip >> 32), 0, (uint8_t)(count + 4));
    load(p, IP_LOW);
    add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)ip, 0, (uint8_t)(count + 2));
    load(p, FIELD(nr));
    for (uint8_t i = 0; i < count; i++)
        add(p, BPF_JMP | BPF_JEQ | BPF_K, numbers[i], (uint8_t)(count - 1 - i),
            i == count - 1 ? 1 : 0);
    answer(p, action);
}

static void foreign(struct rv_stub_program *p, uint32_t action)
{
    load(p, FIELD(arch));
    add(p, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    answer(p, action);
}

void rv_stub_filters(struct rv_stub_setup *setup, uint64_t base, uint64_t own_start,
                     uint64_t own_end)
{
    static const uint32_t ask[] = {SYS_pause}, map[] = {SYS_mmap, SYS_munmap, SYS_mprotect};
    uint64_t runner_asked = base + (uint64_t)(rv_stub_runner_asked - rv_stub_text);
    uint64_t mapper_asked = base + (uint64_t)(rv_stub_mapper_asked - rv_stub_text);
    uint64_t mapper_called = base + (uint64_t)(rv_stub_mapper_called - rv_stub_text);
    struct rv_stub_program *p = &setup->both;

    p->count = 0;
    foreign(p, SECCOMP_RET_TRAP);
    rule(p, runner_asked, ask, 1, SECCOMP_RET_USER_NOTIF);
    rule(p, mapper_asked, ask, 1, SECCOMP_RET_USER_NOTIF);
    rule(p, mapper_called, map, 3, SECCOMP_RET_ALLOW);
    /* Inside this library: the stub begins. The library does not cross a 4 GiB line twice. */
    load(p, IP_HIGH);
    add(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(own_start >> 32), 0, 3);
    load(p, IP_LOW);
    add(p, BPF_JMP | BPF_JGE | BPF_K, (uint32_t)own_start, 0, 1);
    add(p, BPF_JMP | BPF_JGE | BPF_K, (uint32_t)own_end, 0, 1);
    answer(p, SECCOMP_RET_TRAP);
    answer(p, SECCOMP_RET_ALLOW);

    p = &setup->mapper;
    p->count = 0;
    foreign(p, SECCOMP_RET_KILL_PROCESS);
    rule(p, mapper_asked, ask, 1, SECCOMP_RET_ALLOW);
    rule(p, mapper_called, map, 3, SECCOMP_RET_ALLOW);
    answer(p, SECCOMP_RET_KILL_PROCESS);

    p = &setup->runner;
    p->count = 0;
    foreign(p, SECCOMP_RET_TRAP);
    rule(p, runner_asked, ask, 1, SECCOMP_RET_ALLOW);
    answer(p, SECCOMP_RET_TRAP);
}
