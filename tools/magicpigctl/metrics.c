// magicpigctl metrics: the statistics for Prometheus, once, or over HTTP. Everything comes from the statistics file, mapped read-only: the
// daemon takes no part in it, so neither a scraper nor a mistake in here can slow it down, and a daemon that is stuck can be scraped.
#include "metrics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "health.h"
#include "http.h"
#include "stats.h"

#define MAX_LISTENERS 8

struct source {
	char path[512];
	struct stats_sample sample; // some megabytes; one thread
};

// A new look each time: another daemon has another file of the same name.
static int look(struct source *source, char *why, size_t why_bytes)
{
	struct stats_file file;
	if (stats_open(source->path, &file, why, why_bytes) != 0)
		return -1;
	stats_take(&file, &source->sample);
	stats_close(&file);
	return 0;
}

static void say(struct http_answer *answer, int status, const char *text)
{
	answer->status = status;
	answer->bytes = 0;
	if (asprintf(&answer->body, "%s\n", text) >= 0)
		answer->bytes = strlen(answer->body);
	else
		answer->body = NULL;
}

static void tell_health(struct source *source, bool ready, struct http_answer *answer)
{
	char why[128], text[256];
	if (look(source, why, sizeof(why)) != 0) {
		snprintf(text, sizeof(text), "no daemon: its statistics file: %s", why);
		say(answer, 503, text);
		return;
	}
	struct health health = health_of(&source->sample);
	if (health.alive && (health.ready || !ready))
		say(answer, 200, "ok");
	else
		say(answer, 503, health.reason);
}

static void tell_metrics(struct source *source, bool open_metrics, struct http_answer *answer)
{
	char why[128];
	if (look(source, why, sizeof(why)) != 0) {
		say(answer, 503, why);
		return;
	}
	FILE *out = open_memstream(&answer->body, &answer->bytes);
	if (!out)
		return;
	metrics_write(out, &source->sample, open_metrics ? METRICS_OPENMETRICS : METRICS_PROMETHEUS);
	bool whole = !ferror(out);
	if (fclose(out) != 0 || !whole) {
		answer->bytes = 0;
		return;
	}
	answer->status = 200;
	answer->type = open_metrics ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
	                            : "text/plain; version=0.0.4; charset=utf-8";
}

static void serve(void *argument, const char *path, bool open_metrics, struct http_answer *answer)
{
	if (strcmp(path, "/metrics") == 0)
		tell_metrics(argument, open_metrics, answer);
	else if (strcmp(path, "/healthz") == 0)
		tell_health(argument, false, answer);
	else if (strcmp(path, "/readyz") == 0)
		tell_health(argument, true, answer);
	else
		say(answer, 404, "there are /metrics, /healthz and /readyz");
}

// "systemd": the sockets that the service manager has opened.
static int listen_on(const char *address, struct http_listener *listeners, size_t count, char *why, size_t why_bytes)
{
	if (strcmp(address, "systemd") == 0)
		return http_inherit(&listeners[count], (int)(MAX_LISTENERS - count), why, why_bytes);
	if (count == MAX_LISTENERS) {
		snprintf(why, why_bytes, "at most %d sockets", MAX_LISTENERS);
		return -1;
	}
	return http_listen(address, &listeners[count], why, why_bytes) == 0 ? 1 : -1;
}

static int listen_and_serve(const struct ctl_command *self, struct source *source, const char *const *addresses, size_t given)
{
	struct http_listener listeners[MAX_LISTENERS];
	size_t count = 0;
	char why[128];
	for (size_t i = 0; i < given; i++) {
		int more = listen_on(addresses[i], listeners, count, why, sizeof(why));
		if (more < 0) {
			fprintf(stderr, "magicpigctl %s: --listen %s: %s\n", self->name, addresses[i], why);
			return CTL_FAILED; // what is open already ends with the process
		}
		for (int k = 0; k < more; k++)
			printf("listening on %s\n", listeners[count++].where);
	}
	fflush(stdout);
	if (http_serve(listeners, count, serve, source) != 0) {
		fprintf(stderr, "magicpigctl %s: %s\n", self->name, strerror(errno));
		return CTL_FAILED;
	}
	return CTL_OK;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	enum { STATS = CTL_OPTION_OWN, OPENMETRICS };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"listen", required_argument, NULL, 'l'},
	                                        {"openmetrics", no_argument, NULL, OPENMETRICS},
	                                        {"stats", required_argument, NULL, STATS},
	                                        {NULL, 0, NULL, 0}};
	static struct source source;
	const char *named = NULL, *addresses[MAX_LISTENERS];
	enum metrics_format format = METRICS_PROMETHEUS;
	size_t count = 0;
	for (int option; (option = ctl_option(self, argc, argv, "hl:", options)) != -1;)
		switch (option) {
		case 'l':
			if (count == MAX_LISTENERS)
				return ctl_usage(self, "at most %d times --listen", MAX_LISTENERS);
			addresses[count++] = optarg;
			break;
		case OPENMETRICS:
			format = METRICS_OPENMETRICS;
			break;
		case STATS:
			named = optarg;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	if (ctl_globals.json)
		return ctl_usage(self, "has a format of its own; `magicpigctl status --json` has numbers in JSON");
	int code = stats_find(self, named, source.path, sizeof(source.path));
	if (code)
		return code;
	if (count)
		return listen_and_serve(self, &source, addresses, count);
	char why[128];
	if (look(&source, why, sizeof(why)) != 0) {
		fprintf(stderr, "magicpigctl metrics: %s: %s\n", source.path, why);
		return CTL_NO_DAEMON;
	}
	metrics_write(stdout, &source.sample, format);
	return CTL_OK;
}

const struct ctl_command ctl_metrics = {
	.name = "metrics",
	.arguments = "",
	.summary = "Writes the statistics for Prometheus, once or over HTTP",
	.options = "  -l, --listen ADDRESS  serve /metrics, /healthz and /readyz: unix:/PATH, 127.0.0.1:PORT, [::1]:PORT, or "
		   "systemd (the\n"
		   "                      sockets that it has opened); may be given several times\n"
		   "      --openmetrics   OpenMetrics instead of the text format; over HTTP the scraper says which\n"
		   "      --stats FILE    this statistics file (default: the one beside the socket)\n",
	.run = run,
};
