/* Many processes that run the sections at once, each hit by timers and by its neighbours. */
#ifndef RING3_STORM_H
#define RING3_STORM_H

#include <stddef.h>

#define STORM_PROCESSES 256u

struct section {
    const char *name;
    void (*run)(void);
};
extern const struct section sections[];
extern const size_t section_count;

/* Runs a section; its text, valid until the next. */
const char *run_section(size_t number);

struct storm {
    unsigned processes;
    unsigned rounds;  /* of all sections in each process; 0: as `seconds` says */
    unsigned seconds; /* after which no process begins a round */
    const size_t *chosen;
    size_t count;
};

/* Prints the digest of each section's text; 1 if any process saw another text. */
int storm_run(const struct storm *wanted);

#endif
