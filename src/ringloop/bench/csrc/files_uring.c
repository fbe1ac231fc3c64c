/* Reads and writes files through io_uring, so many operations at a time: the limit.
 *
 *     files_uring direct|cached FILE BLOCK_BYTES DEPTH COUNT
 *     files_uring open|fsync FOLDER BYTES DEPTH COUNT
 *
 * direct and cached read blocks at random places of a file, with O_DIRECT or without; open
 * opens, reads and closes the files 0, 1, ... of a folder; fsync opens the files new-0,
 * new-1, ..., writes, syncs and closes them. Prints reads, or files, a second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "common.h"
#include "uring.h"

enum {
    OPCODE_FSYNC = 3,
    OPCODE_OPENAT = 18,
    OPCODE_READ = 22,
    OPCODE_WRITE = 23,
    ALIGNMENT = 4096,
    MAX_DEPTH = 1024,
};
enum step { OPENING, READING, WRITING, SYNCING, CLOSING };

static struct {
    enum step step;
    int fd;
    char path[32];
} slots[MAX_DEPTH];

static struct ring ring;
static char *memory;
static size_t block;
static int fd, folder = -1, writes;
static uint64_t blocks;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static struct sqe *begin(unsigned slot, enum step step, uint8_t opcode, int of)
{
    struct sqe *sqe = ring_sqe(&ring);
    sqe->opcode = opcode;
    sqe->fd = of;
    sqe->user_data = slot;
    slots[slot].step = step;
    return sqe;
}

/* Reads or writes the slot's part of the memory. */
static void transfer(unsigned slot, int of, uint64_t offset)
{
    struct sqe *sqe = writes ? begin(slot, WRITING, OPCODE_WRITE, of)
                             : begin(slot, READING, OPCODE_READ, of);
    sqe->addr = (uint64_t)(uintptr_t)(memory + block * slot);
    sqe->len = (uint32_t)block;
    sqe->off = offset;
}

static void start(unsigned slot, long number)
{
    if (folder < 0) {
        transfer(slot, fd, (uint64_t)random() % blocks * block);
        return;
    }
    snprintf(slots[slot].path, sizeof slots[slot].path, writes ? "new-%ld" : "%ld", number);
    struct sqe *sqe = begin(slot, OPENING, OPCODE_OPENAT, folder);
    sqe->addr = (uint64_t)(uintptr_t)slots[slot].path;
    sqe->len = 0666; /* of a new file */
    sqe->op_flags = O_CLOEXEC | (writes ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY);
}

/* Whether what the slot did is finished. */
static int go_on(unsigned slot, int result)
{
    if (result < 0)
        die("%s", strerror(-result));
    switch (slots[slot].step) {
    case OPENING:
        slots[slot].fd = result;
        transfer(slot, result, 0);
        return 0;
    case READING:
    case WRITING:
        if (result != (int)block)
            die("a transfer of %zu bytes moved %d", block, result);
        if (folder < 0)
            return 1;
        if (writes)
            begin(slot, SYNCING, OPCODE_FSYNC, slots[slot].fd);
        else
            begin(slot, CLOSING, OP_CLOSE, slots[slot].fd);
        return 0;
    case SYNCING:
        begin(slot, CLOSING, OP_CLOSE, slots[slot].fd);
        return 0;
    case CLOSING:
        return 1;
    }
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        die("usage: %s direct|cached|open|fsync FILE_OR_FOLDER BYTES DEPTH COUNT", argv[0]);
    block = strtoul(argv[3], NULL, 10);
    unsigned depth = (unsigned)strtoul(argv[4], NULL, 10);
    long count = strtol(argv[5], NULL, 10), started = 0, done = 0;
    int direct = strcmp(argv[1], "direct") == 0;
    struct stat st;
    writes = strcmp(argv[1], "fsync") == 0;
    fd = open(argv[2], O_RDONLY | (direct ? O_DIRECT : 0));
    if (fd < 0 || fstat(fd, &st) < 0)
        die("%s: %s", argv[2], strerror(errno));
    if (writes || strcmp(argv[1], "open") == 0)
        folder = fd;
    else if ((blocks = (uint64_t)st.st_size / block) == 0)
        die("the file is smaller than a block");
    void *aligned;
    if (depth > MAX_DEPTH || posix_memalign(&aligned, ALIGNMENT, block * depth) != 0)
        die("no memory, or more than %d at a time", MAX_DEPTH);
    memory = aligned;

    ring_open(&ring, 256, 1024);
    double begun = now();
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
            if (started >= count)
                continue;
            start(slot, started++);
            if (direct)
                ring_enter(&ring, 0); /* a disk that waits for the whole batch is idle */
        }
        __atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
    }
    printf("%.1f\n", (double)count / (now() - begun));
    return 0;
}
