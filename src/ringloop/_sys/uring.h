/* The io_uring ABI that ringloop uses: structures, constants, three syscalls.
 *
 * Why not <linux/io_uring.h> or liburing: the headers of a build machine say
 * nothing about the kernel that runs the wheel (Debian 12 ships 6.1 headers,
 * which lack half of the constants below), and three syscalls need no library.
 * The kernel never changes this ABI; the static asserts pin our copy to it.
 * Source of every value: include/uapi/linux/io_uring.h of Linux 6.18.
 */
#ifndef RINGLOOP_URING_H
#define RINGLOOP_URING_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The same numbers on every architecture that has io_uring but alpha. */
#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

struct rl_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off; /* also: addr2 */
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* msg_flags, poll32_events, accept_flags, cancel_flags... */
    uint64_t user_data;
    uint16_t buf_group; /* also: buf_index */
    uint16_t personality;
    int32_t splice_fd_in;
    uint64_t pad[2];
};

struct rl_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct rl_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct rl_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct rl_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle;
    uint32_t features, wq_fd, resv[3];
    struct rl_sq_offsets sq_off;
    struct rl_cq_offsets cq_off;
};

struct rl_timespec {
    int64_t tv_sec;
    int64_t tv_nsec;
};

struct rl_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};

/* One entry of a provided-buffer ring. The ring's tail lives in `resv` of entry 0. */
struct rl_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t resv;
};

struct rl_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags;
    uint64_t resv[3];
};

struct rl_probe_op {
    uint8_t op, resv;
    uint16_t flags;
    uint32_t resv2;
};

struct rl_probe {
    uint8_t last_op, ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct rl_probe_op ops[256];
};

_Static_assert(sizeof(struct rl_sqe) == 64, "io_uring_sqe");
_Static_assert(offsetof(struct rl_sqe, user_data) == 32, "io_uring_sqe.user_data");
_Static_assert(offsetof(struct rl_sqe, buf_group) == 40, "io_uring_sqe.buf_group");
_Static_assert(sizeof(struct rl_cqe) == 16, "io_uring_cqe");
_Static_assert(sizeof(struct rl_params) == 120, "io_uring_params");
_Static_assert(offsetof(struct rl_params, sq_off) == 40, "io_uring_params.sq_off");
_Static_assert(offsetof(struct rl_params, cq_off) == 80, "io_uring_params.cq_off");
_Static_assert(sizeof(struct rl_getevents_arg) == 24, "io_uring_getevents_arg");
_Static_assert(sizeof(struct rl_buf) == 16, "io_uring_buf");
_Static_assert(offsetof(struct rl_buf, resv) == 14, "io_uring_buf_ring.tail");
_Static_assert(sizeof(struct rl_buf_reg) == 40, "io_uring_buf_reg");
_Static_assert(sizeof(struct rl_probe_op) == 8, "io_uring_probe_op");
_Static_assert(offsetof(struct rl_probe, ops) == 16, "io_uring_probe.ops");
_Static_assert(sizeof(struct rl_timespec) == 16, "__kernel_timespec");

enum {
    RL_SETUP_CQSIZE = 1u << 3,
    RL_SETUP_CLAMP = 1u << 4,
    RL_SETUP_R_DISABLED = 1u << 6,
    RL_SETUP_SUBMIT_ALL = 1u << 7,
    RL_SETUP_TASKRUN_FLAG = 1u << 9,
    RL_SETUP_SINGLE_ISSUER = 1u << 12,
    RL_SETUP_DEFER_TASKRUN = 1u << 13,
    RL_SETUP_NO_SQARRAY = 1u << 16,

    RL_FEAT_SINGLE_MMAP = 1u << 0,
    RL_FEAT_NO_IOWAIT = 1u << 17,

    RL_ENTER_GETEVENTS = 1u << 0,
    RL_ENTER_EXT_ARG = 1u << 3,
    RL_ENTER_NO_IOWAIT = 1u << 7,

    RL_SQ_CQ_OVERFLOW = 1u << 1,
    RL_SQ_TASKRUN = 1u << 2,

    RL_OP_FSYNC = 3,
    RL_OP_POLL_ADD = 6,
    RL_OP_SENDMSG = 9,
    RL_OP_ACCEPT = 13,
    RL_OP_ASYNC_CANCEL = 14,
    RL_OP_OPENAT = 18,
    RL_OP_CLOSE = 19,
    RL_OP_READ = 22,
    RL_OP_WRITE = 23,
    RL_OP_SEND = 26,
    RL_OP_RECV = 27,
    RL_OP_RENAMEAT = 35,
    RL_OP_UNLINKAT = 36,
    RL_OP_MKDIRAT = 37,
    RL_OP_SYMLINKAT = 38,
    RL_OP_LINKAT = 39,
    RL_OP_FTRUNCATE = 55,

    RL_SQE_BUFFER_SELECT = 1u << 5,

    RL_RECVSEND_POLL_FIRST = 1u << 0, /* in sqe.ioprio */
    RL_RECV_MULTISHOT = 1u << 1,
    RL_ACCEPT_MULTISHOT = 1u << 0,

    RL_POLL_ADD_MULTI = 1u << 0, /* in sqe.len */

    RL_FSYNC_DATASYNC = 1u << 0,

    RL_CANCEL_ALL = 1u << 0, /* in sqe.op_flags */
    RL_CANCEL_ANY = 1u << 2,

    RL_CQE_BUFFER = 1u << 0,
    RL_CQE_MORE = 1u << 1,
    RL_CQE_BUFFER_SHIFT = 16,

    RL_REGISTER_PROBE = 8,
    RL_REGISTER_ENABLE_RINGS = 12,
    RL_REGISTER_IOWQ_MAX_WORKERS = 19,
    RL_REGISTER_PBUF_RING = 22,

    RL_OP_SUPPORTED = 1u << 0, /* in probe_op.flags */
};

#define RL_OFF_SQ_RING 0ULL
#define RL_OFF_SQES 0x10000000ULL

/* The three syscalls; each gives -errno, so that nothing between the call and
 * the look at errno (a GIL switch, say) can change it. */
static inline int rl_uring_setup(unsigned entries, struct rl_params *p) {
    long r = syscall(__NR_io_uring_setup, entries, p);
    return r < 0 ? -errno : (int)r;
}

static inline int rl_uring_enter(int fd, unsigned to_submit, unsigned min_complete,
                                 unsigned flags, const void *arg, size_t size) {
    long r = syscall(__NR_io_uring_enter, fd, to_submit, min_complete, flags, arg, size);
    return r < 0 ? -errno : (int)r;
}

static inline int rl_uring_register(int fd, unsigned op, void *arg, unsigned n) {
    long r = syscall(__NR_io_uring_register, fd, op, arg, n);
    return r < 0 ? -errno : (int)r;
}

/* A number of the calling thread's own. The kernel's and pthread's identifiers of a thread
 * that ended are given to others. Called with the GIL held. */
static inline uint64_t rl_this_thread(void) {
    static uint64_t last;
    static _Thread_local uint64_t mine;
    if (mine == 0)
        mine = ++last;
    return mine;
}

/* The ring indices are shared with the kernel: a tail is read with acquire
 * after the other side's entries, and published with release after our own. */
static inline uint32_t rl_load_acquire(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline uint32_t rl_load_relaxed(const uint32_t *p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void rl_store_release(uint32_t *p, uint32_t v) {
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

static inline void rl_store_release16(uint16_t *p, uint16_t v) {
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

#endif
