/* A guest's user program that wants out: system calls by every door, forged frames, mappings
 * without end. It prints what it got, which must be what a native Linux gives it. */
#ifndef ATTACK_H
#define ATTACK_H

#include "../ring3/ring3.h"

void attack_calls(void);
void attack_sysenter(void);
void attack_stepped(void);
void attack_returns(void);
void attack_frames(void);
void attack_bases(void);
void attack_own_pages(void);
void attack_holes(void);
void attack_pieces(void);
void attack_edges(void);
void attack_crossing(void);
void attack_beside(void);
void attack_low(void);
void attack_blocked(void);
void attack_stopped(void);
void attack_seccomp(void);
void attack_clock(void);
void attack_no_vsyscall(void);
void attack_newer(void);
void attack_ports(void);
void attack_given(void);

/* Runs `body` in a child; a line with how it ended. */
void say_child(const char *name, void (*body)(void));

#endif
