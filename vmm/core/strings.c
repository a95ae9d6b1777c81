#include "strings.h"

#include <string.h>

#include "largepages.h"
#include "softtlb.h"
#include "vcpu.h"

#define PAGE 4096u
#define REP 0xf3u
#define REX_W 0x48u
#define MOVSB 0xa4u
#define STOSB 0xaau
#define WIDE 1u /* of an opcode: not bytes */
/* Fewer are not worth it. */
#define LEAST 8u

/* A kind: the size of an element as a power of two, and whether it is copied. Never 0. */
#define KIND 0x10u
#define KIND_COPY 0x20u
#define KIND_SHIFT 3u

enum { RAX, RCX, RSI = 6, RDI };

/* The guest's code at the beginning of a block, or NULL: it has been translated just now, so the TLB
 * has it, unless it lies in two pages. */
static const uint8_t *code_of(struct rv_vcpu *v, const void *block, uint32_t flags)
{
    uint64_t pc = RV_AT(block, BLOCK_PC, uint64_t);
    const struct rv_uc_tlb_entry *e = rv_tlb_entry(v->env, rv_tlb_mode(flags), pc);
    if (RV_AT(block, BLOCK_SECOND_PAGE, int64_t) != -1 || e->addr_code != (pc & TLB_PAGE_MASK))
        return NULL;
    return (const uint8_t *)(uintptr_t)(pc + e->addend);
}

uint32_t rv_string_kind(struct rv_vcpu *v, const void *block)
{
    uint32_t flags = RV_AT(block, BLOCK_FLAGS, uint32_t), shift = 0;
    uint16_t bytes = RV_AT(block, BLOCK_BYTES, uint16_t);
    if (!(flags & HF_CS64) || flags & RFLAGS_TF || bytes < 2 || bytes > 3)
        return 0;
    const uint8_t *code = code_of(v, block, flags);
    if (!code || code[0] != REP || (bytes == 3 && code[1] != REX_W))
        return 0;
    uint8_t opcode = code[bytes - 1];
    if ((opcode & ~WIDE) != MOVSB && (opcode & ~WIDE) != STOSB)
        return 0;
    if (opcode & WIDE)
        shift = bytes == 3 ? 3 : 2;
    return KIND | ((opcode & ~WIDE) == MOVSB ? KIND_COPY : 0) | shift;
}

/* Elements of 1 << `shift` bytes at `address` that lie in its page as a whole. */
static uint64_t in_page(uint64_t address, uint32_t shift)
{
    return (PAGE - (address & (PAGE - 1))) >> shift;
}

static void fill(uint8_t *to, uint64_t value, uint64_t count, uint32_t shift)
{
    if (shift == 0 || value == 0) {
        memset(to, (int)(value & 0xff), count << shift);
    } else if (shift == 3) {
        for (uint64_t i = 0; i < count; i++)
            memcpy(to + 8 * i, &value, 8);
    } else {
        for (uint64_t i = 0; i < count; i++)
            memcpy(to + 4 * i, &value, 4);
    }
}

void rv_string_ahead(void *env, uint32_t kind)
{
    uint64_t *gpr = &RV_AT(env, ENV_REGS, uint64_t), to = gpr[RDI], from = gpr[RSI];
    uint32_t shift = kind & KIND_SHIFT;
    if (gpr[RCX] < LEAST || RV_AT(env, ENV_DF, int32_t) < 0)
        return;
    int mode = rv_tlb_mode(RV_AT(env, ENV_HFLAGS, uint32_t) |
                           (uint32_t)(RV_AT(env, ENV_EFLAGS, uint64_t) & RFLAGS_AC));
    const struct rv_uc_tlb_entry *stores = rv_tlb_entry(env, mode, to);
    if (stores->addr_write != (to & TLB_PAGE_MASK))
        return;
    uint64_t count = gpr[RCX] - 1;
    if (in_page(to, shift) < count)
        count = in_page(to, shift);
    uint8_t *host_to = (uint8_t *)(uintptr_t)(to + stores->addend);
    if (kind & KIND_COPY) {
        const struct rv_uc_tlb_entry *loads = rv_tlb_entry(env, mode, from);
        if (loads->addr_read != (from & TLB_PAGE_MASK))
            return;
        if (in_page(from, shift) < count)
            count = in_page(from, shift);
        const uint8_t *host_from = (const uint8_t *)(uintptr_t)(from + loads->addend);
        /* What is copied first is read again later: one by one. */
        if ((uint64_t)(host_to - host_from) - 1 < (count << shift) - 1)
            return;
        memmove(host_to, host_from, count << shift);
        gpr[RSI] += count << shift;
    } else {
        uint64_t mask = shift == 3 ? ~(uint64_t)0 : ((uint64_t)1 << (8u << shift)) - 1;
        if (count << shift > PAGE / 2 && rv_current)
            rv_largepages_filled(rv_current, host_to);
        fill(host_to, gpr[RAX] & mask, count, shift);
    }
    gpr[RDI] += count << shift;
    gpr[RCX] -= count;
}
