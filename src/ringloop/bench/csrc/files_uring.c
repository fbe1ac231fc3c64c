/* Reads files through io_uring, so many operations at a time: the limit.
 *
 *     files_uring direct|cached FILE BLOCK_BYTES DEPTH COUNT
 *     files_uring open FOLDER BYTES DEPTH COUNT
 *
 * direct and cached read blocks at random places of a file, with O_DIRECT or without; open
 * opens, reads and closes the files 0, 1, ... of a folder. Prints reads, or files, a second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "common.h"
#include "uring.h"

enum { OPCODE_OPENAT = 18, OPCODE_READ = 22, ALIGNMENT = 4096, MAX_DEPTH = 1024 };
enum step { OPENING, READING, CLOSING };

static struct {
    enum step step;
    int fd;
    char path[32];
} slots[MAX_DEPTH];

static struct ring ring;
static char *memory;
static size_t block;
static int fd, folder = -1;
static uint64_t blocks;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void read_block(unsigned slot, int from, uint64_t offset)
{
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = OPCODE_READ;
    sqe->fd = from;
    sqe->addr = (uint64_t)(uintptr_t)(memory + block * slot);
    sqe->len = (uint32_t)block;
    sqe->off = offset;
    sqe->user_data = slot;
    slots[slot].step = READING;
}

static void start(unsigned slot, long number)
{
    if (folder < 0) {
        read_block(slot, fd, (uint64_t)random() % blocks * block);
        return;
    }
    snprintf(slots[slot].path, sizeof slots[slot].path, "%ld", number);
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = OPCODE_OPENAT;
    sqe->fd = folder;
    sqe->addr = (uint64_t)(uintptr_t)slots[slot].path;
    sqe->op_flags = O_RDONLY | O_CLOEXEC;
    sqe->user_data = slot;
    slots[slot].step = OPENING;
}

/* Whether what the slot did is finished. */
static int go_on(unsigned slot, int result)
{
    if (result < 0)
        die("%s", strerror(-result));
    if (slots[slot].step == OPENING) {
        slots[slot].fd = result;
        read_block(slot, result, 0);
        return 0;
    }
    if (slots[slot].step == CLOSING)
        return 1;
    if (result != (int)block)
        die("a read gave %d", result);
    if (folder < 0)
        return 1;
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = OP_CLOSE;
    sqe->fd = slots[slot].fd;
    sqe->user_data = slot;
    slots[slot].step = CLOSING;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        die("usage: %s direct|cached|open FILE_OR_FOLDER BYTES DEPTH COUNT", argv[0]);
    block = strtoul(argv[3], NULL, 10);
    unsigned depth = (unsigned)strtoul(argv[4], NULL, 10);
    long count = strtol(argv[5], NULL, 10), started = 0, done = 0;
    int direct = strcmp(argv[1], "direct") == 0, files = strcmp(argv[1], "open") == 0;
    struct stat st;
    fd = open(argv[2], O_RDONLY | (direct ? O_DIRECT : 0));
    if (fd < 0 || fstat(fd, &st) < 0)
        die("%s: %s", argv[2], strerror(errno));
    if (files)
        folder = fd;
    else if ((blocks = (uint64_t)st.st_size / block) == 0)
        die("the file is smaller than a block");
    memory = aligned_alloc(ALIGNMENT, block * depth);
    if (memory == NULL || depth > MAX_DEPTH)
        die("no memory, or more than %d at a time", MAX_DEPTH);

    ring_open(&ring, 256, 1024);
    double begin = now();
    uint32_t head = *ring.cq_head;
    for (unsigned slot = 0; slot < depth && started < count; slot++)
        start(slot, started++);
    while (done < count) {
        ring_enter(&ring, 1);
        uint32_t tail = __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE);
        for (; head != tail; head++) {
            struct cqe *cqe = &ring.cqes[head & ring.cq_mask];
            unsigned slot = (unsigned)cqe->user_data;
            if (!go_on(slot, cqe->res))
                continue;
            done++;
            if (started < count)
                start(slot, started++);
        }
        __atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
    }
    printf("%.1f\n", (double)count / (now() - begin));
    return 0;
}
