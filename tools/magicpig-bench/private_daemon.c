#include "tools/magicpig-bench/private_daemon.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int write_config(const char *path, const char *dir, unsigned workers, uint64_t pool_bytes, const char *lines)
{
	FILE *file = fopen(path, "w");
	if (!file)
		return -1;
	fprintf(file,
	        "[daemon]\ninstance = bench\nsocket = %s/magicpigd.sock\nlog_level = warn\n"
	        "[pool]\ndir = %s/pool\nsize = %" PRIu64 "\nkeep = no\n[workers]\ncount = %u\nspin_us = 500us\n%s",
	        dir, dir, pool_bytes, workers, lines);
	return fclose(file);
}

static int connect_soon(struct private_daemon *d)
{
	char path[64];
	snprintf(path, sizeof(path), "%s/magicpigd.sock", d->dir);
	struct mpig_connect_options options = MPIG_INIT(options);
	options.socket_path = path;
	int status = MPIG_ENODAEMON;
	for (int i = 0; i < 200 && status == MPIG_ENODAEMON && !waitpid(d->pid, NULL, WNOHANG); i++) {
		status = mpig_connect(&options, &d->client);
		if (status)
			usleep(50000);
	}
	return status;
}

int private_daemon_start(struct private_daemon *d, const char *program, unsigned workers, uint64_t pool_bytes)
{
	return private_daemon_start_with(d, program, workers, pool_bytes, "");
}

int private_daemon_start_with(struct private_daemon *d, const char *program, unsigned workers, uint64_t pool_bytes,
                              const char *lines)
{
	*d = (struct private_daemon){.dir = "/dev/shm/mpig-bench-XXXXXX"};
	if (!mkdtemp(d->dir)) {
		perror("magicpig-bench: /dev/shm");
		return -1;
	}
	char config[64];
	snprintf(config, sizeof(config), "%s/magicpigd.conf", d->dir);
	int status = write_config(config, d->dir, workers, pool_bytes, lines) ? MPIG_EIO : 0;
	if (!status && (d->pid = fork()) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(program, program, "--config", config, (char *)NULL);
		_exit(127);
	}
	if (!status)
		status = d->pid > 0 ? connect_soon(d) : MPIG_EIO;
	if (status) {
		fprintf(stderr, "magicpig-bench: cannot start %s: %s\n", program, mpig_strerror(status));
		private_daemon_stop(d);
		return -1;
	}
	return 0;
}

double private_daemon_cpu(const struct private_daemon *d)
{
	char path[64], line[1024];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)d->pid);
	FILE *file = fopen(path, "r");
	unsigned long user = 0, system = 0;
	if (file) {
		char *after = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
		if (after)
			sscanf(after, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
		fclose(file);
	}
	return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

// kB of its largest mapping, the pool, that are resident, and that are in huge pages.
static void pool_pages(const struct private_daemon *d, unsigned long *resident, unsigned long *huge)
{
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)d->pid);
	FILE *file = fopen(path, "r");
	unsigned long kb, rss = 0;
	*resident = *huge = 0;
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Rss: %lu", &kb) == 1)
			rss = kb;
		if (sscanf(line, "ShmemPmdMapped: %lu", &kb) == 1) {
			*huge += kb;
			*resident = rss > *resident ? rss : *resident;
		}
	}
	if (file)
		fclose(file);
}

double private_daemon_huge(const struct private_daemon *d)
{
	unsigned long resident, huge;
	pool_pages(d, &resident, &huge);
	return resident ? (double)huge / (double)resident : NAN;
}

uint64_t private_daemon_resident(const struct private_daemon *d)
{
	unsigned long resident, huge;
	pool_pages(d, &resident, &huge);
	return (uint64_t)resident << 10;
}

void private_daemon_settle(const struct private_daemon *d)
{
	enum { QUIET = 3, MOST = 60 };
	double last = private_daemon_huge(d);
	for (int i = 0, quiet = 0; i < MOST && quiet < QUIET; i++) {
		usleep(1000000); // a daemon begins its idle work within a second
		double now = private_daemon_huge(d);
		quiet = now > last ? 0 : quiet + 1;
		last = now;
	}
}

void private_daemon_stop(struct private_daemon *d)
{
	mpig_disconnect(d->client);
	if (d->pid > 0 && kill(d->pid, SIGTERM) == 0)
		waitpid(d->pid, NULL, 0);
	char config[64];
	snprintf(config, sizeof(config), "%s/magicpigd.conf", d->dir);
	unlink(config);
	rmdir(d->dir);
}
