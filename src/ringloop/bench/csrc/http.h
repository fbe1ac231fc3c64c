/* As much of HTTP/1.1 as a load generator needs: one GET, and an answer that is the same
 * each time but for its Date. What it has to be is asked for once, on a connection of
 * its own. */
#ifndef RINGLOOP_BENCH_HTTP_H
#define RINGLOOP_BENCH_HTTP_H

#include "common.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>

static const char HTTP_REQUEST[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

static struct {
    char *bytes;
    size_t size;
    size_t date, date_end; /* these bytes may differ */
} http_reply;

/* Where the value of a header begins; NULL if there is no such line. */
static inline const char *http_header(const char *head, const char *name)
{
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, strlen(name)) == 0)
            return line + 2 + strlen(name);
    return NULL;
}

/* The size of the answer, whose body has to have `body_bytes`. */
static inline size_t http_learn(int port, size_t body_bytes, double patience_s)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    size_t room = body_bytes + 16384;
    char *text = allocate(room + 1, 1), *body = NULL;
    struct timeval patience = {.tv_sec = (time_t)patience_s + 1};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("--http: connect: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (send(fd, HTTP_REQUEST, strlen(HTTP_REQUEST), MSG_NOSIGNAL) < 0)
        die("--http: send: %s", strerror(errno));
    size_t size = 0;
    while (!body || size < (size_t)(body - text) + body_bytes) {
        ssize_t count = size < room ? recv(fd, text + size, room - size, 0) : 0;
        if (count <= 0)
            die("--http: no whole answer, but %zu bytes", size);
        size += (size_t)count;
        if (!body && (body = strstr(text, "\r\n\r\n")))
            body += 4;
    }
    close(fd);

    const char *length = http_header(text, "content-length:");
    const char *date = http_header(text, "date:");
    if (strncmp(text, "HTTP/1.1 200 ", 13) != 0)
        die("--http: the answer is not a 200");
    if (!length || strtoull(length, NULL, 10) != body_bytes
        || size != (size_t)(body - text) + body_bytes)
        die("--http: the body does not have %zu bytes and their Content-Length", body_bytes);
    http_reply.bytes = text;
    http_reply.size = size;
    if (date) {
        http_reply.date = (size_t)(date - text);
        http_reply.date_end = (size_t)(strstr(date, "\r\n") - text);
    }
    return size;
}

/* Whether this is what the answer has from `offset` on. */
static inline bool http_matches(size_t offset, const char *found, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t place = offset + i;
        if (found[i] != http_reply.bytes[place]
            && (place < http_reply.date || place >= http_reply.date_end))
            return false;
    }
    return true;
}

#endif
