/* Reads or writes one file from its start to its end through io_uring, a system call at a
 * time: the limit of what a program that waits for each piece can do.
 *
 *     files_in_order chunks FILE BYTES         reads that many bytes at a time
 *     files_in_order lines FILE                counts the lines, through a buffer
 *     files_in_order writes FILE BYTES COUNT   writes records, through a buffer
 *
 * The buffers are as large as those of ringloop.fs. Prints chunks, lines or records a second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common.h"
#include "uring.h"

enum { OPCODE_READ = 22, OPCODE_WRITE = 23, BUFFER_BYTES = 128 << 10 };

static struct ring ring;
static int fd;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* One read or write at the file's own position; what it returned. */
static int transfer(uint8_t opcode, char *buffer, size_t length)
{
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)buffer;
    sqe->len = (uint32_t)length;
    sqe->off = (uint64_t)-1;
    uint32_t head = *ring.cq_head;
    while (head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE))
        ring_enter(&ring, 1);
    int result = ring.cqes[head & ring.cq_mask].res;
    __atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
    if (result < 0)
        die("%s", strerror(-result));
    return result;
}

static long chunks(size_t length)
{
    char *buffer = allocate(length, 1);
    long count = 0;
    while (transfer(OPCODE_READ, buffer, length) > 0)
        count++;
    return count;
}

static long lines(void)
{
    char *buffer = allocate(BUFFER_BYTES, 1);
    long count = 0;
    for (int got; (got = transfer(OPCODE_READ, buffer, BUFFER_BYTES)) > 0;) {
        char *end = buffer + got, *at = buffer;
        while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
            count++;
            at++;
        }
    }
    return count;
}

static void write_out(char *buffer, size_t length)
{
    if (transfer(OPCODE_WRITE, buffer, length) != (int)length)
        die("a write of %zu bytes was short", length);
}

static long records(size_t length, long count)
{
    char *buffer = allocate(BUFFER_BYTES, 1), *record = allocate(length, 1);
    size_t filled = 0;
    memset(record, 'x', length);
    for (long i = 0; i < count; i++) {
        if (filled + length > BUFFER_BYTES) {
            write_out(buffer, filled);
            filled = 0;
        }
        memcpy(buffer + filled, record, length);
        filled += length;
    }
    if (filled)
        write_out(buffer, filled);
    return count;
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    int of_chunks = argc == 4 && strcmp(what, "chunks") == 0;
    int of_lines = argc == 3 && strcmp(what, "lines") == 0;
    int of_records = argc == 5 && strcmp(what, "writes") == 0;
    if (!of_chunks && !of_lines && !of_records)
        die("usage: %s chunks FILE BYTES | lines FILE | writes FILE BYTES COUNT", argv[0]);
    size_t length = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    if (argc > 3 && (length == 0 || length > BUFFER_BYTES))
        die("BYTES goes from 1 to %d", BUFFER_BYTES);

    ring_open(&ring, 8, 16);
    double begun = now();
    fd = open(argv[2], of_records ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0666);
    if (fd < 0)
        die("%s: %s", argv[2], strerror(errno));
    long count = of_chunks  ? chunks(length)
                 : of_lines ? lines()
                            : records(length, strtol(argv[4], NULL, 10));
    close(fd);
    printf("%.1f\n", (double)count / (now() - begun));
    return 0;
}
