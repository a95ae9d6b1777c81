/* A 32-bit program, and 32-bit code inside this one. */
#define _GNU_SOURCE
#include "ring3.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs ring3_32, which lies beside this program, and takes over its lines. */
static void run_other(const char *how) {
    char path[512], line[256];
    int ends[2], status = -1;
    snprintf(path, sizeof path, "%s_32", program_path);
    REQUIRE(pipe(ends) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        /* A timer would live on in the new program, which has no handler for it. */
        execl(path, path, how, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    FILE *in = fdopen(ends[0], "r");
    REQUIRE(in);
    while (fgets(line, sizeof line, in)) {
        line[strcspn(line, "\n")] = 0;
        say("%s", line);
    }
    fclose(in);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    say("status %#x", (unsigned)status);
}

void ring3_compat(void) { run_other(NULL); }

/* With the limits of segments checked. */
void ring3_exact_compat(void) { run_other("exact"); }
