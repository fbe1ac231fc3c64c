/* A histogram of latencies: 64 buckets to each power of two (under 1.6 % wide), up to
 * 2^41 ns. */
#ifndef RINGLOOP_BENCH_LATENCY_H
#define RINGLOOP_BENCH_LATENCY_H

#include <stdint.h>

enum {
    SUB_BITS = 6,
    SUB_BUCKETS = 1 << SUB_BITS,
    BUCKETS = 36 * SUB_BUCKETS,
};

struct latencies {
    uint64_t buckets[BUCKETS];
    uint64_t count, max_ns;
};

static inline void latency_record(struct latencies *all, uint64_t ns)
{
    uint64_t index = ns;
    if (ns >= SUB_BUCKETS) {
        int shift = 63 - __builtin_clzll(ns) - SUB_BITS;
        index = (uint64_t)(shift + 1) * SUB_BUCKETS + (ns >> shift) - SUB_BUCKETS;
    }
    all->buckets[index < BUCKETS ? index : BUCKETS - 1]++;
    all->count++;
    if (ns > all->max_ns)
        all->max_ns = ns;
}

static inline double latency_percentile_us(const struct latencies *all, double fraction)
{
    uint64_t rank = (uint64_t)(fraction * (double)all->count), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += all->buckets[i];
        if (seen > rank) {
            if (i < SUB_BUCKETS)
                return i / 1e3;
            int shift = i / SUB_BUCKETS - 1;
            double middle = (double)(i % SUB_BUCKETS + SUB_BUCKETS) + 0.5;
            return middle * (double)(1ull << shift) / 1e3;
        }
    }
    return (double)all->max_ns / 1e3;
}

#endif
