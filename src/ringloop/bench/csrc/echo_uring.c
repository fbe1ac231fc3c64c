/* An echo server on io_uring: what C reaches with completions, as a yardstick for event loops.
 *
 * One enter an iteration submits all that the last iteration prepared and waits for
 * more. Accept and recv are multishot; what arrives lies in provided buffers and is sent
 * from there, without a copy, by one send a connection and iteration. Sockets are plain
 * file descriptors, not registered files, since that is what a loop must give its users.
 *
 * The buffers are large (a 64 KiB message fills one or two) but few of them are in the
 * kernel's hands at a time, and the one returned last is provided first: the kernel
 * takes buffers in turn, so what it has in turn should fit the cache. Only when the
 * kernel runs out (ENOBUFS) does it get twice as many.
 *
 * There is no flow control: a peer that sends without reading gets all the buffers and
 * stops the others. The load generator waits for each answer.
 *
 * Prints its port on stdout. Ends on SIGTERM or when stdin is closed. */
#define _GNU_SOURCE
#include "uring.h"

#include <poll.h>
#include <stdbool.h>
#include <sys/uio.h>

enum {
    SQ_ENTRIES = 1024,
    CQ_ENTRIES = 8192,
    BUFFER_BYTES = 64 * 1024,
    BUFFERS = 1024, /* a power of two: also the entries of the buffer ring */
    PROVIDED_AT_FIRST = 32,
    BUFFERS_PER_SEND = 16,
    MAX_FDS = 32768,
    NO_BUFFER = 0xffff,
};

/* What a completion is of: the low bits of user_data, below the file descriptor. */
enum kind { ACCEPT, RECV, SEND, CLOSE, STDIN };
enum { KIND_BITS = 3 };

/* A buffer that holds what is still to be sent of a connection. */
struct filled {
    uint32_t start, end;
    uint16_t next;
};

/* Indexed by file descriptor. It is closed only after the last completion of its recv
 * and of its send, so that a number in use again gets no completion of its predecessor. */
struct connection {
    bool receiving, sending;
    bool ended;           /* nothing more will be received: close when all is sent */
    bool queued;          /* is in `unsettled` */
    uint16_t first, last; /* the buffers to send */
};

/* Where a send of several buffers keeps its arguments until the kernel has copied them:
 * one for each entry of the submission queue, so that they are free when it is. */
struct send_arguments {
    struct msghdr message;
    struct iovec parts[BUFFERS_PER_SEND];
};

static struct ring ring;
static int listener;
static struct connection connections[MAX_FDS];
static struct send_arguments send_arguments[SQ_ENTRIES];

/* Connections that need an operation started, when all completions are handled. */
static int unsettled[MAX_FDS];
static int unsettled_count;

static struct pbuf *buffer_ring;
static char *buffer_memory;
static struct filled filled[BUFFERS];
static uint16_t spare[BUFFERS]; /* a stack: the hottest buffer is on top */
static uint32_t spare_count, provided_count, provided_limit = PROVIDED_AT_FIRST;
static uint16_t buffer_ring_tail;
static bool ran_out_of_buffers;

/* --- buffers ------------------------------------------------------------------ */

static char *buffer_address(uint16_t id)
{
    return buffer_memory + (size_t)id * BUFFER_BYTES;
}

static void provide_buffers(void)
{
    if (ran_out_of_buffers && provided_limit < BUFFERS)
        provided_limit *= 2;
    ran_out_of_buffers = false;
    while (provided_count < provided_limit && spare_count > 0) {
        uint16_t id = spare[--spare_count];
        struct pbuf *entry = &buffer_ring[buffer_ring_tail++ & (BUFFERS - 1)];
        entry->addr = (uintptr_t)buffer_address(id);
        entry->len = BUFFER_BYTES;
        entry->bid = id;
        provided_count++;
    }
    __atomic_store_n(&buffer_ring[0].tail, buffer_ring_tail, __ATOMIC_RELEASE);
}

static void *map_memory(size_t length)
{
    void *memory =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap of %zu bytes: %s", length, strerror(errno));
    return memory;
}

static void open_buffers(void)
{
    buffer_memory = map_memory((size_t)BUFFERS * BUFFER_BYTES);
    buffer_ring = map_memory(BUFFERS * sizeof *buffer_ring);
    struct pbuf_registration registration = {.ring_addr = (uintptr_t)buffer_ring,
                                             .ring_entries = BUFFERS};
    if (syscall(SYS_URING_REGISTER, ring.fd, REGISTER_PBUF_RING, &registration, 1) < 0)
        die("registering a buffer ring: %s", strerror(errno));
    for (int id = BUFFERS - 1; id >= 0; id--)
        spare[spare_count++] = (uint16_t)id;
}

/* --- starting operations ------------------------------------------------------ */

static struct sqe *prepare(uint8_t opcode, int fd, enum kind kind)
{
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = (uint64_t)fd << KIND_BITS | kind;
    return sqe;
}

static void start_accept(void)
{
    struct sqe *sqe = prepare(OP_ACCEPT, listener, ACCEPT);
    sqe->ioprio = ACCEPT_MULTISHOT;
    sqe->op_flags = SOCK_CLOEXEC;
}

static void start_watching_stdin(void)
{
    prepare(OP_POLL_ADD, STDIN_FILENO, STDIN)->op_flags = POLLIN;
}

static void start_recv(int fd)
{
    struct sqe *sqe = prepare(OP_RECV, fd, RECV);
    sqe->flags = SQE_BUFFER_SELECT;
    sqe->ioprio = RECV_MULTISHOT;
    connections[fd].receiving = true;
}

static void start_send(int fd)
{
    struct connection *conn = &connections[fd];
    struct sqe *sqe = prepare(OP_SEND, fd, SEND);
    struct send_arguments *arguments = &send_arguments[sqe - ring.sqes];
    size_t count = 0;

    for (uint16_t id = conn->first; id != NO_BUFFER && count < BUFFERS_PER_SEND;
         id = filled[id].next) {
        arguments->parts[count++] = (struct iovec){buffer_address(id) + filled[id].start,
                                                   filled[id].end - filled[id].start};
    }
    if (count == 1) {
        sqe->addr = (uintptr_t)arguments->parts[0].iov_base;
        sqe->len = (uint32_t)arguments->parts[0].iov_len;
    } else {
        arguments->message =
            (struct msghdr){.msg_iov = arguments->parts, .msg_iovlen = count};
        sqe->opcode = OP_SENDMSG;
        sqe->addr = (uintptr_t)&arguments->message;
        sqe->len = 1;
    }
    /* With MSG_WAITALL the kernel itself goes on after a short send, mostly. */
    sqe->op_flags = MSG_NOSIGNAL | MSG_WAITALL;
    conn->sending = true;
}

/* Called once for each connection with news, after all completions of an iteration. */
static void settle(int fd)
{
    struct connection *conn = &connections[fd];
    conn->queued = false;
    if (conn->sending)
        return; /* one send at a time: two could overtake each other */
    if (conn->first != NO_BUFFER)
        start_send(fd);
    else if (conn->ended && !conn->receiving)
        prepare(OP_CLOSE, fd, CLOSE);
}

static void mark_unsettled(int fd)
{
    if (!connections[fd].queued) {
        connections[fd].queued = true;
        unsettled[unsettled_count++] = fd;
    }
}

static void settle_all(void)
{
    int waiting = 0;
    for (int i = 0; i < unsettled_count; i++) {
        int fd = unsettled[i];
        settle(fd);
        if (connections[fd].receiving || connections[fd].ended)
            continue;
        if (provided_count > 0) {
            start_recv(fd);
        } else { /* would only end with ENOBUFS again: wait for sends to return buffers */
            connections[fd].queued = true;
            unsettled[waiting++] = fd;
        }
    }
    unsettled_count = waiting;
}

/* --- completions -------------------------------------------------------------- */

static void on_accept(const struct cqe *cqe)
{
    if (cqe->res >= MAX_FDS)
        die("more than %d connections", MAX_FDS);
    if (cqe->res == -EMFILE || cqe->res == -ENFILE)
        die("accept: %s; raise the limit of open files (ulimit -n)", strerror(-cqe->res));
    if (cqe->res >= 0) {
        connections[cqe->res] = (struct connection){.first = NO_BUFFER};
        mark_unsettled(cqe->res);
    }
    if (!(cqe->flags & CQE_F_MORE))
        start_accept();
}

static void on_recv(int fd, const struct cqe *cqe)
{
    struct connection *conn = &connections[fd];
    mark_unsettled(fd);
    if (!(cqe->flags & CQE_F_MORE))
        conn->receiving = false;
    if (cqe->res == -ENOBUFS) {
        ran_out_of_buffers = true;
        return;
    }
    if (cqe->res <= 0)
        conn->ended = true;
    if (!(cqe->flags & CQE_F_BUFFER))
        return;

    uint16_t id = (uint16_t)(cqe->flags >> CQE_BUFFER_SHIFT);
    provided_count--;
    if (conn->ended) {
        spare[spare_count++] = id;
        return;
    }
    filled[id] = (struct filled){.end = (uint32_t)cqe->res, .next = NO_BUFFER};
    if (conn->first == NO_BUFFER)
        conn->first = id;
    else
        filled[conn->last].next = id;
    conn->last = id;
}

static void release_first_buffer(struct connection *conn)
{
    spare[spare_count++] = conn->first;
    conn->first = filled[conn->first].next;
}

static void on_send(int fd, const struct cqe *cqe)
{
    struct connection *conn = &connections[fd];
    mark_unsettled(fd);
    conn->sending = false;
    if (cqe->res < 0) {
        while (conn->first != NO_BUFFER)
            release_first_buffer(conn);
        conn->ended = true;
        shutdown(fd, SHUT_RDWR); /* ends the recv too */
        return;
    }
    for (uint32_t sent = (uint32_t)cqe->res; sent > 0;) {
        struct filled *part = &filled[conn->first];
        uint32_t length = part->end - part->start;
        if (sent < length) {
            part->start += sent;
            return;
        }
        sent -= length;
        release_first_buffer(conn);
    }
}

static void handle_completions(void)
{
    uint32_t head = *ring.cq_head;
    uint32_t tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
    for (; head != tail; head++) {
        const struct cqe *cqe = &ring.cqes[head & ring.cq_mask];
        int fd = (int)(cqe->user_data >> KIND_BITS);
        switch ((enum kind)(cqe->user_data & ((1 << KIND_BITS) - 1))) {
        case ACCEPT: on_accept(cqe); break;
        case RECV: on_recv(fd, cqe); break;
        case SEND: on_send(fd, cqe); break;
        case STDIN:
            exit_if_stdin_closed();
            start_watching_stdin();
            break;
        default: break; /* of a close: nothing left to do */
        }
    }
    __atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
}

int main(void)
{
    ring_open(&ring, SQ_ENTRIES, CQ_ENTRIES);
    open_buffers();
    provide_buffers();
    listener = bind_and_print_port(SOCK_STREAM);
    start_accept();
    start_watching_stdin();
    for (;;) {
        ring_enter(&ring, 1);
        handle_completions();
        provide_buffers();
        settle_all();
    }
}
