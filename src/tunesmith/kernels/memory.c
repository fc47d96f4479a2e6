/* Memory of large tensors on a CPU, kept when it is freed and found again; memory.py says why.

   Segments are mapped from the system (whole huge pages) and cut into blocks that lie one after another. A freed block is joined with
   free neighbours and waits in a bin of its size; a request takes the smallest that is large enough and leaves the rest. Bins are the two
   levels of TLSF (Masmano et al. 2004, "TLSF: a new dynamic memory allocator for real-time systems"): a power of two and EIGHTH parts of it.

   libc10 is the only part of torch that allocates tensors on a CPU, by posix_memalign and free: the two entries of its table of imported
   functions are exchanged. Whatever is not ours, by address, goes on to the C library. */

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__) && defined(__LP64__)

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINE = 64, EIGHTH_BITS = 3, EIGHTHS = 1 << EIGHTH_BITS, POWERS = 48, MOST_SEGMENTS = 4096 };
static const size_t LEAST = 16 << 10;             /* bytes: smaller tensors are the C library's */
static const size_t HUGE_PAGE = 2 << 20, SEGMENT = 32 << 20;

typedef struct block {
    size_t size;                    /* with this header */
    struct block *before;           /* in the segment; NULL: the first */
    struct block *next, *previous;  /* in the bin */
    size_t is_free, is_last, unused[2];
} block;                            /* LINE bytes, so that what follows is aligned */

typedef struct {
    char *start, *end;
} segment;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static segment segments[MOST_SEGMENTS];  /* by address */
static int n_segments;
static char *volatile lowest = (char *)UINTPTR_MAX, *volatile highest;
static block *bins[POWERS][EIGHTHS];
static uint64_t powers_in_use;
static uint32_t eighths_in_use[POWERS];
static int64_t held_bytes, used_bytes;

static int (*their_memalign)(void **, size_t, size_t);
static void (*their_free)(void *);

/* --- bins ---------------------------------------------------------------------------------------------------------------- */

static void bin_of(size_t size, int *power, int *eighth) {
    *power = 63 - __builtin_clzll(size);
    *eighth = (int)(size >> (*power - EIGHTH_BITS)) & (EIGHTHS - 1);
}

static void put(block *b) {
    int p, e;
    bin_of(b->size, &p, &e);
    b->is_free = 1;
    b->previous = NULL;
    b->next = bins[p][e];
    if (b->next) b->next->previous = b;
    bins[p][e] = b;
    powers_in_use |= 1ull << p;
    eighths_in_use[p] |= 1u << e;
}

static void take_out(block *b) {
    int p, e;
    bin_of(b->size, &p, &e);
    b->is_free = 0;
    if (b->next) b->next->previous = b->previous;
    if (b->previous) {
        b->previous->next = b->next;
    } else if (!(bins[p][e] = b->next)) {
        eighths_in_use[p] &= ~(1u << e);
        if (!eighths_in_use[p]) powers_in_use &= ~(1ull << p);
    }
}

/* The smallest of its own bin that is large enough, otherwise the smallest of the next bin in use; NULL: there is none. */
static block *find(size_t size) {
    int p, e;
    bin_of(size, &p, &e);
    block *best = NULL;
    for (block *b = bins[p][e]; b; b = b->next)
        if (b->size >= size && (!best || b->size < best->size)) best = b;
    if (best) return best;
    uint32_t eighths = e + 1 < EIGHTHS ? eighths_in_use[p] & ~((1u << (e + 1)) - 1) : 0;
    if (!eighths) {
        uint64_t powers = powers_in_use & ~((2ull << p) - 1);
        if (!powers) return NULL;
        p = __builtin_ctzll(powers);
        eighths = eighths_in_use[p];
    }
    e = __builtin_ctz(eighths);
    for (block *b = bins[p][e]; b; b = b->next)
        if (!best || b->size < best->size) best = b;
    return best;
}

/* --- blocks -------------------------------------------------------------------------------------------------------------- */

static block *after(block *b) { return b->is_last ? NULL : (block *)((char *)b + b->size); }

/* Cuts a block that is in no bin: `size` bytes stay, the rest becomes a block of its own, in no bin either. */
static block *cut(block *b, size_t size) {
    block *rest = (block *)((char *)b + size), *next = after(b);
    rest->size = b->size - size;
    rest->before = b;
    rest->is_last = b->is_last;
    rest->is_free = 0;
    b->size = size;
    b->is_last = 0;
    if (next) next->before = rest;
    return rest;
}

static block *join(block *left, block *right) {
    left->size += right->size;
    left->is_last = right->is_last;
    block *next = after(left);
    if (next) next->before = left;
    return left;
}

/* --- segments ------------------------------------------------------------------------------------------------------------ */

static int place_of(const char *address) {  /* of the last segment that starts at or before it; -1: none does */
    int low = 0, high = n_segments;
    while (low < high) {
        int middle = (low + high) / 2;
        if (segments[middle].start <= address) low = middle + 1;
        else high = middle;
    }
    return low - 1;
}

static void release_free_segments(void) {
    int kept = 0;
    for (int i = 0; i < n_segments; i++) {
        block *b = (block *)segments[i].start;
        if (b->is_free && b->is_last) {
            take_out(b);
            held_bytes -= segments[i].end - segments[i].start;
            munmap(segments[i].start, segments[i].end - segments[i].start);
        } else {
            segments[kept++] = segments[i];
        }
    }
    n_segments = kept;
}

static block *new_segment(size_t size) {
    if (n_segments == MOST_SEGMENTS) return NULL;
    size = (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    char *mapped = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    char *start = (char *)(((uintptr_t)mapped + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (start > mapped) munmap(mapped, start - mapped);
    munmap(start + size, mapped + HUGE_PAGE - start);
    madvise(start, size, MADV_HUGEPAGE);
    int at = place_of(start) + 1;
    memmove(segments + at + 1, segments + at, (n_segments - at) * sizeof *segments);
    segments[at] = (segment){start, start + size};
    n_segments++;
    held_bytes += size;
    if (start < lowest) lowest = start;
    if (start + size > highest) highest = start + size;
    block *b = (block *)start;
    *b = (block){.size = size, .is_last = 1};
    return b;
}

/* --- in the place of posix_memalign and free ----------------------------------------------------------------------------- */

static int our_memalign(void **found, size_t alignment, size_t n) {
    if (n < LEAST || n > SIZE_MAX / 4 || alignment > (size_t)sysconf(_SC_PAGESIZE)) return their_memalign(found, alignment, n);
    size_t size = ((n + LINE - 1) & ~(size_t)(LINE - 1)) + LINE, wanted = alignment > LINE ? size + alignment + LINE : size;
    pthread_mutex_lock(&lock);
    block *b = find(wanted);
    if (b) {
        take_out(b);
    } else {
        b = new_segment(wanted > SEGMENT ? wanted : SEGMENT);
        if (!b) {  /* near a limit: first what nobody uses, then no more than is needed */
            release_free_segments();
            b = new_segment(wanted);
        }
        if (!b) {
            pthread_mutex_unlock(&lock);
            return their_memalign(found, alignment, n);
        }
    }
    if (alignment > LINE) {
        uintptr_t data = (uintptr_t)(b + 1), aligned = (data + alignment - 1) & ~(uintptr_t)(alignment - 1);
        if (aligned > data) {
            block *rest = cut(b, aligned - data);
            put(b);
            b = rest;
        }
    }
    if (b->size >= size + LEAST) put(cut(b, size));
    used_bytes += b->size;
    pthread_mutex_unlock(&lock);
    *found = b + 1;
    return 0;
}

static void our_free(void *data) {
    if ((char *)data < lowest || (char *)data >= highest) {
        their_free(data);
        return;
    }
    pthread_mutex_lock(&lock);
    int at = place_of(data);
    if (at < 0 || (char *)data >= segments[at].end) {
        pthread_mutex_unlock(&lock);
        their_free(data);
        return;
    }
    block *b = (block *)data - 1, *next = after(b);
    used_bytes -= b->size;
    if (next && next->is_free) {
        take_out(next);
        join(b, next);
    }
    if (b->before && b->before->is_free) {
        take_out(b->before);
        b = join(b->before, b);
    }
    put(b);
    pthread_mutex_unlock(&lock);
}

/* --- in libc10's table of imported functions ----------------------------------------------------------------------------- */

static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }

typedef struct {
    void **memalign, **free;
} entries;

static void search(const ElfW(Rela) *relocations, size_t n, const ElfW(Sym) *symbols, const char *names, ElfW(Addr) base, entries *found) {
    for (size_t i = 0; i < n; i++) {
        const char *name = names + symbols[ELF64_R_SYM(relocations[i].r_info)].st_name;
        void **entry = (void **)(base + relocations[i].r_offset);
        if (!strcmp(name, "posix_memalign")) found->memalign = entry;
        if (!strcmp(name, "free")) found->free = entry;
    }
}

static int look_at(struct dl_phdr_info *info, size_t size, void *answer) {
    (void)size;
    const char *name = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    if (!name || strcmp(name, "/libc10.so")) return 0;
    const ElfW(Rela) *calls = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t call_bytes = 0, kind = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
        for (const ElfW(Dyn) *d = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr); d->d_tag != DT_NULL; d++) {
            if (d->d_tag == DT_JMPREL) calls = (const ElfW(Rela) *)d->d_un.d_ptr;
            if (d->d_tag == DT_PLTRELSZ) call_bytes = d->d_un.d_val;
            if (d->d_tag == DT_PLTREL) kind = d->d_un.d_val;
            if (d->d_tag == DT_SYMTAB) symbols = (const ElfW(Sym) *)d->d_un.d_ptr;
            if (d->d_tag == DT_STRTAB) names = (const char *)d->d_un.d_ptr;
        }
    }
    if (calls && symbols && names && kind == DT_RELA)
        search(calls, call_bytes / sizeof *calls, symbols, names, info->dlpi_addr, answer);
    return 1;
}

static int exchange(void **entry, void *ours) {
    uintptr_t page_size = sysconf(_SC_PAGESIZE), page = (uintptr_t)entry & ~(page_size - 1);
    /* it may stay writable: the loader leaves it so unless a library asks for more, and libc10 does not */
    if (mprotect((void *)page, page_size, PROT_READ | PROT_WRITE)) return 0;
    __atomic_store_n(entry, ours, __ATOMIC_RELEASE);
    return 1;
}

/* Once torch is in the process. Whether large tensors are kept from now on. */
int tunesmith_memory_keep(void) {
    static int installed = 0;
    if (!installed) {
        entries found = {0};
        dl_iterate_phdr(look_at, &found);
        if (!found.memalign || !found.free) return 0;
        their_memalign = posix_memalign;
        their_free = free;
        if (pthread_atfork(hold, let_go, let_go)) return 0;
        /* free first: it must know our blocks before there are any */
        if (!exchange(found.free, our_free) || !exchange(found.memalign, our_memalign)) return 0;
        installed = 1;
    }
    return 1;
}

/* Bytes mapped, and of these in use. */
void tunesmith_memory_state(int64_t *held, int64_t *used) {
    pthread_mutex_lock(&lock);
    *held = held_bytes;
    *used = used_bytes;
    pthread_mutex_unlock(&lock);
}

#else

int tunesmith_memory_keep(void) { return 0; }
void tunesmith_memory_state(int64_t *held, int64_t *used) { *held = *used = 0; }

#endif
