/* User programs whose speed in a VM is worth knowing.
 *
 * Each workload divides its work by `scale`: 1 is what the tables are made with. It returns a
 * checksum, which keeps the compiler from dropping the work and must be the same everywhere. */
#ifndef WORKLOADS_H
#define WORKLOADS_H

#include <stdint.h>

uint64_t cpu_sha256(unsigned scale);
uint64_t cpu_sieve(unsigned scale);
uint64_t cpu_quicksort(unsigned scale);
uint64_t cpu_interpreter(unsigned scale);
uint64_t cpu_nbody(unsigned scale);
uint64_t cpu_matmul(unsigned scale);
uint64_t cpu_chase(unsigned scale);
uint64_t cpu_copy(unsigned scale);

uint64_t kernel_getppid(unsigned scale);
uint64_t kernel_pipe(unsigned scale);
uint64_t kernel_faults(unsigned scale);
uint64_t kernel_fork_exec(unsigned scale);

/* These run programs of Debian's: busybox and tcc. */
uint64_t tools_find(unsigned scale);
uint64_t tools_shell(unsigned scale);
uint64_t tools_compile(unsigned scale);

/* Makes the C file that tools_compile compiles; not part of its time. */
void tools_prepare(void);

/* How this program was started, for kernel_fork_exec. */
extern const char *program_path;
/* The folder with bin/, include/ and lib/ of the tools, and the tree that tools_find walks. */
extern const char *tools_root, *tree_root;

#endif
