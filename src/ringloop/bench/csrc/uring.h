/* io_uring by raw system calls: the part of the kernel's ABI that the echo server uses,
 * and a ring for one thread. Own constants, since <linux/io_uring.h> of a stable
 * distribution lacks the newer ones; the sizes and offsets below are asserted. */
#ifndef RINGLOOP_BENCH_URING_H
#define RINGLOOP_BENCH_URING_H

#include "common.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { SYS_URING_SETUP = 425, SYS_URING_ENTER = 426, SYS_URING_REGISTER = 427 };

enum {
    OP_POLL_ADD = 6,
    OP_SENDMSG = 9,
    OP_ACCEPT = 13,
    OP_CLOSE = 19,
    OP_SEND = 26,
    OP_RECV = 27,
};

enum {
    SQE_BUFFER_SELECT = 1 << 5,

    SETUP_CQSIZE = 1 << 3,
    SETUP_CLAMP = 1 << 4,
    SETUP_SUBMIT_ALL = 1 << 7,
    SETUP_SINGLE_ISSUER = 1 << 12,
    SETUP_DEFER_TASKRUN = 1 << 13,
    SETUP_NO_SQARRAY = 1 << 16, /* Linux 6.6 */

    FEAT_SINGLE_MMAP = 1 << 0,
    FEAT_SUBMIT_STABLE = 1 << 2,

    ENTER_GETEVENTS = 1 << 0,

    ACCEPT_MULTISHOT = 1 << 0,
    RECV_MULTISHOT = 1 << 1,

    CQE_F_BUFFER = 1 << 0,
    CQE_F_MORE = 1 << 1,
    CQE_BUFFER_SHIFT = 16,

    REGISTER_PBUF_RING = 22,
};

static const off_t MAP_RINGS = 0, MAP_SQES = 0x10000000;

struct sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off, addr;
    uint32_t len, op_flags;
    uint64_t user_data;
    uint16_t buf_group, personality;
    uint32_t file_index;
    uint64_t addr3, padding;
};

struct cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd,
        resv[3];
    struct sq_offsets sq_off;
    struct cq_offsets cq_off;
};

/* An entry of a provided-buffer ring. The ring's tail lies in `tail` of entry 0. */
struct pbuf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid, tail;
};

struct pbuf_registration {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t group, flags;
    uint64_t resv[3];
};

_Static_assert(sizeof(struct sqe) == 64 && offsetof(struct sqe, user_data) == 32, "sqe");
_Static_assert(offsetof(struct sqe, buf_group) == 40, "sqe");
_Static_assert(sizeof(struct cqe) == 16, "cqe");
_Static_assert(sizeof(struct params) == 120 && offsetof(struct params, cq_off) == 80, "params");
_Static_assert(sizeof(struct pbuf) == 16 && offsetof(struct pbuf, tail) == 14, "pbuf");
_Static_assert(sizeof(struct pbuf_registration) == 40, "pbuf_registration");

struct ring {
    int fd;
    uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask, sq_entries;
    uint32_t tail;      /* of the entries handed out */
    uint32_t submitted; /* of those that the kernel has taken */
    struct sqe *sqes;
    struct cqe *cqes;
};

static inline void *ring_map(int fd, size_t length, off_t offset)
{
    void *memory =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (memory == MAP_FAILED)
        die("mmap of the ring: %s", strerror(errno));
    return memory;
}

/* Completions are run only inside enter (DEFER_TASKRUN), by the one thread that submits. */
static inline void ring_open(struct ring *ring, uint32_t sq_entries, uint32_t cq_entries)
{
    uint32_t flags = SETUP_SUBMIT_ALL | SETUP_CQSIZE | SETUP_CLAMP | SETUP_SINGLE_ISSUER |
                     SETUP_DEFER_TASKRUN;
    struct params params = {.flags = flags | SETUP_NO_SQARRAY, .cq_entries = cq_entries};
    ring->fd = (int)syscall(SYS_URING_SETUP, sq_entries, &params);
    if (ring->fd < 0 && errno == EINVAL) {
        params = (struct params){.flags = flags, .cq_entries = cq_entries};
        ring->fd = (int)syscall(SYS_URING_SETUP, sq_entries, &params);
    }
    if (ring->fd < 0)
        die("io_uring_setup: %s (it takes Linux 6.1 or newer, with io_uring allowed by "
            "kernel.io_uring_disabled and by the container's seccomp profile)",
            strerror(errno));
    if (!(params.features & FEAT_SINGLE_MMAP) || !(params.features & FEAT_SUBMIT_STABLE))
        die("this kernel's io_uring is too old: it takes Linux 6.1 or newer");

    size_t length = params.cq_off.cqes + params.cq_entries * sizeof(struct cqe);
    size_t array_end = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    int has_array = !(params.flags & SETUP_NO_SQARRAY);
    if (has_array && array_end > length)
        length = array_end;
    char *base = ring_map(ring->fd, length, MAP_RINGS);
    ring->sqes = ring_map(ring->fd, params.sq_entries * sizeof(struct sqe), MAP_SQES);
    ring->cqes = (struct cqe *)(base + params.cq_off.cqes);
    ring->sq_head = (uint32_t *)(base + params.sq_off.head);
    ring->sq_tail = (uint32_t *)(base + params.sq_off.tail);
    ring->cq_head = (uint32_t *)(base + params.cq_off.head);
    ring->cq_tail = (uint32_t *)(base + params.cq_off.tail);
    ring->sq_entries = params.sq_entries;
    ring->sq_mask = params.sq_entries - 1;
    ring->cq_mask = params.cq_entries - 1;
    ring->tail = ring->submitted = 0;
    if (has_array) {
        uint32_t *array = (uint32_t *)(base + params.sq_off.array);
        for (uint32_t i = 0; i < params.sq_entries; i++)
            array[i] = i;
    }
}

/* Submits all that is prepared, and waits until `wait_count` completions are there. */
static inline void ring_enter(struct ring *ring, uint32_t wait_count)
{
    __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
    long taken = syscall(SYS_URING_ENTER, ring->fd, ring->tail - ring->submitted, wait_count,
                         ENTER_GETEVENTS, NULL, 0);
    if (taken >= 0)
        ring->submitted += (uint32_t)taken;
    else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
        die("io_uring_enter: %s", strerror(errno));
}

/* A zeroed entry. When the queue is full, what is in it is submitted first. */
static inline struct sqe *ring_sqe(struct ring *ring)
{
    while (ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) >= ring->sq_entries)
        ring_enter(ring, 0);
    struct sqe *sqe = &ring->sqes[ring->tail++ & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

#endif
