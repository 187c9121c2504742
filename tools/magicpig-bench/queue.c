// The ring itself: a private daemon, one client, NOP round trips between two spinning processes; and what the daemon costs when idle.
#include <magicpig.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/magicpig-bench/bench.h"

enum { ROUND_TRIPS = 200000, WARM_UP = 20000, IDLE_SECONDS = 2 };

static pid_t start_daemon(const char *daemon, const char *dir)
{
	char config[300];
	snprintf(config, sizeof(config), "%s/magicpigd.conf", dir);
	FILE *file = fopen(config, "w");
	if (!file)
		return -1;
	fprintf(file,
	        "[daemon]\ninstance = bench\nsocket = %s/magicpigd.sock\nlog_level = warn\n[pool]\ndir = %s/pool\nsize = 64M\n"
	        "[workers]\ncount = 1\nspin_us = 500us\n",
	        dir, dir);
	fclose(file);
	pid_t pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(daemon, daemon, "--config", config, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static int connect_soon(const char *dir, mpig_client **client)
{
	char path[300];
	snprintf(path, sizeof(path), "%s/magicpigd.sock", dir);
	struct mpig_connect_options options = MPIG_INIT(options);
	options.socket_path = path;
	int status = MPIG_ENODAEMON;
	for (int i = 0; i < 100 && status == MPIG_ENODAEMON; i++) {
		status = mpig_connect(&options, client);
		if (status)
			usleep(50000);
	}
	return status;
}

static double cpu_seconds(pid_t pid)
{
	char path[64], line[1024];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
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

static int measure(mpig_client *client, pid_t daemon, struct queue_result *out)
{
	mpig_queue *queue;
	struct mpig_queue_options options = MPIG_INIT(options);
	options.spin_us = 1000;
	int status = mpig_queue_create(client, &options, &queue);
	if (status)
		return status;
	double *us = malloc(ROUND_TRIPS * sizeof(*us));
	for (int i = -WARM_UP; us && i < ROUND_TRIPS && !status; i++) {
		double start = seconds();
		status = mpig_nop(queue);
		if (i >= 0)
			us[i] = (seconds() - start) * 1e6;
	}
	if (us && !status) {
		out->nop_p50_us = percentile(us, ROUND_TRIPS, .5);
		out->nop_p99_us = percentile(us, ROUND_TRIPS, .99);
	}
	free(us);
	sleep(1);
	double before = cpu_seconds(daemon);
	sleep(IDLE_SECONDS);
	out->idle_cpu = (cpu_seconds(daemon) - before) / IDLE_SECONDS;
	mpig_queue_destroy(queue);
	return status;
}

int bench_queue(const char *daemon, struct queue_result *out)
{
	char dir[] = "/dev/shm/mpig-bench-XXXXXX";
	if (!mkdtemp(dir))
		return -1;
	pid_t pid = start_daemon(daemon, dir);
	mpig_client *client = NULL;
	int status = pid > 0 ? connect_soon(dir, &client) : MPIG_EIO;
	if (!status)
		status = measure(client, pid, out);
	if (status)
		fprintf(stderr, "magicpig-bench: %s: %s\n", daemon, mpig_strerror(status));
	mpig_disconnect(client);
	if (pid > 0) {
		kill(pid, SIGTERM);
		waitpid(pid, NULL, 0);
	}
	char config[300];
	snprintf(config, sizeof(config), "%s/magicpigd.conf", dir);
	unlink(config);
	rmdir(dir);
	return status ? -1 : 0;
}
