// Which CPUs the workers get.
#ifndef MPIG_BASE_AFFINITY_H
#define MPIG_BASE_AFFINITY_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Parses "0-3,6" into a set. False on anything else, on an empty list, or on a CPU >= CPU_SETSIZE; *set is then unspecified.
bool cpu_list_parse(const char *text, cpu_set_t *set);
// Writes the set as a list ("0-3,6"; "" for an empty one), truncated to bytes.
void cpu_list_format(const cpu_set_t *set, char *text, size_t bytes);

// The CPUs this process may run on.
void cpu_allowed(cpu_set_t *set);
// One CPU of each core in `allowed` (the lowest sibling), without the first core when there is more than one: that one is the
// clients'.
void cpu_choose_workers(const cpu_set_t *allowed, cpu_set_t *chosen);
// The index-th CPU of a set, counting from 0 and going round; -1 if the set is empty.
int cpu_nth(const cpu_set_t *set, uint32_t index);
// Pins the calling thread. 0 or a negative errno.
int cpu_pin(int cpu);

#endif
