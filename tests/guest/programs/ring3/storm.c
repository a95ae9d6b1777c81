#define _GNU_SOURCE
#include "storm.h"
#include "ring3.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Shared by all: who is there to be signalled. */
static volatile pid_t *members;
static unsigned member_count, my_number;
static volatile unsigned signalled;
static char **wanted_texts;

/* Spoils every register file, and passes the signal on: the kernel has to give all back. */
static void gust(int number) {
    volatile float one = 1.0f;
    __asm__ volatile("fninit\n\tfldpi\n\tfldz\n\tpcmpeqb %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm7\n\t"
                     "movdqa %%xmm0, %%xmm15\n\tstd\n\tcld"
                     :
                     :
                     : "xmm0", "xmm7", "xmm15", "cc", "memory");
    one = one / 3;
    signalled++;
    pid_t next = members[(my_number + 1 + signalled % 7) % member_count];
    if (number == SIGPROF && next > 0)
        kill(next, SIGUSR1);
}

static void compare(size_t number, const char *text) {
    const char *wanted = wanted_texts[number];
    if (!strcmp(text, wanted))
        return;
    while (*text && *text == *wanted)
        text++, wanted++;
    while (text[-1] && text[-1] != '\n')
        text--, wanted--;
    dprintf(STDOUT_FILENO, "BROKEN: [%s] in process %u: \"%.*s\", expected \"%.*s\"\n",
            sections[number].name, my_number, (int)strcspn(text, "\n"), text,
            (int)strcspn(wanted, "\n"), wanted);
    _exit(1);
}

_Noreturn static void member(const struct storm *wanted, time_t end) {
    struct sigaction action = {.sa_flags = SA_RESTART | SA_ONSTACK, .sa_handler = gust};
    /* Of CPU time, or a slow machine would do nothing but handle signals. */
    struct itimerval often = {{0, 4000}, {0, 3000 + (int)my_number % 7 * 1000}};
    sigaddset(&action.sa_mask, SIGPROF);
    sigaddset(&action.sa_mask, SIGUSR1);
    catch_faults();
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGPROF, &action, NULL);
    members[my_number] = getpid();
    setitimer(ITIMER_PROF, &often, NULL);
    for (unsigned round = 0; wanted->rounds ? round < wanted->rounds : time(NULL) < end; round++)
        for (size_t i = 0; i < wanted->count; i++) {
            size_t number = wanted->chosen[(i + my_number * 5 + round) % wanted->count];
            compare(number, run_section(number));
        }
    members[my_number] = 0;
    _exit(0);
}

int storm_run(const struct storm *wanted) {
    int failed = 0;
    time_t end = time(NULL) + wanted->seconds;
    members = mmap(NULL, STORM_PROCESSES * sizeof *members, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    wanted_texts = calloc(section_count, sizeof *wanted_texts);
    REQUIRE(members != MAP_FAILED && wanted_texts);
    member_count = wanted->processes;
    for (size_t i = 0; i < wanted->count; i++) {
        size_t number = wanted->chosen[i];
        const char *text = run_section(number);
        wanted_texts[number] = malloc(strlen(text) + 2);
        REQUIRE(wanted_texts[number]);
        *wanted_texts[number]++ = 0;
        strcpy(wanted_texts[number], text);
        printf("%s %016llx\n", sections[number].name,
               (unsigned long long)digest(text, strlen(text)));
    }
    fflush(stdout);
    for (my_number = 0; my_number < member_count; my_number++) {
        pid_t pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0)
            member(wanted, end);
    }
    for (unsigned i = 0; i < member_count; i++) {
        int status = -1;
        REQUIRE(wait(&status) > 0);
        if (status)
            printf("BROKEN: a process ended with status %#x\n", (unsigned)status);
        failed |= status != 0;
    }
    puts(failed ? "storm failed" : "storm done");
    return failed;
}
