#include "lock.h"

#include "engine.h"

#define LOCK 0xf0u
#define TWO_BYTES 0x0fu
#define MOST_PREFIXES 14
#define REGISTER 3u /* ModRM.mod: the operand is no memory */

#define REG(n) (1u << (n)) /* of ModRM.reg, which goes on with the opcode */
#define ANY_REG 0xffu

static bool is_prefix(uint32_t byte, bool code64)
{
    switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case LOCK:
    case 0xf2:
    case 0xf3:
        return true;
    default:
        return code64 && (byte & 0xf0) == 0x40; /* REX */
    }
}

/* The values of ModRM.reg with which an opcode reads and writes its operand: a bit each. */
static uint32_t lockable(uint32_t opcode)
{
    switch (opcode) {
    case 0x00: /* ADD */
    case 0x01:
    case 0x08: /* OR */
    case 0x09:
    case 0x10: /* ADC */
    case 0x11:
    case 0x18: /* SBB */
    case 0x19:
    case 0x20: /* AND */
    case 0x21:
    case 0x28: /* SUB */
    case 0x29:
    case 0x30: /* XOR */
    case 0x31:
    case 0x86: /* XCHG */
    case 0x87:
        return ANY_REG;
    case 0x80:
    case 0x81:
    case 0x82:
    case 0x83:
        return ANY_REG & ~REG(7); /* CMP */
    case 0xf6:
    case 0xf7:
        return REG(2) | REG(3); /* NOT, NEG */
    case 0xfe:
    case 0xff:
        return REG(0) | REG(1); /* INC, DEC */
    default:
        return 0;
    }
}

static uint32_t lockable_two_bytes(uint32_t opcode)
{
    switch (opcode) {
    case 0xab: /* BTS */
    case 0xb0: /* CMPXCHG */
    case 0xb1:
    case 0xb3: /* BTR */
    case 0xbb: /* BTC */
    case 0xc0: /* XADD */
    case 0xc1:
        return ANY_REG;
    case 0xba:
        return REG(5) | REG(6) | REG(7); /* BTS, BTR, BTC */
    case 0xc7:
        return REG(1); /* CMPXCHG8B, CMPXCHG16B */
    default:
        return 0;
    }
}

bool rv_lock_refused(void *env, uint64_t pc)
{
    bool code64 = RV_AT(env, ENV_HFLAGS, uint32_t) & HF_CS64, locked = false;
    uint32_t byte = rv_engine.fetch_byte(env, pc), regs;
    for (int prefixes = 0; is_prefix(byte, code64); prefixes++) {
        if (prefixes == MOST_PREFIXES)
            return false; /* too long: #GP */
        locked = locked || byte == LOCK;
        byte = rv_engine.fetch_byte(env, ++pc);
    }
    if (!locked)
        return false;
    if (byte == TWO_BYTES)
        regs = lockable_two_bytes(rv_engine.fetch_byte(env, ++pc));
    else
        regs = lockable(byte);
    if (!regs)
        return true;
    uint32_t modrm = rv_engine.fetch_byte(env, ++pc);
    return modrm >> 6 == REGISTER || !(regs >> (modrm >> 3 & 7) & 1);
}
