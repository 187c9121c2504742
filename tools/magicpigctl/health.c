// magicpigctl health: for probes: an exit code and a line of text.
#include "health.h"

#include <inttypes.h>
#include <stdio.h>

#include "ctl.h"
#include "json.h"
#include "stats.h"

static double seconds_since(uint64_t then_ns, uint64_t now_ns)
{
	return now_ns > then_ns ? (double)(now_ns - then_ns) / 1e9 : 0;
}

struct health health_of(const struct stats_sample *s)
{
	struct health health = {0};
	double control = seconds_since(s->head.heartbeat_ns, s->taken_ns);
	double worker = s->oldest_heartbeat_ns ? seconds_since(s->oldest_heartbeat_ns, s->taken_ns) : 0;
	if (control * 1e9 > HEALTH_CONTROL_STALE_NS)
		snprintf(health.reason, sizeof(health.reason), "pid %" PRIu64 " has not been seen alive for %.0f s", s->head.pid,
		         control);
	else if (worker * 1e9 > HEALTH_WORKER_STALE_NS)
		snprintf(health.reason, sizeof(health.reason), "a worker has not been seen alive for %.0f s", worker);
	else
		health.alive = true;
	if (!health.alive)
		return health;
	health.ready = s->head.flags & MPIG_STATS_READY;
	if (!health.ready)
		snprintf(health.reason, sizeof(health.reason), "%s",
		         s->head.flags & MPIG_STATS_STOPPING  ? "it is stopping"
		         : s->head.flags & MPIG_STATS_DRAINED ? "it is drained"
		                                              : "it is starting");
	return health;
}

static void print(const struct health *health)
{
	if (ctl_globals.json) {
		struct json json;
		json_begin(&json, stdout);
		json_object(&json, NULL);
		json_bool(&json, "healthy", health->alive);
		json_bool(&json, "ready", health->ready);
		json_string(&json, "reason", health->reason[0] ? health->reason : NULL);
		json_object_end(&json);
		json_finish(&json);
	} else if (health->ready) {
		puts("healthy and ready");
	} else {
		printf("%s: %s\n", health->alive ? "healthy, not ready" : "not healthy", health->reason);
	}
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"ready", no_argument, NULL, 'r'},
	                                        {"stats", required_argument, NULL, CTL_OPTION_OWN},
	                                        {NULL, 0, NULL, 0}};
	static struct stats_sample sample;
	const char *named = NULL;
	bool ready = false;
	for (int option; (option = ctl_option(self, argc, argv, "hr", options)) != -1;)
		if (option == 'r')
			ready = true;
		else
			named = optarg;
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	char path[512], why[128];
	struct stats_file file;
	int code = stats_find(self, named, path, sizeof(path));
	if (code)
		return code;
	if (stats_open(path, &file, why, sizeof(why)) != 0) {
		fprintf(stderr, "magicpigctl health: %s: %s\n", path, why);
		return CTL_NO_DAEMON;
	}
	stats_take(&file, &sample);
	stats_close(&file);
	struct health health = health_of(&sample);
	print(&health);
	return health.alive && (health.ready || !ready) ? CTL_OK : CTL_FAILED;
}

const struct ctl_command ctl_health = {
	.name = "health",
	.arguments = "",
	.summary = "Tells by its exit code whether the daemon is alive",
	.options = "  -r, --ready         whether it also takes newcomers: neither starting, drained nor stopping\n"
		   "  --stats FILE        this statistics file (default: the one beside the socket)\n",
	.run = run,
};
