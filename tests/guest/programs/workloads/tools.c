/* Programs as people run them: a walk over the file system, a shell script, a compiler.
 *
 * All are Debian's, below tools_root. The compiler is linked dynamically, so it is started
 * through the dynamic linker that lies beside it, and so is what it makes. */
#define _GNU_SOURCE
#include "workloads.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FUNCTIONS = 1000, PATH_BYTES = 512 };

static char source[64], compiled[64];

/* A path below tools_root; never freed. */
static char *below(const char *path) {
    char *full = malloc(PATH_BYTES);
    if (!full || snprintf(full, PATH_BYTES, "%s/%s", tools_root, path) >= PATH_BYTES)
        abort();
    return full;
}

/* Runs a program to its end; a checksum of its output and its lines. Ends this one if it fails. */
static uint64_t run(char *const *words) {
    int ends[2], status = -1;
    char bytes[4096];
    uint64_t sum = 0;
    if (pipe(ends))
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(words[0], words);
        _exit(127);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            sum += bytes[i] == '\n';
    close(ends[0]);
    if (waitpid(pid, &status, 0) != pid || status) {
        fprintf(stderr, "workloads: %s ended with status %#x\n", words[0], (unsigned)status);
        exit(1);
    }
    return sum;
}

/* The file system of the machine, /proc and /sys left out; how many C headers it holds. */
uint64_t tools_find(unsigned scale) {
    char *words[] = {below("bin/busybox"), "find",  (char *)(uintptr_t)tree_root,
                     "-xdev",              "-type", "f",
                     "-name",              "*.h",   NULL};
    uint64_t sum = 0;
    for (unsigned i = 0; i < (20 + scale - 1) / scale; i++)
        sum += run(words);
    return sum;
}

/* Arithmetic, subshells, pipes and programs, as scripts mix them. */
uint64_t tools_shell(unsigned scale) {
    static const char script[] = "i=0\n"
                                 "while [ $i -lt $1 ]; do\n"
                                 "  i=$((i + 1))\n"
                                 "  case $((i % 50)) in\n"
                                 "    0) echo \"$(echo $i)\" ;;\n"
                                 "    1) echo $i | \"$0\" cat ;;\n"
                                 "    2) \"$0\" true ;;\n"
                                 "  esac\n"
                                 "done\n";
    char count[16];
    snprintf(count, sizeof count, "%u", 10000 / scale);
    char *busybox = below("bin/busybox");
    char *words[] = {busybox, "sh", "-c", (char *)(uintptr_t)script, busybox, count, NULL};
    return run(words);
}

void tools_prepare(void) {
    snprintf(source, sizeof source, "/tmp/workload-%d.c", (int)getpid());
    snprintf(compiled, sizeof compiled, "/tmp/workload-%d", (int)getpid());
    FILE *file = fopen(source, "w");
    if (!file)
        abort();
    fputs("#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
          "#include <sys/stat.h>\n#include <unistd.h>\n",
          file);
    for (unsigned i = 0; i < FUNCTIONS; i++)
        fprintf(file,
                "static long f%u(long a, long b) {\n"
                "    long sum = %u;\n"
                "    for (long i = a; i < b; i++) {\n"
                "        switch ((i * %uL ^ sum) & 3) {\n"
                "        case 0: sum += i; break;\n"
                "        case 1: sum ^= a << (i & 7); break;\n"
                "        default: sum -= b / (i + 1) + (long)strlen(\"f%u\");\n"
                "        }\n"
                "    }\n"
                "    return sum;\n"
                "}\n",
                i, i * 7, i | 1, i);
    fputs("int main(void) {\n    long sum = 0;\n", file);
    for (unsigned i = 0; i < FUNCTIONS; i++)
        fprintf(file, "    sum += f%u(%u, 20);\n", i, i % 10);
    fputs("    for (sum &= 255; sum >= 0; sum--)\n        puts(\"line\");\n    return 0;\n}\n", file);
    if (fclose(file))
        abort();
}

/* A file of 12,000 lines, compiled and linked, and its program run. */
uint64_t tools_compile(unsigned scale) {
    char *loader = below("lib/ld-linux-x86-64.so.2"), *libraries = below("lib");
    char *compiler[] = {loader,
                                 "--library-path",
                                 libraries,
                                 below("bin/tcc"),
                                 "-B",
                                 below("lib/tcc"),
                                 "-nostdinc",
                                 "-I",
                                 below("include"),
                                 "-I",
                                 below("include/x86_64-linux-gnu"),
                                 "-I",
                                 below("lib/tcc/include"),
                                 "-nostdlib",
                                 "-L",
                                 libraries,
                                 "-o",
                                 compiled,
                                 below("lib/crt1.o"),
                                 below("lib/crti.o"),
                                 source,
                                 below("lib/libc.so.6"),
                                 below("lib/tcc/libtcc1.a"),
                                 below("lib/crtn.o"),
                                 NULL};
    char *program[] = {loader, "--library-path", libraries, compiled, NULL};
    uint64_t sum = 0;
    for (unsigned i = 0; i < (10 + scale - 1) / scale; i++) {
        sum += run(compiler);
        sum = sum * 31 + run(program);
    }
    unlink(source);
    unlink(compiled);
    return sum;
}
