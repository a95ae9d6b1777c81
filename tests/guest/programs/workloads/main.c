/* usage: workloads NAME [SCALE [TOOLS TREE]]    prints: NAME nanoseconds checksum
 *        workloads --list                       prints: KIND NAME, a line each */
#include "workloads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *program_path, *tools_root = "/opt/tools", *tree_root = "/";

static const struct {
    const char *kind, *name;
    uint64_t (*run)(unsigned scale);
    void (*prepare)(void);
} workloads[] = {
    {"cpu", "sha256", cpu_sha256, NULL},
    {"cpu", "sieve", cpu_sieve, NULL},
    {"cpu", "quicksort", cpu_quicksort, NULL},
    {"cpu", "interpreter", cpu_interpreter, NULL},
    {"cpu", "nbody", cpu_nbody, NULL},
    {"cpu", "matmul", cpu_matmul, NULL},
    {"cpu", "chase", cpu_chase, NULL},
    {"cpu", "copy", cpu_copy, NULL},
    {"kernel", "getppid", kernel_getppid, NULL},
    {"kernel", "pipe", kernel_pipe, NULL},
    {"kernel", "faults", kernel_faults, NULL},
    {"kernel", "fork-exec", kernel_fork_exec, NULL},
    {"kernel", "find", tools_find, NULL},
    {"kernel", "shell", tools_shell, NULL},
    {"kernel", "compile", tools_compile, tools_prepare},
};
#define COUNT (sizeof workloads / sizeof *workloads)

static int list(void) {
    for (size_t i = 0; i < COUNT; i++)
        printf("%s %s\n", workloads[i].kind, workloads[i].name);
    return 0;
}

static int measure(size_t i, unsigned scale) {
    struct timespec start, end;
    if (workloads[i].prepare)
        workloads[i].prepare();
    clock_gettime(CLOCK_MONOTONIC, &start);
    uint64_t sum = workloads[i].run(scale);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%s %lld %016llx\n", workloads[i].name,
           (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec,
           (unsigned long long)sum);
    return 0;
}

int main(int argc, char **argv) {
    unsigned scale = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1;
    program_path = argv[0];
    if (argc == 2 && !strcmp(argv[1], "--nothing"))
        return 0;
    if (argc == 2 && !strcmp(argv[1], "--list"))
        return list();
    if (argc == 5) {
        tools_root = argv[3];
        tree_root = argv[4];
    }
    for (size_t i = 0; argc > 1 && scale && i < COUNT; i++)
        if (!strcmp(argv[1], workloads[i].name))
            return measure(i, scale);
    fprintf(stderr, "usage: workloads NAME [SCALE [TOOLS TREE]] | --list\n");
    return 2;
}
