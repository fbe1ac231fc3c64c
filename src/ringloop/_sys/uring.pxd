"""Extern declarations of `uring.h`; only `_driver` cimports this."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "uring.h" nogil:
    ctypedef struct Sqe "struct rl_sqe":
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_group

    ctypedef struct Cqe "struct rl_cqe":
        uint64_t user_data
        int32_t res
        uint32_t flags

    ctypedef struct SqOffsets "struct rl_sq_offsets":
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array

    ctypedef struct CqOffsets "struct rl_cq_offsets":
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags

    ctypedef struct Params "struct rl_params":
        uint32_t sq_entries, cq_entries, flags, features
        SqOffsets sq_off
        CqOffsets cq_off

    ctypedef struct Timespec "struct rl_timespec":
        int64_t tv_sec
        int64_t tv_nsec

    ctypedef struct GeteventsArg "struct rl_getevents_arg":
        uint64_t sigmask
        uint32_t sigmask_sz
        uint32_t min_wait_usec
        uint64_t ts

    ctypedef struct Buf "struct rl_buf":
        uint64_t addr
        uint32_t len
        uint16_t bid
        uint16_t resv

    ctypedef struct BufReg "struct rl_buf_reg":
        uint64_t ring_addr
        uint32_t ring_entries
        uint16_t bgid
        uint16_t flags

    ctypedef struct ProbeOp "struct rl_probe_op":
        uint8_t op
        uint16_t flags

    ctypedef struct Probe "struct rl_probe":
        uint8_t last_op, ops_len
        ProbeOp ops[256]

    enum:
        RL_SETUP_CQSIZE, RL_SETUP_CLAMP, RL_SETUP_R_DISABLED, RL_SETUP_SUBMIT_ALL
        RL_SETUP_TASKRUN_FLAG, RL_SETUP_SINGLE_ISSUER, RL_SETUP_DEFER_TASKRUN
        RL_SETUP_NO_SQARRAY
        RL_FEAT_SINGLE_MMAP, RL_FEAT_NO_IOWAIT
        RL_ENTER_GETEVENTS, RL_ENTER_EXT_ARG, RL_ENTER_NO_IOWAIT
        RL_SQ_CQ_OVERFLOW, RL_SQ_TASKRUN
        RL_OP_POLL_ADD, RL_OP_SENDMSG, RL_OP_ACCEPT, RL_OP_ASYNC_CANCEL
        RL_OP_SEND, RL_OP_RECV, RL_OP_FTRUNCATE
        RL_SQE_BUFFER_SELECT
        RL_RECVSEND_POLL_FIRST, RL_RECV_MULTISHOT, RL_ACCEPT_MULTISHOT
        RL_POLL_ADD_MULTI
        RL_CANCEL_ALL, RL_CANCEL_ANY
        RL_CQE_BUFFER, RL_CQE_MORE, RL_CQE_BUFFER_SHIFT
        RL_REGISTER_PROBE, RL_REGISTER_ENABLE_RINGS, RL_REGISTER_PBUF_RING
        RL_REGISTER_IOWQ_MAX_WORKERS
        RL_OP_SUPPORTED

    uint64_t RL_OFF_SQ_RING, RL_OFF_SQES

    int rl_uring_setup(unsigned entries, Params *p)
    int rl_uring_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags,
                       const void *arg, size_t size)
    int rl_uring_register(int fd, unsigned op, void *arg, unsigned n)
    uint64_t this_thread "rl_this_thread"()
    uint32_t rl_load_acquire(const uint32_t *p)
    uint32_t rl_load_relaxed(const uint32_t *p)
    void rl_store_release(uint32_t *p, uint32_t v)
    void rl_store_release16(uint16_t *p, uint16_t v)
