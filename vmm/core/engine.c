#define _GNU_SOURCE
#include "engine.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bases.h"
#include "blockstart.h"
#include "chipmem.h"
#include "codepages.h"
#include "direct.h"
#include "dirtylog.h"
#include "globals.h"
#include "jumpcache.h"
#include "portio.h"
#include "proof.h"
#include "translation.h"
#include "vcpu.h"

struct rv_engine rv_engine;
static int loaded;

/* Where the library keeps the address of its function `name`: the slots of its linkage table, and
 * of the tables that translated code is made from. At most `room`; how many. */
static int address_slots(const struct link_map *map, const char *name, void **slots[], int room)
{
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    const ElfW(Rela) *lists[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    int found = 0;

    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB:
            symbols = (const void *)d->d_un.d_ptr;
            break;
        case DT_STRTAB:
            strings = (const void *)d->d_un.d_ptr;
            break;
        case DT_JMPREL:
            lists[0] = (const void *)d->d_un.d_ptr;
            break;
        case DT_PLTRELSZ:
            bytes[0] = d->d_un.d_val;
            break;
        case DT_RELA:
            lists[1] = (const void *)d->d_un.d_ptr;
            break;
        case DT_RELASZ:
            bytes[1] = d->d_un.d_val;
            break;
        default:
            break;
        }
    }
    if (!symbols || !strings)
        return 0;
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; lists[k] && i < bytes[k] / sizeof(ElfW(Rela)); i++) {
            const ElfW(Rela) *r = &lists[k][i];
            uint64_t symbol = ELF64_R_SYM(r->r_info);
            if (symbol && strcmp(strings + symbols[symbol].st_name, name) == 0 && found < room)
                slots[found++] = (void **)(map->l_addr + r->r_offset);
        }
    }
    return found;
}

static int make_writable(void *slot)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)slot & ~(page - 1);
    return mprotect((void *)start, page, PROT_READ | PROT_WRITE);
}

static int interpose(void *library, const struct link_map *map, const char *name, void *ours,
                     void **original)
{
    void **slots[4], *theirs = dlsym(library, name);
    int count = address_slots(map, name, slots, 4);
    if (!count || !theirs)
        return -1;
    for (int i = 0; i < count; i++) {
        if (make_writable(slots[i]))
            return -1;
        *slots[i] = ours;
    }
    *original = theirs;
    return 0;
}

static int resolve(void *library, char *why, size_t why_bytes)
{
    void *symbol;
#define RV_LOOK_UP(target, name)                                                                   \
    symbol = dlsym(library, name);                                                                 \
    if (!symbol) {                                                                                 \
        snprintf(why, why_bytes, "this Unicorn library has no %s", name);                          \
        return -1;                                                                                 \
    }                                                                                              \
    memcpy(&(target), &symbol, sizeof(symbol));
#define RV_PUBLIC(name) RV_LOOK_UP(rv_engine.name, #name)
    RV_PUBLIC_SYMBOLS(RV_PUBLIC)
#undef RV_PUBLIC
    unsigned major = 0, minor = 0;
    unsigned combined = rv_engine.uc_version(&major, &minor);
    unsigned patch = (combined >> 8) & 0xff;
    if (major != RV_UNICORN_MAJOR || minor != RV_UNICORN_MINOR || patch != RV_UNICORN_PATCH) {
        snprintf(why, why_bytes,
                 "Unicorn %u.%u.%u found, exactly %d.%d.%d needed: pip install unicorn==%d.%d.%d",
                 major, minor, patch, RV_UNICORN_MAJOR, RV_UNICORN_MINOR, RV_UNICORN_PATCH,
                 RV_UNICORN_MAJOR, RV_UNICORN_MINOR, RV_UNICORN_PATCH);
        return -1;
    }
#define RV_PRIVATE(member, name, result, arguments) RV_LOOK_UP(rv_engine.member, name)
    RV_PRIVATE_SYMBOLS(RV_PRIVATE)
#undef RV_PRIVATE
#undef RV_LOOK_UP
    return 0;
}

int rv_engine_load(const char *path, char *why, size_t why_bytes)
{
    if (loaded)
        return 0;
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!library) {
        snprintf(why, why_bytes, "cannot open the Unicorn library: %s", dlerror());
        return -1;
    }
    struct link_map *map = NULL;
    if (resolve(library, why, why_bytes))
        return -1;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map) || !map) {
        snprintf(why, why_bytes, "cannot find where the Unicorn library lies in memory");
        return -1;
    }
    if (rv_prove_layout(why, why_bytes))
        return -1;
#define RV_INTERPOSED(member, name, result, arguments)                                             \
    {                                                                                              \
        result(*ours) arguments = rv_##member;                                                     \
        void *replacement, *original;                                                              \
        memcpy(&replacement, &ours, sizeof(replacement));                                          \
        if (interpose(library, map, name, replacement, &original)) {                               \
            snprintf(why, why_bytes, "this Unicorn library does not link %s as expected", name);   \
            return -1;                                                                             \
        }                                                                                          \
        memcpy(&rv_engine.original.member, &original, sizeof(original));                           \
    }
    RV_INTERPOSED_SYMBOLS(RV_INTERPOSED)
#undef RV_INTERPOSED
    loaded = 1;
    return 0;
}
