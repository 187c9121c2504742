// magicpigctl ping: whether the daemon answers, and how fast.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ctl.h"
#include "json.h"
#include "text.h"

#define MAX_PINGS 1000000

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(const double *sorted, size_t count)
{
	return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

static double now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

// Makes `count` round trips through the queue, or over the control socket without one. Returns a status.
static int measure(mpig_client *client, mpig_queue *queue, size_t count, double *times, bool each)
{
	for (size_t i = 0; i < count; i++) {
		double start = now_ns();
		int status = queue ? mpig_nop(queue) : mpig_ping(client);
		times[i] = now_ns() - start;
		if (status)
			return status;
		char time[TEXT_SHORT];
		if (each)
			printf("reply %zu: %s\n", i + 1, text_latency(time, times[i]));
	}
	return MPIG_OK;
}

static void print_summary(bool queue, const double *sorted, size_t count)
{
	double middle = median(sorted, count);
	if (ctl_globals.json) {
		struct json json;
		json_begin(&json, stdout);
		json_object(&json, NULL);
		json_string(&json, "path", queue ? "queue" : "control");
		json_uint(&json, "count", count);
		json_double(&json, "min_us", sorted[0] / 1e3);
		json_double(&json, "median_us", middle / 1e3);
		json_double(&json, "max_us", sorted[count - 1] / 1e3);
		json_object_end(&json);
		json_finish(&json);
		return;
	}
	char least[TEXT_SHORT], half[TEXT_SHORT], most[TEXT_SHORT];
	printf("%zu round trip%s over the %s: min %s, median %s, max %s\n", count, count == 1 ? "" : "s",
	       queue ? "ring" : "control socket", text_latency(least, sorted[0]), text_latency(half, middle),
	       text_latency(most, sorted[count - 1]));
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"count", required_argument, NULL, 'c'},
	                                        {"queue", no_argument, NULL, 'Q'},
	                                        {"quiet", no_argument, NULL, 'q'},
	                                        {NULL, 0, NULL, 0}};
	size_t count = 4;
	bool over_queue = false, quiet = false;
	for (int option; (option = ctl_option(self, argc, argv, "hc:Qq", options)) != -1;)
		switch (option) {
		case 'c':
			count = ctl_number(self, "--count", optarg, 1, MAX_PINGS);
			break;
		case 'Q':
			over_queue = true;
			break;
		case 'q':
			quiet = true;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);

	mpig_client *client;
	mpig_queue *queue = NULL;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	struct mpig_queue_options small = {.size = sizeof(small), .entries = 1, .slots = 1, .slot_bytes = 4096};
	int status = over_queue ? mpig_queue_create(client, &small, &queue) : MPIG_OK;
	double *times = calloc(count, sizeof(*times));
	if (!status && !times)
		status = MPIG_ENOMEM;
	if (!status)
		status = measure(client, queue, count, times, !quiet && !ctl_globals.json);
	if (status) {
		code = ctl_failed(self, client, NULL, status);
	} else {
		qsort(times, count, sizeof(*times), by_value);
		print_summary(over_queue, times, count);
	}
	free(times);
	mpig_queue_destroy(queue);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_ping = {
	.name = "ping",
	.arguments = "",
	.summary = "Measures round trips to the daemon",
	.options = "  -c, --count N       how many (default 4)\n"
		   "  -Q, --queue         through a queue's rings instead of the control socket\n"
		   "  -q, --quiet         the summary only\n",
	.run = run,
};
