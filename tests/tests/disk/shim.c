/* Stands between a process and its disk: fails, delays or hangs what it writes and syncs.
 *
 * SHIM_FILES is a part of the paths that this concerns. SHIM_CONTROL names a file with the
 * rule in force, read anew at every call, so that a test changes it while the process runs:
 *
 *     GENERATION CALL ACTION NUMBER
 *
 *     1 sync  eio   3      the third sync from now on fails with EIO, and only that one
 *     2 sync  delay 800    every sync takes 800 ms more
 *     3 sync  hang  0      every sync hangs until the generation is another one
 *     4 write enospc 1     the first write from now on fails with ENOSPC, and every later one
 *     5 none  none  0      nothing
 *
 * A new generation counts anew. System calls are made directly: nothing here calls what it stands before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct rule {
    long generation;
    char call[16], action[16];
    long number;
};

static atomic_long counted_generation;
static atomic_long counted;

static int read_rule(struct rule *rule) {
    const char *path = getenv("SHIM_CONTROL");
    char text[128];
    if (!path) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    long length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (length <= 0) return 0;
    text[length] = 0;
    return sscanf(text, "%ld %15s %15s %ld", &rule->generation, rule->call, rule->action,
                  &rule->number) == 4;
}

static int is_concerned(int fd) {
    const char *part = getenv("SHIM_FILES");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (!part || length <= 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    syscall(SYS_nanosleep, &time, NULL);
}

/* Which call this is since the rule is in force, from 1 on. */
static long count(long generation) {
    long before = atomic_load(&counted_generation);
    if (before != generation && atomic_compare_exchange_strong(&counted_generation, &before, generation))
        atomic_store(&counted, 0);
    return atomic_fetch_add(&counted, 1) + 1;
}

/* The error that a call must fail with, or 0; it has been delayed as the rule says. */
static int before_call(const char *call, int fd) {
    int saved = errno, error = 0;
    struct rule rule;
    if (read_rule(&rule) && !strcmp(rule.call, call) && is_concerned(fd)) {
        if (!strcmp(rule.action, "eio")) {
            error = count(rule.generation) == rule.number ? EIO : 0;
        } else if (!strcmp(rule.action, "enospc")) {
            error = count(rule.generation) >= rule.number ? ENOSPC : 0;
        } else if (!strcmp(rule.action, "delay")) {
            sleep_ms(rule.number);
        } else if (!strcmp(rule.action, "hang")) {
            struct rule now = rule;
            while (!read_rule(&now) || now.generation == rule.generation) sleep_ms(5);
        }
    }
    errno = error ? error : saved;
    return error;
}

int fsync(int fd) {
    return before_call("sync", fd) ? -1 : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return before_call("sync", fd) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int sync_file_range(int fd, off_t offset, off_t length, unsigned flags) {
    return before_call("sync", fd) ? -1 : (int)syscall(SYS_sync_file_range, fd, offset, length, flags);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    return before_call("write", fd) ? -1 : syscall(SYS_write, fd, bytes, length);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return before_call("write", fd) ? -1 : syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    return before_call("write", fd) ? -1 : syscall(SYS_pwrite64, fd, bytes, length, offset);
}
