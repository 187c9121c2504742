#include "daemon/base/affinity.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool parse_cpu(const char **text, unsigned long *cpu)
{
	if (**text < '0' || **text > '9')
		return false;
	char *end;
	errno = 0;
	*cpu = strtoul(*text, &end, 10);
	*text = end;
	return errno == 0 && *cpu < CPU_SETSIZE;
}

bool cpu_list_parse(const char *text, cpu_set_t *set)
{
	CPU_ZERO(set);
	for (;;) {
		unsigned long first, last;
		if (!parse_cpu(&text, &first))
			return false;
		last = first;
		if (*text == '-') {
			text++;
			if (!parse_cpu(&text, &last) || last < first)
				return false;
		}
		for (unsigned long cpu = first; cpu <= last; cpu++)
			CPU_SET(cpu, set);
		if (*text == '\0')
			return true;
		if (*text++ != ',')
			return false;
	}
}

void cpu_list_format(const cpu_set_t *set, char *text, size_t bytes)
{
	size_t used = 0;
	if (bytes)
		text[0] = '\0';
	for (int cpu = 0; cpu < CPU_SETSIZE && used < bytes; cpu++) {
		if (!CPU_ISSET(cpu, set))
			continue;
		int last = cpu;
		while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, set))
			last++;
		const char *comma = used ? "," : "";
		int n = last == cpu ? snprintf(text + used, bytes - used, "%s%d", comma, cpu)
		                    : snprintf(text + used, bytes - used, "%s%d-%d", comma, cpu, last);
		used += (size_t)n;
		cpu = last;
	}
}

void cpu_allowed(cpu_set_t *set)
{
	CPU_ZERO(set);
	if (sched_getaffinity(0, sizeof *set, set) != 0 || CPU_COUNT(set) == 0)
		CPU_SET(0, set);
}

// The lowest CPU of this CPU's core that is in `allowed`; the CPU itself where the kernel does not tell.
static int core_leader(int cpu, const cpu_set_t *allowed)
{
	char path[96], line[256];
	snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
	FILE *f = fopen(path, "re");
	if (!f)
		return cpu;
	cpu_set_t siblings;
	bool ok = fgets(line, sizeof line, f) != NULL;
	fclose(f);
	if (!ok)
		return cpu;
	line[strcspn(line, "\n")] = '\0';
	if (!cpu_list_parse(line, &siblings))
		return cpu;
	CPU_AND(&siblings, &siblings, allowed);
	int leader = cpu_nth(&siblings, 0);
	return leader < 0 ? cpu : leader;
}

void cpu_choose_workers(const cpu_set_t *allowed, cpu_set_t *chosen)
{
	CPU_ZERO(chosen);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, allowed))
			CPU_SET(core_leader(cpu, allowed), chosen);
	if (CPU_COUNT(chosen) > 1)
		CPU_CLR(cpu_nth(chosen, 0), chosen);
}

int cpu_nth(const cpu_set_t *set, uint32_t index)
{
	int count = CPU_COUNT(set);
	if (count == 0)
		return -1;
	index %= (uint32_t)count;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, set) && index-- == 0)
			return cpu;
	return -1;
}

int cpu_pin(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return -pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}
