/* An echo server on epoll: what C reaches with readiness, as a yardstick for event loops.
 *
 * Level-triggered, single-threaded, one recv and one send a request. All connections
 * share one receive buffer, which therefore stays in the cache; a connection owns
 * memory only while the kernel refuses part of its answer.
 *
 * Prints its port on stdout. Ends on SIGTERM or when stdin is closed. */
#define _GNU_SOURCE
#include "common.h"

#include <sys/epoll.h>

enum { SCRATCH_BYTES = 256 * 1024, MAX_EVENTS = 512 };

struct connection {
    int fd;
    char *unsent; /* NULL, or what the kernel did not take yet */
    size_t unsent_start, unsent_end;
};

static int epoll_fd;
static char scratch[SCRATCH_BYTES];
/* Addresses that tell the listener's and stdin's events from the connections'. */
static char listener_tag, stdin_tag;

static void watch(int operation, int fd, uint32_t events, void *tag)
{
    struct epoll_event event = {.events = events, .data.ptr = tag};
    if (epoll_ctl(epoll_fd, operation, fd, &event) == 0)
        return;
    if (fd == STDIN_FILENO && errno == EPERM)
        die("stdin must be a pipe or a terminal: its end tells the server to stop");
    die("epoll_ctl: %s", strerror(errno));
}

static void accept_all(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
                return;
            die("accept: %s", strerror(errno));
        }
        struct connection *conn = allocate(1, sizeof *conn);
        conn->fd = fd;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, conn);
    }
}

/* Only between two events of one connection: nothing else refers to it then. */
static void drop(struct connection *conn)
{
    close(conn->fd);
    free(conn->unsent);
    free(conn);
}

/* Returns the number of bytes taken, or -1 if the connection is lost. */
static ssize_t send_some(int fd, const char *data, size_t length)
{
    ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return sent;
}

static void on_readable(struct connection *conn)
{
    ssize_t received = recv(conn->fd, scratch, sizeof scratch, 0);
    if (received < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (received <= 0) {
        drop(conn);
        return;
    }
    ssize_t sent = send_some(conn->fd, scratch, (size_t)received);
    if (sent < 0) {
        drop(conn);
        return;
    }
    if (sent < received) {
        /* Read no more until the peer has taken this answer. */
        conn->unsent_start = 0;
        conn->unsent_end = (size_t)(received - sent);
        conn->unsent = allocate(1, conn->unsent_end);
        memcpy(conn->unsent, scratch + sent, conn->unsent_end);
        watch(EPOLL_CTL_MOD, conn->fd, EPOLLOUT, conn);
    }
}

static void on_writable(struct connection *conn)
{
    ssize_t sent = send_some(conn->fd, conn->unsent + conn->unsent_start,
                             conn->unsent_end - conn->unsent_start);
    if (sent < 0) {
        drop(conn);
        return;
    }
    conn->unsent_start += (size_t)sent;
    if (conn->unsent_start == conn->unsent_end) {
        free(conn->unsent);
        conn->unsent = NULL;
        watch(EPOLL_CTL_MOD, conn->fd, EPOLLIN, conn);
    }
}

int main(void)
{
    static struct epoll_event events[MAX_EVENTS];

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    int listener = bind_and_print_port(SOCK_STREAM | SOCK_NONBLOCK);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener_tag);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &stdin_tag);

    for (;;) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            void *tag = events[i].data.ptr;
            if (tag == &listener_tag)
                accept_all(listener);
            else if (tag == &stdin_tag)
                exit_if_stdin_closed();
            else if (((struct connection *)tag)->unsent)
                on_writable(tag);
            else
                on_readable(tag);
        }
    }
}
