// How large the caches are.
#ifndef MPIG_BASE_CACHE_H
#define MPIG_BASE_CACHE_H

#include <sched.h>
#include <stdint.h>

#define CPU_CACHE_ROOT "/sys/devices/system/cpu"

// Bytes of second-level cache for each of `threads` threads that go round `cpus`, each CPU of which shares its cache with others of the set as
// the kernel says below `root` (CPU_CACHE_ROOT): the least of them. Where the kernel does not say: sysconf's size, a CPU's own; where that
// is not known either: 256 KiB.
uint64_t cpu_l2_share(const char *root, const cpu_set_t *cpus, uint32_t threads);

#endif
