/* Calls of the C library that write, failing at the test's wish: preloaded, so that Python's and safetensors' own calls are caught.

   arm("/runs/x", 7, ENOSPC, 0)   the seventh call from now on fails, once;   0: none, count only;   last argument 1: and all after it
   calls()                        how many there were

   What counts: write, pwrite, writev, ftruncate, fsync, fdatasync (but for standard output and error), mkdir, rename, and every
   open below the given folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static int armed, seen, nth, code, from_then_on;

void arm(const char *folder, int at, int error, int all_after) {
    strncpy(below, folder, sizeof below - 1);
    armed = 1, seen = 0, nth = at, code = error, from_then_on = all_after;
}

int calls(void) {
    armed = 0;
    return seen;
}

static int fails(void) {
    if (!armed) return 0;
    seen++;
    if (!nth || (from_then_on ? seen < nth : seen != nth)) return 0;
    errno = code;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define ON_FILE(result, name, parameters, arguments)                            \
    result name parameters {                                                    \
        REAL(name);                                                             \
        if (fd > 2 && fails()) return -1;                                       \
        return real arguments;                                                  \
    }
ON_FILE(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
ON_FILE(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FILE(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
ON_FILE(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
ON_FILE(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FILE(int, ftruncate64, (int fd, off64_t n), (fd, n))
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, fdatasync, (int fd), (fd))

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails() ? -1 : real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails() ? -1 : real(from, to);
}

static mode_t mode_of(int flags, va_list more) { return flags & O_CREAT ? va_arg(more, mode_t) : 0; }
static int of_ours(const char *path) { return armed && !strncmp(path, below, strlen(below)); }

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        REAL(name);                                                             \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = mode_of(flags, more);                                     \
        va_end(more);                                                           \
        return of_ours(path) && fails() ? -1 : real(path, flags, mode);         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                            \
    int name(int folder, const char *path, int flags, ...) {                    \
        REAL(name);                                                             \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = mode_of(flags, more);                                     \
        va_end(more);                                                           \
        return of_ours(path) && fails() ? -1 : real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
