#define _GNU_SOURCE
#include "engine.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codepages.h"
#include "dirtylog.h"
#include "portio.h"
#include "proof.h"
#include "vcpu.h"

struct rv_engine rv_engine;
static int loaded;

/* The linkage-table slot through which the library calls its own function `name`. */
static void **linkage_slot(const struct link_map *map, const char *name)
{
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    const ElfW(Rela) *relocations = NULL;
    size_t bytes = 0;

    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB:
            symbols = (const void *)d->d_un.d_ptr;
            break;
        case DT_STRTAB:
            strings = (const void *)d->d_un.d_ptr;
            break;
        case DT_JMPREL:
            relocations = (const void *)d->d_un.d_ptr;
            break;
        case DT_PLTRELSZ:
            bytes = d->d_un.d_val;
            break;
        default:
            break;
        }
    }
    if (!symbols || !strings || !relocations)
        return NULL;
    for (size_t i = 0; i < bytes / sizeof(*relocations); i++) {
        const ElfW(Rela) *r = &relocations[i];
        if (ELF64_R_TYPE(r->r_info) == R_X86_64_JUMP_SLOT &&
            strcmp(strings + symbols[ELF64_R_SYM(r->r_info)].st_name, name) == 0)
            return (void **)(map->l_addr + r->r_offset);
    }
    return NULL;
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
    void **slot = linkage_slot(map, name);
    void *theirs = dlsym(library, name);
    if (!slot || !theirs || make_writable(slot))
        return -1;
    *original = theirs;
    *slot = ours;
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
