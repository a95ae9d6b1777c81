#include "../ring3/storm.h"
#include "attack.h"

/* Those that begin with guest- are for guests: a host need not let them, or would suffer. */
const struct section sections[] = {
    {"calls", attack_calls},
    {"returns", attack_returns},
    {"frames", attack_frames},
    {"bases", attack_bases},
    {"own-pages", attack_own_pages},
    {"holes", attack_holes},
    {"pieces", attack_pieces},
    {"edges", attack_edges},
    {"crossing", attack_crossing},
    {"beside", attack_beside},
    {"blocked", attack_blocked},
    {"stopped", attack_stopped},
    {"seccomp", attack_seccomp},
    {"clock", attack_clock},
    {"sysenter", attack_sysenter},
    {"exact-stepped", attack_stepped},
    {"guest-no-vsyscall", attack_no_vsyscall},
    {"guest-newer", attack_newer},
    {"guest-low", attack_low},
    {"guest-ports", attack_ports},
    {"guest-given", attack_given},
};
const size_t section_count = sizeof sections / sizeof *sections;
