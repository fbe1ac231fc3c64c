/* What the load generator and both echo servers share: failing with a sentence,
 * and the servers' listening socket. */
#ifndef RINGLOOP_BENCH_COMMON_H
#define RINGLOOP_BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static inline void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die("out of memory: %zu x %zu bytes", count, size);
    return memory;
}

/* Errors are not fatal: a connection that is already gone shows at its next recv. */
static inline void set_nodelay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Binds to 127.0.0.1, on a port of the kernel's choice, listens if it is of a stream
 * type, and prints the port: the line on stdout is how the harness learns that the
 * server is ready. Accepted sockets inherit TCP_NODELAY from the listener. */
static inline int bind_and_print_port(int type)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind to 127.0.0.1: %s", strerror(errno));
    if ((type & ~SOCK_NONBLOCK) == SOCK_STREAM) {
        set_nodelay(fd);
        if (listen(fd, 4096) < 0)
            die("listen: %s", strerror(errno));
    }
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        die("getsockname: %s", strerror(errno));
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

/* The harness holds the other end of stdin: end of file means that it is gone. */
static inline void exit_if_stdin_closed(void)
{
    char byte;
    if (read(STDIN_FILENO, &byte, 1) <= 0)
        exit(0);
}

#endif
