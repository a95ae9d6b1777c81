/*
 * IN and OUT, interposed (see engine.h).
 *
 * Unicorn has hooks for both, but works out RIP for each access, which costs more than the rest
 * of it, and asks nobody for permission. Here RIP is looked up by the translated code that is
 * doing the access, and remembered until that code is dropped.
 */
#ifndef RV_PORTIO_H
#define RV_PORTIO_H

#include <stdint.h>

uint8_t rv_in_8(void *uc, uint32_t port, uintptr_t retaddr);
uint16_t rv_in_16(void *uc, uint32_t port, uintptr_t retaddr);
uint32_t rv_in_32(void *uc, uint32_t port, uintptr_t retaddr);
void rv_out_8(void *uc, uint32_t port, uint8_t value, uintptr_t retaddr);
void rv_out_16(void *uc, uint32_t port, uint16_t value, uintptr_t retaddr);
void rv_out_32(void *uc, uint32_t port, uint32_t value, uintptr_t retaddr);

/* Interposed: translated code is dropped, and its addresses will be used again. */
void rv_flush_code(void *cpu);

#endif
