/* Work of the kernel: system calls, page faults, processes. */
#define _GNU_SOURCE
#include "workloads.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t kernel_getppid(unsigned scale) {
    uint64_t sum = 0, parent = (uint64_t)getppid();
    for (unsigned i = 0; i < 1000000 / scale; i++)
        sum += (uint64_t)syscall(SYS_getppid) == parent;
    return sum;
}

uint64_t kernel_faults(unsigned scale) {
    uint64_t sum = 0;
    size_t pages = 2000;
    for (unsigned times = 0; times < 100 / scale; times++) {
        uint8_t *area = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        madvise(area, pages * 4096, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < pages; i++)
            sum += area[i * 4096]++ + 1u;
        munmap(area, pages * 4096);
    }
    return sum;
}

uint64_t kernel_fork_exec(unsigned scale) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < 500 / scale; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            execl(program_path, program_path, "--nothing", (char *)NULL);
            _exit(1);
        }
        int status = 1;
        waitpid(pid, &status, 0);
        sum += status == 0;
    }
    return sum;
}

uint64_t kernel_pipe(unsigned scale) {
    int out[2], in[2];
    uint64_t sum = 0;
    unsigned turns = 50000 / scale;
    if (pipe(out) || pipe(in))
        return 0;
    pid_t pid = fork();
    char byte = 1;
    if (pid == 0) {
        for (unsigned i = 0; i < turns; i++)
            if (read(out[0], &byte, 1) != 1 || write(in[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (unsigned i = 0; i < turns; i++)
        sum += write(out[1], &byte, 1) == 1 && read(in[0], &byte, 1) == 1;
    waitpid(pid, NULL, 0);
    return sum;
}
