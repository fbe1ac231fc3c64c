/* File operations as data: what the ring takes as a submission, a thread can do as a call.
 *
 * Opcodes are io_uring's (uring.h). Also the calls that answer from the caches or say
 * EAGAIN, which glibc has no names for.
 */
#ifndef RINGLOOP_FILES_H
#define RINGLOOP_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "uring.h"

#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

/* lseek(), by a thread only: the ring has none. */
#define RL_OP_LSEEK 255

struct rl_file_op {
    uint64_t addr;  /* buffer, or path */
    uint64_t off;   /* file offset; UINT64_MAX: the file's own; or a second path */
    uint32_t len;   /* bytes, mode, or a second directory */
    uint32_t flags; /* open flags, fsync flags, unlink flags */
    int32_t fd;     /* file, or directory that paths are relative to */
    uint8_t opcode;
};

/* struct open_how, which headers older than 5.6 lack. */
struct rl_open_how {
    uint64_t flags, mode, resolve;
};
_Static_assert(sizeof(struct rl_open_how) == 24, "open_how");
#define RL_RESOLVE_CACHED 0x20

/* Open from the dentry cache, or -EAGAIN. Kernels before 5.12 say EINVAL. */
static inline int rl_open_cached(const char *path, int flags) {
    struct rl_open_how how = {.flags = (uint64_t)(uint32_t)flags, .resolve = RL_RESOLVE_CACHED};
    long r = syscall(__NR_openat2, AT_FDCWD, path, &how, sizeof(how));
    return r < 0 ? -errno : (int)r;
}

/* Read from the page cache, or -EAGAIN; an offset of -1 is the file's own. */
static inline ssize_t rl_read_cached(int fd, void *p, size_t n, int64_t off) {
    struct iovec v = {p, n};
    ssize_t r;
    do {
        r = preadv2(fd, &v, 1, off, RWF_NOWAIT);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

static inline ssize_t rl_write_cached(int fd, const void *p, size_t n, int64_t off) {
    struct iovec v = {(void *)p, n};
    ssize_t r;
    do {
        r = pwritev2(fd, &v, 1, off, RWF_NOWAIT);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

static inline ssize_t rl_read_at(int fd, void *p, size_t n, int64_t off) {
    ssize_t r;
    do {
        r = off == -1 ? read(fd, p, n) : pread(fd, p, n, off);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

static inline ssize_t rl_write_at(int fd, const void *p, size_t n, int64_t off) {
    ssize_t r;
    do {
        r = off == -1 ? write(fd, p, n) : pwrite(fd, p, n, off);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

/* Read or write a stream that is ready, or -EAGAIN. Terminals refuse RWF_NOWAIT, and ready may
 * mean room for less than there is to write: O_NONBLOCK, for the time of the call.
 */
static inline ssize_t rl_stream_call(const struct rl_file_op *op) {
    void *p = (void *)op->addr;
    bool reads = op->opcode == RL_OP_READ;
    ssize_t r = reads ? rl_read_cached(op->fd, p, op->len, -1)
                      : rl_write_cached(op->fd, p, op->len, -1);
    int flags;
    if (r != -EOPNOTSUPP)
        return r;
    flags = fcntl(op->fd, F_GETFL);
    if (!(flags & O_NONBLOCK))
        fcntl(op->fd, F_SETFL, flags | O_NONBLOCK);
    r = reads ? rl_read_at(op->fd, p, op->len, -1) : rl_write_at(op->fd, p, op->len, -1);
    if (!(flags & O_NONBLOCK))
        fcntl(op->fd, F_SETFL, flags);
    return r;
}

/* fstat() is a symbol of glibc 2.33, and wheels are for 2.28 and newer. On these machines
 * the kernel's structure is glibc's.
 */
static inline int rl_fstat(int fd, struct stat *s) {
#if defined(__LP64__) && (defined(__x86_64__) || defined(__aarch64__))
    return (int)syscall(SYS_fstat, fd, s);
#else
    return fstat(fd, s);
#endif
}

/* Kind, size and device as they are known here: a network file system is not asked. */
static inline int rl_known_stat(int fd, struct stat *s) {
    struct statx x;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, &x))
        return rl_fstat(fd, s);
    s->st_mode = x.stx_mode;
    s->st_size = (off_t)x.stx_size;
    s->st_dev = makedev(x.stx_dev_major, x.stx_dev_minor);
    return 0;
}

/* Whether a file lives in memory: tmpfs refuses RWF_NOWAIT, and never waits for a disk. Its
   FIFOs and devices (/dev is one) do wait. */
static inline int rl_in_memory(int fd) {
    struct stat s;
    struct statfs at;
    return rl_fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && fstatfs(fd, &at) == 0
        && (at.f_type == 0x01021994 || at.f_type == (int)0x858458f6);
}

/* The operation as a call that may block; its result or -errno. */
static inline int rl_file_call(const struct rl_file_op *op) {
    const char *path = (const char *)op->addr, *other = (const char *)op->off;
    int r, dir = (int)op->len;
    do {
        switch (op->opcode) {
        case RL_OP_READ:
            return (int)rl_read_at(op->fd, (void *)op->addr, op->len, (int64_t)op->off);
        case RL_OP_WRITE:
            return (int)rl_write_at(op->fd, path, op->len, (int64_t)op->off);
        case RL_OP_FSYNC:
            r = op->flags & RL_FSYNC_DATASYNC ? fdatasync(op->fd) : fsync(op->fd);
            break;
        case RL_OP_FTRUNCATE:
            r = ftruncate(op->fd, (off_t)op->off);
            break;
        case RL_OP_LSEEK:
            r = lseek(op->fd, (off_t)op->off, (int)op->flags) < 0 ? -1 : 0;
            break;
        case RL_OP_OPENAT:
            r = openat(op->fd, path, (int)op->flags, op->len);
            break;
        case RL_OP_CLOSE: /* after EINTR, too, the descriptor is gone */
            return close(op->fd) < 0 && errno != EINTR ? -errno : 0;
        case RL_OP_UNLINKAT:
            r = unlinkat(op->fd, path, (int)op->flags);
            break;
        case RL_OP_RENAMEAT:
            r = renameat(op->fd, path, dir, other);
            break;
        case RL_OP_MKDIRAT:
            r = mkdirat(op->fd, path, op->len);
            break;
        case RL_OP_SYMLINKAT:
            r = symlinkat(path, op->fd, other);
            break;
        case RL_OP_LINKAT:
            r = linkat(op->fd, path, dir, other, (int)op->flags);
            break;
        default:
            return -ENOSYS;
        }
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

#endif
