/* How late something was, time after time: counts by bounded buckets, and the sum. */
#ifndef RV_LATENESS_H
#define RV_LATENESS_H

#include <stdint.h>

#define RV_LATENESS_BUCKETS 6
/* Upper bounds of all but the last. */
extern const int64_t rv_lateness_bounds_ns[RV_LATENESS_BUCKETS - 1];

struct rv_lateness {
    uint64_t counts[RV_LATENESS_BUCKETS], total_ns;
};

/* One thread counts; any may look. */
static inline void rv_lateness_count(struct rv_lateness *l, int64_t late_ns)
{
    int bucket = 0;
    while (bucket < RV_LATENESS_BUCKETS - 1 && late_ns > rv_lateness_bounds_ns[bucket])
        bucket++;
    __atomic_add_fetch(&l->total_ns, (uint64_t)late_ns, __ATOMIC_RELAXED);
    __atomic_add_fetch(&l->counts[bucket], 1, __ATOMIC_RELAXED);
}

#endif
