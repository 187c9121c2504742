// The ring itself: a private daemon, one client, NOP round trips between two spinning processes; and what the daemon costs when idle.
#include <magicpig.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/magicpig-bench/bench.h"
#include "tools/magicpig-bench/private_daemon.h"

enum { ROUND_TRIPS = 200000, WARM_UP = 20000, IDLE_SECONDS = 2 };

static int measure(struct private_daemon *d, struct queue_result *out)
{
	mpig_queue *queue;
	struct mpig_queue_options options = MPIG_INIT(options);
	options.spin_us = 1000;
	int status = mpig_queue_create(d->client, &options, &queue);
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
	double before = private_daemon_cpu(d);
	sleep(IDLE_SECONDS);
	out->idle_cpu = (private_daemon_cpu(d) - before) / IDLE_SECONDS;
	mpig_queue_destroy(queue);
	return status;
}

int bench_queue(const char *program, struct queue_result *out)
{
	struct private_daemon d;
	if (private_daemon_start(&d, program, 1, UINT64_C(64) << 20))
		return -1;
	int status = measure(&d, out);
	if (status)
		fprintf(stderr, "magicpig-bench: %s: %s\n", program, mpig_strerror(status));
	private_daemon_stop(&d);
	return status ? -1 : 0;
}
