/* A UDP echo server on epoll, recvmmsg and sendmmsg: what C reaches with batches, as a
 * yardstick for event loops. A datagram that the socket does not take is dropped.
 *
 * Prints its port on stdout. Ends on SIGTERM or when stdin is closed. */
#define _GNU_SOURCE
#include "common.h"

#include <sys/epoll.h>

enum { BATCH = 64, LONGEST_BYTES = 65536 };

static char buffers[BATCH][LONGEST_BYTES + 192]; /* not all in one set of the caches */
static struct sockaddr_in senders[BATCH];
static struct iovec iov[BATCH];
static struct mmsghdr messages[BATCH];

static void echo_batch(int fd)
{
    for (int i = 0; i < BATCH; i++)
        iov[i].iov_len = LONGEST_BYTES;
    int count = recvmmsg(fd, messages, BATCH, 0, NULL);
    if (count < 0 && errno != EAGAIN && errno != EINTR)
        die("recvmmsg: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        iov[i].iov_len = messages[i].msg_len;
    for (int sent = 0; sent < count;) {
        int more = sendmmsg(fd, messages + sent, (unsigned)(count - sent), 0);
        sent += more > 0 ? more : 1;
    }
}

int main(void)
{
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    int fd = bind_and_print_port(SOCK_DGRAM | SOCK_NONBLOCK);
    int fds[] = {fd, STDIN_FILENO};
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i]};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0)
            die("epoll_ctl: %s", strerror(errno));
    }
    for (int i = 0; i < BATCH; i++) {
        iov[i].iov_base = buffers[i];
        messages[i].msg_hdr = (struct msghdr){.msg_name = &senders[i],
                                              .msg_namelen = sizeof senders[i],
                                              .msg_iov = &iov[i],
                                              .msg_iovlen = 1};
    }
    for (;;) {
        struct epoll_event events[2];
        int count = epoll_wait(epoll_fd, events, 2, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == fd)
                echo_batch(fd);
            else
                exit_if_stdin_closed();
        }
    }
}
