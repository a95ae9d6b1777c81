/*
 * The bases of FS and GS. What is no canonical address is a #GP (Intel SDM 2D, WRFSBASE and WRGSBASE;
 * WRMSR), which the engine does not raise; and a processor cannot be resumed with one.
 */
#ifndef RV_BASES_H
#define RV_BASES_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t rv_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16);
}

/* Whether `value` in an MSR that holds an address is a #GP. */
bool rv_address_msr_refused(uint32_t index, uint64_t value);

/* Interposed (see engine.h): what translated code calls before RDFSBASE and the like. */
void rv_test_cr4(void *env, uint32_t bit);

#endif
