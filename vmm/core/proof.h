/* Proof that this Unicorn is laid out as unicorn_private.h says. */
#ifndef RV_PROOF_H
#define RV_PROOF_H

#include <stddef.h>

/* Make a small engine, write through the public interface and look at the private fields; run
 * code and watch the private hooks work. 0, or -1 with one line in `why`. Takes some ms. */
int rv_prove_layout(char *why, size_t why_bytes);

#endif
