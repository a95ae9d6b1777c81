/* What both ring3 and attack begin with.
 *
 * usage: ring3 [SECTION...]              prints the sections' lines
 *        ring3 --storm PROCESSES ROUNDS  runs them in many processes at once, all signalled
 *        ring3 --until PROCESSES SECONDS the same until the time is over
 *        ring3 --list */
#define _GNU_SOURCE
#include "ring3.h"
#include "storm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANY = 100 };

const char *program_path;

static int usage(void) {
    dprintf(STDERR_FILENO, "usage: ring3 [SECTION... | --list]\n"
                           "       ring3 --storm PROCESSES ROUNDS [SECTION...]\n"
                           "       ring3 --until PROCESSES SECONDS [SECTION...]\n");
    return 2;
}

/* The sections named from argv[first] on, or all. Gives how many, -1 for an unknown name. */
static int choose(int argc, char **argv, int first, size_t *chosen) {
    int count = 0;
    for (size_t i = 0; i < section_count && argc == first; i++)
        chosen[count++] = i;
    for (int a = first; a < argc; a++) {
        size_t i = 0;
        while (i < section_count && strcmp(argv[a], sections[i].name))
            i++;
        if (i == section_count || count == MANY)
            return -1;
        chosen[count++] = i;
    }
    return count;
}

int main(int argc, char **argv) {
    static size_t chosen[MANY];
    program_path = argv[0];
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (size_t i = 0; i < section_count; i++)
            puts(sections[i].name);
        return 0;
    }
    int storm = argc >= 4 && (!strcmp(argv[1], "--storm") || !strcmp(argv[1], "--until"));
    int count = choose(argc, argv, storm ? 4 : 1, chosen);
    if (count < 0)
        return usage();
    if (storm) {
        struct storm wanted = {.processes = (unsigned)strtoul(argv[2], NULL, 10),
                               .chosen = chosen,
                               .count = (size_t)count};
        unsigned limit = (unsigned)strtoul(argv[3], NULL, 10);
        *(!strcmp(argv[1], "--storm") ? &wanted.rounds : &wanted.seconds) = limit;
        return limit && wanted.processes && wanted.processes <= STORM_PROCESSES ? storm_run(&wanted)
                                                                                : usage();
    }
    for (int i = 0; i < count; i++) {
        printf("[%s]\n%s", sections[chosen[i]].name, run_section(chosen[i]));
        fflush(stdout);
    }
    puts("done");
    return 0;
}
