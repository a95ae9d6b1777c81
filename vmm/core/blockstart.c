#include "blockstart.h"

#include <string.h>

#include "strings.h"
#include "vcpu.h"

/* What the engine has made: the arguments (the engine's address, in one of two ways, and a zero)
 * and the call, in one of two ways. */
static const uint8_t mov_rdi[] = {0x48, 0xbf}, lea_rdi[] = {0x48, 0x8d, 0x3d};
static const uint8_t zero_esi[] = {0x33, 0xf6};
static const uint8_t call_near[] = {0xe8}, call_by_table[] = {0xff, 0x15};
#define MOV_BYTES 10u
#define LEA_BYTES 7u

/* What stands there instead: a comparison, a jump behind the call, and nothing up to the call but
 * the zero. That stays where it is: the engine finds the guest's RIP by the address it returns to. */
static const uint8_t cmp_request[] = {0x83, 0x7d, (uint8_t)(CPU_REQUEST - CPU_ENV_AT), 0};
#define JNS 0x79u
#define NOP 0x90u
/* Or, before an instruction that repeats itself, the call with another second argument. */
#define MOV_ESI 0xbeu

static bool begins(const uint8_t *code, const uint8_t *with, size_t bytes)
{
    return memcmp(code, with, bytes) == 0;
}

#define BEGINS(code, with) begins(code, with, sizeof(with))

/* How many bytes of code load the engine's address into RDI, as the first argument. */
static unsigned argument_bytes(const uint8_t *code, const void *uc)
{
    uint64_t value;
    int32_t distance;
    if (BEGINS(code, mov_rdi)) {
        memcpy(&value, code + sizeof(mov_rdi), sizeof(value));
        return value == (uintptr_t)uc ? MOV_BYTES : 0;
    }
    if (BEGINS(code, lea_rdi)) {
        memcpy(&distance, code + sizeof(lea_rdi), sizeof(distance));
        return (intptr_t)(code + LEA_BYTES) + distance == (intptr_t)uc ? LEA_BYTES : 0;
    }
    return 0;
}

static unsigned call_bytes_at(const uint8_t *code)
{
    if (BEGINS(code, call_near))
        return sizeof(call_near) + 4;
    return BEGINS(code, call_by_table) ? sizeof(call_by_table) + 4 : 0;
}

static void compare_first(uint8_t *code, const void *uc, uint32_t string)
{
    unsigned load = argument_bytes(code, uc), call_at = load + sizeof(zero_esi);
    if (!load || !BEGINS(code + load, zero_esi))
        return;
    unsigned call_bytes = call_bytes_at(code + call_at), jump_ends_at = sizeof(cmp_request) + 2;
    if (!call_bytes)
        return;
    if (string) {
        code[0] = MOV_ESI;
        memcpy(code + 1, &string, sizeof(string));
        memset(code + 1 + sizeof(string), NOP, call_at - 1 - sizeof(string));
        return;
    }
    memcpy(code, cmp_request, sizeof(cmp_request));
    code[sizeof(cmp_request)] = JNS;
    code[sizeof(cmp_request) + 1] = (uint8_t)(call_at + call_bytes - jump_ends_at);
    memset(code + jump_ends_at, NOP, load - jump_ends_at);
}

void rv_keep_block(void *tcg, void *block)
{
    struct rv_vcpu *v = rv_current;
    if (v && RV_AT(v->uc, UC_TCG, void *) == tcg)
        compare_first(RV_AT(block, BLOCK_CODE, uint8_t *), v->uc, rv_string_kind(v, block));
    rv_engine.original.keep_block(tcg, block);
}

typedef void helper_fn(void *uc, uint32_t slot);

helper_fn *rv_exit_helper(void) __attribute__((visibility("hidden"), used));

helper_fn *rv_exit_helper(void)
{
    return rv_engine.original.exit_asked;
}

/* The helper, with the arguments that translated code does not load any more. It returns to
 * translated code as if that had called it: nobody may stand between. ESI is not zero before an
 * instruction that repeats itself, asked or not. */
#define TEXT_OF(number) #number
#define ENGINE_AT(distance) TEXT_OF(distance) "(%rbp)"
#define REQUEST_AT CPU_REQUEST - CPU_ENV_AT
__asm__(".pushsection .text\n"
        ".globl rv_exit_asked\n"
        ".hidden rv_exit_asked\n"
        ".type rv_exit_asked, @function\n"
        "rv_exit_asked:\n"
        "test %esi, %esi\n"
        "jz 1f\n"
        "sub $8, %rsp\n"
        "mov %rbp, %rdi\n"
        "call rv_string_ahead\n"
        "add $8, %rsp\n"
        "cmpl $0, " ENGINE_AT(REQUEST_AT) "\n"
        "js 1f\n"
        "ret\n"
        "1: sub $8, %rsp\n"
        "call rv_exit_helper\n"
        "add $8, %rsp\n"
        "mov " ENGINE_AT(ENV_ENGINE) ", %rdi\n"
        "xor %esi, %esi\n"
        "jmp *%rax\n"
        ".popsection\n");
