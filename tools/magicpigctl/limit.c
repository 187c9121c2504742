#include "limit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/common/output.h"

#define FORMAT                                                                                                                   \
	"magicpig limit 1\nhost %63s\nstream_bytes_per_s %lf\ngather_bytes_per_s %lf\nthreads %" SCNu32 "\nrow_bytes %" SCNu32   \
	"\nmeasured_ns %" SCNu64 "\n"

// A home may be shared by machines: the host's name is in the file, and in its name.
static int path_of(char *path, size_t bytes, char host[64], int make)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	char directory[256];
	int n;
	if (gethostname(host, 64) != 0)
		return -1;
	host[63] = 0;
	if (cache && cache[0] == '/')
		n = snprintf(directory, sizeof(directory), "%s", cache);
	else if (home && home[0] == '/')
		n = snprintf(directory, sizeof(directory), "%s/.cache", home);
	else
		return errno = ENOENT, -1;
	if (n < 0 || (size_t)n + 80 > sizeof(directory))
		return errno = ENAMETOOLONG, -1;
	if (make)
		mkdir(directory, 0700);
	strcat(directory, "/magicpig");
	if (make && mkdir(directory, 0700) != 0 && errno != EEXIST)
		return -1;
	n = snprintf(path, bytes, "%s/limit-%s", directory, host);
	return n < 0 || (size_t)n >= bytes ? (errno = ENAMETOOLONG, -1) : 0;
}

int limit_read(struct limit *limit)
{
	char path[384], host[64], found[64] = "";
	struct limit l = {0};
	FILE *in = path_of(path, sizeof(path), host, 0) == 0 ? fopen(path, "re") : NULL;
	if (!in)
		return -1;
	int n = fscanf(in, FORMAT, found, &l.stream_bytes_per_s, &l.gather_bytes_per_s, &l.threads, &l.row_bytes, &l.measured_ns);
	fclose(in);
	if (n != 6 || strcmp(found, host) != 0 || !(l.stream_bytes_per_s > 0) || !(l.gather_bytes_per_s > 0))
		return -1;
	*limit = l;
	return 0;
}

struct kept {
	const struct limit *limit;
	char host[64];
};

static void print_limit(FILE *out, const void *kept)
{
	const struct kept *k = kept;
	const struct limit *l = k->limit;
	fprintf(out,
	        "magicpig limit 1\nhost %s\nstream_bytes_per_s %.0f\ngather_bytes_per_s %.0f\nthreads %" PRIu32
	        "\nrow_bytes %" PRIu32 "\nmeasured_ns %" PRIu64 "\n",
	        k->host, l->stream_bytes_per_s, l->gather_bytes_per_s, l->threads, l->row_bytes, l->measured_ns);
}

int limit_write(const struct limit *l)
{
	char path[384];
	struct kept kept = {.limit = l};
	return path_of(path, sizeof(path), kept.host, 1) == 0 ? output_write(path, print_limit, &kept) : -1;
}
