"""Extern declarations of `files.h`: file operations as data, and calls that never wait."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "files.h" nogil:
    ctypedef struct FileOp "struct rl_file_op":
        uint64_t addr
        uint64_t off
        uint32_t len
        uint32_t flags
        int32_t fd
        uint8_t opcode

    struct stat_t "stat":
        uint32_t st_mode
        int64_t st_size
        long st_blksize
        uint64_t st_dev
        uint64_t st_ino

    enum:
        RL_OP_READ, RL_OP_WRITE, RL_OP_FSYNC, RL_OP_FTRUNCATE, RL_OP_OPENAT, RL_OP_CLOSE
        RL_OP_UNLINKAT, RL_OP_RENAMEAT, RL_OP_MKDIRAT, RL_OP_SYMLINKAT, RL_OP_LINKAT
        RL_OP_LSEEK
        RL_FSYNC_DATASYNC
        AT_FDCWD, AT_REMOVEDIR
        O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_CLOEXEC, O_NONBLOCK
        O_PATH, O_NOFOLLOW, O_ACCMODE, O_DIRECT
        F_GETFL, F_SETFL, SEEK_SET, SEEK_CUR, SEEK_END

    int rl_open_cached(const char *path, int flags)
    ssize_t rl_read_cached(int fd, void *p, size_t n, int64_t off)
    ssize_t rl_write_cached(int fd, const void *p, size_t n, int64_t off)
    ssize_t rl_read_at(int fd, void *p, size_t n, int64_t off)
    ssize_t rl_write_at(int fd, const void *p, size_t n, int64_t off)
    int rl_in_memory(int fd)
    ssize_t rl_stream_call(const FileOp *op)
    int rl_file_call(const FileOp *op)

    int fstat "rl_fstat"(int fd, stat_t *s)
    int known_stat "rl_known_stat"(int fd, stat_t *s)
    int fcntl(int fd, int cmd, ...)
    int64_t lseek(int fd, int64_t off, int whence)
    bint S_ISREG(uint32_t mode)
    bint S_ISDIR(uint32_t mode)
    bint S_ISFIFO(uint32_t mode)
    bint S_ISCHR(uint32_t mode)
    bint S_ISBLK(uint32_t mode)
