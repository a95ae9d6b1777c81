#include "check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

const char *program_path;

static uint64_t digest_state, random_state;
static int tracing;

void digest_start(uint64_t seed) {
    digest_state = 0xCBF29CE484222325u ^ seed;
    random_state = 0x9E3779B97F4A7C15u * (seed + 1);
}

uint64_t digest_end(void) {
    uint64_t h = digest_state;
    h ^= h >> 33;
    h *= 0xFF51AFD7ED558CCDu;
    return h ^ h >> 33;
}

void mix(uint64_t value) {
    if (tracing)
        printf("  %016llx\n", (unsigned long long)value);
    digest_state = (digest_state ^ value) * 0x9E3779B97F4A7C15u;
    digest_state ^= digest_state >> 29;
}

void mix_bytes(const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    for (uint64_t word; count >= 8; at += 8, count -= 8) {
        memcpy(&word, at, 8);
        mix(word);
    }
    while (count--)
        mix(*at++);
}

uint64_t rnd(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

uint64_t edge(void) {
    static const uint64_t edges[] = {
        0,          1,          2,
        0x7F,       0x80,       0xFF,
        0x100,      0x7FFF,     0x8000,
        0xFFFF,     0x7FFFFFFF, 0x80000000,
        0xFFFFFFFF, 1ull << 32, 0x7FFFFFFFFFFFFFFF,
        1ull << 63, ~0ull,      0x0F0F0F0F0F0F0F0F,
    };
    uint64_t r = rnd();
    if (r & 3)
        return rnd();
    return edges[(r >> 2) % (sizeof edges / sizeof *edges)];
}

void broken(const char *file, int line, const char *what) {
    const char *name = strrchr(file, '/');
    fflush(stdout);
    dprintf(STDOUT_FILENO, "BROKEN %s:%d: %s\n", name ? name + 1 : file, line, what);
    _exit(1);
}

static const struct {
    const char *name;
    check_fn run;
} sections[] = {
    {"integer", check_integer},
    {"shifts", check_shifts},
    {"multiply", check_multiply},
    {"legacy", check_legacy},
    {"x87", check_x87},
    {"vector-int", check_vector_int},
    {"vector-float", check_vector_float},
    {"strings", check_strings},
    {"locks", check_locks},
    {"faults", check_faults},
    {"traps", check_traps},
    {"memory", check_memory},
    {"signals", check_signals},
    {"timers", check_timers},
    {"steps", check_steps},
    {"processes", check_processes},
    {"pipes", check_pipes},
    {"calls", check_calls},
    {"code", check_code},
};

/* A child of the section `processes`: its answer is its exit status. */
static int child(const char *argument, const char *environment) {
    unsigned n = (unsigned)strtoul(argument, NULL, 10);
    return environment && (unsigned)strtoul(environment, NULL, 10) == n * 3 ? (int)(n * 7 % 251)
                                                                            : 255;
}

static void tick(int number) { (void)number; }

/* Nothing but a timer interrupt every `microseconds`, for ever: the clock of a busy machine. */
_Noreturn static void tick_for_ever(unsigned microseconds) {
    struct itimerval often = {{0, microseconds}, {0, microseconds}};
    signal(SIGALRM, tick);
    setitimer(ITIMER_REAL, &often, NULL);
    for (;;)
        pause();
}

static int usage(void) {
    dprintf(STDERR_FILENO, "usage: selfcheck [--rounds N | --trace] [SECTION...]\n"
                           "       selfcheck --tick MICROSECONDS\n");
    return 2;
}

int main(int argc, char **argv) {
    unsigned rounds = 1;
    int first = 1;
    program_path = argv[0];
    if (argc == 3 && !strcmp(argv[1], "--child"))
        return child(argv[2], getenv("SELFCHECK"));
    if (argc == 3 && !strcmp(argv[1], "--tick") && strtoul(argv[2], NULL, 10))
        tick_for_ever((unsigned)strtoul(argv[2], NULL, 10));
    if (argc >= 3 && !strcmp(argv[1], "--rounds")) {
        rounds = (unsigned)strtoul(argv[2], NULL, 10);
        first = 3;
    } else if (argc >= 2 && !strcmp(argv[1], "--trace")) {
        /* Every word that enters a digest, to find the first that differs. */
        tracing = 1;
        first = 2;
    }
    if (!rounds || (argc > first && argv[first][0] == '-'))
        return usage();
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        int wanted = argc == first;
        for (int a = first; a < argc; a++)
            wanted |= !strcmp(argv[a], sections[i].name);
        if (!wanted)
            continue;
        digest_start(i);
        uint64_t digest = sections[i].run(rounds);
        printf("%s %016llx\n", sections[i].name, (unsigned long long)digest);
        fflush(stdout);
    }
    puts("selfcheck done");
    return 0;
}
