#include "daemon/base/cache.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/affinity.h"

enum { INDEXES = 8, LEAST = 256 << 10 };

static bool read_line(const char *root, int cpu, unsigned index, const char *name, char *line, size_t bytes)
{
	char path[512];
	snprintf(path, sizeof path, "%s/cpu%d/cache/index%u/%s", root, cpu, index, name);
	FILE *f = fopen(path, "re");
	if (!f)
		return false;
	bool ok = fgets(line, (int)bytes, f) != NULL;
	fclose(f);
	if (ok)
		line[strcspn(line, "\n")] = '\0';
	return ok;
}

// "2048K"; 0 for what is no such size.
static uint64_t parse_size(const char *text)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);
	unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
	return n < (UINT64_C(1) << 40) ? n << shift : 0;
}

// Of the CPU; 0: not known. users: of `cpus`, those that share it.
static uint64_t l2_of(const char *root, int cpu, const cpu_set_t *cpus, uint32_t *users)
{
	char line[256];
	*users = 1;
	for (unsigned i = 0; i < INDEXES; i++) {
		if (!read_line(root, cpu, i, "level", line, sizeof line) || strcmp(line, "2") != 0 ||
		    !read_line(root, cpu, i, "size", line, sizeof line))
			continue;
		uint64_t size = parse_size(line);
		cpu_set_t shared;
		if (size && read_line(root, cpu, i, "shared_cpu_list", line, sizeof line) && cpu_list_parse(line, &shared)) {
			CPU_AND(&shared, &shared, cpus);
			*users = CPU_COUNT(&shared) > 1 ? (uint32_t)CPU_COUNT(&shared) : 1;
		}
		if (size)
			return size;
	}
	long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
	return size > 0 ? (uint64_t)size : 0;
}

uint64_t cpu_l2_share(const char *root, const cpu_set_t *cpus, uint32_t threads)
{
	uint32_t count = CPU_COUNT(cpus) > 0 ? (uint32_t)CPU_COUNT(cpus) : 1, rounds = (threads + count - 1) / count;
	uint64_t least = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t users;
		uint64_t size = l2_of(root, cpu_nth(cpus, i), cpus, &users);
		size /= users; // which is known now
		least = size && (!least || size < least) ? size : least;
	}
	return (least ? least : LEAST) / (rounds ? rounds : 1);
}
