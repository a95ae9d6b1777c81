/* usage: ring3 [SECTION...]              prints the sections' lines
 *        ring3 --storm PROCESSES ROUNDS  runs them in many processes at once, all signalled
 *        ring3 --until PROCESSES SECONDS the same until the time is over
 *        ring3 --list */
#define _GNU_SOURCE
#include "ring3.h"
#include "storm.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *program_path;

static char text[1 << 16];
static size_t text_bytes;

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(text + text_bytes, sizeof text - text_bytes, format, arguments);
    va_end(arguments);
    REQUIRE(wrote >= 0 && text_bytes + (size_t)wrote + 1 < sizeof text);
    text_bytes += (size_t)wrote;
    text[text_bytes++] = '\n';
    text[text_bytes] = 0;
}

const struct section sections[] = {
    {"privileged", ring3_privileged},
    {"undefined", ring3_undefined},
    {"int-n", ring3_int_n},
    {"popf", ring3_popf},
    {"pages", ring3_pages},
    {"addresses", ring3_addresses},
    {"mappings", ring3_mappings},
    {"large", ring3_large},
    {"stack", ring3_stack},
    {"fixups", ring3_fixups},
    {"contexts", ring3_contexts},
    {"nested", ring3_nested},
    {"x87", ring3_x87},
    {"sse", ring3_sse},
    {"fpu-switch", ring3_fpu_switch},
    {"steps", ring3_steps},
    {"breakpoints", ring3_breakpoints},
    {"tracing", ring3_tracing},
    {"watch", ring3_watch},
    {"threads", ring3_threads},
    {"bases", ring3_bases},
    {"futex", ring3_futex},
    {"jit", ring3_jit},
    {"aliases", ring3_aliases},
    {"segments", ring3_segments},
    {"ldt", ring3_ldt},
    {"compat", ring3_compat},
    {"vsyscall", ring3_vsyscall},
    {"clocks", ring3_clocks},
    {"forks", ring3_forks},
    {"jumps", ring3_jumps},
    {"exact-alignment", ring3_exact_alignment},
    {"exact-compat", ring3_exact_compat},
    {"exact-int-6", ring3_exact_int_6},
    {"exact-instructions", ring3_exact_instructions},
    {"exact-segments", ring3_exact_segments},
    {"exact-stack", ring3_exact_stack},
    {"exact-x87", ring3_exact_x87},
    {"exact-sse", ring3_exact_sse},
    {"exact-watch", ring3_exact_watch},
};
const size_t section_count = sizeof sections / sizeof *sections;

const char *run_section(size_t number) {
    text_bytes = 0;
    text[0] = 0;
    catch_faults();
    sections[number].run();
    return text;
}

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
        if (i == section_count || count == (int)section_count)
            return -1;
        chosen[count++] = i;
    }
    return count;
}

int main(int argc, char **argv) {
    size_t chosen[sizeof sections / sizeof *sections];
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
    puts("ring3 done");
    return 0;
}
