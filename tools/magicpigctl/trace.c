// magicpigctl trace: the queries of live clients, recorded, and asked again in other ways.
#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

volatile sig_atomic_t trace_interrupted;

static void on_signal(int number)
{
	(void)number;
	trace_interrupted = 1;
}

struct given {
	struct trace_record_options record;
	struct trace_replay_options replay;
	char single[128]; // the configuration of --proposal, --budget and --error
	bool for_record, for_replay;
};

static void config(const struct ctl_command *self, struct given *g, const char *text)
{
	char why[128];
	if (g->replay.configs == TRACE_CONFIGS)
		exit(ctl_usage(self, "at most %d configurations at a time", TRACE_CONFIGS));
	if (!trace_config_parse(text, &g->replay.config[g->replay.configs++], why))
		exit(ctl_usage(self, "--config: %s", why));
}

// --proposal P, --budget B, --error E: parts of one configuration.
static void part(struct given *g, const char *key, const char *value)
{
	size_t used = strlen(g->single);
	snprintf(g->single + used, sizeof(g->single) - used, "%s%s%.24s", used ? "," : "", key, value);
}

static void parse(const struct ctl_command *self, int argc, char **argv, struct given *g)
{
	enum { RING = CTL_OPTION_OWN, CONFIG, BUDGET, PROPOSAL, ERROR, EXACT, SPEED };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"requests", required_argument, NULL, 'n'},
	                                        {"seconds", required_argument, NULL, 's'},
	                                        {"ring", required_argument, NULL, RING},
	                                        {"config", required_argument, NULL, CONFIG},
	                                        {"budget", required_argument, NULL, BUDGET},
	                                        {"proposal", required_argument, NULL, PROPOSAL},
	                                        {"error", required_argument, NULL, ERROR},
	                                        {"exact", no_argument, NULL, EXACT},
	                                        {"speed", required_argument, NULL, SPEED},
	                                        {NULL, 0, NULL, 0}};
	for (int option; (option = ctl_option(self, argc, argv, "hn:s:", options)) != -1;) {
		g->for_record |= option == 's' || option == RING;
		g->for_replay |= option >= CONFIG;
		switch (option) {
		case 'n':
			g->record.requests = g->replay.requests = ctl_number(self, "--requests", optarg, 1, UINT32_MAX);
			break;
		case 's':
			g->record.seconds = ctl_number(self, "--seconds", optarg, 1, 1000000);
			break;
		case RING:
			g->record.ring_mib = ctl_number(self, "--ring", optarg, 1, 1024);
			break;
		case CONFIG:
			config(self, g, optarg);
			break;
		case BUDGET:
			part(g, "budget=", optarg);
			break;
		case PROPOSAL:
			part(g, "", optarg);
			break;
		case ERROR:
			part(g, "error=", optarg);
			break;
		case EXACT:
			g->replay.exact = true;
			break;
		case SPEED:
			g->replay.speed = ctl_positive(self, "--speed", optarg, 1e6);
			break;
		}
	}
	if (*g->single)
		config(self, g, g->single);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	struct given g = {.record = {.ring_mib = 32}};
	parse(self, argc, argv, &g);
	const char *action = optind < argc ? argv[optind] : "";
	char **rest = argv + optind + 1;
	int count = argc - optind - 1;
	struct sigaction act = {.sa_handler = on_signal,
	                        .sa_flags = (int)SA_RESETHAND}; // a second one ends it where the daemon is stuck
	sigaction(SIGINT, &act, NULL);
	sigaction(SIGTERM, &act, NULL);
	sigaction(SIGHUP, &act, NULL);
	if (strcmp(action, "record") == 0) {
		if (g.for_replay)
			return ctl_usage(self,
			                 "record: --config, --budget, --proposal, --error, --exact and --speed belong to replay");
		if (count != 2)
			return ctl_usage(self, "record: give a context, and a file");
		return trace_record(self, rest[0], rest[1], &g.record);
	}
	if (strcmp(action, "replay") == 0) {
		if (g.for_record)
			return ctl_usage(self, "replay: --seconds and --ring belong to record");
		if (count != 1 && count != 2)
			return ctl_usage(self, "replay: give a file, and a context if it is to be another");
		return trace_replay(self, rest[0], count == 2 ? rest[1] : NULL, &g.replay);
	}
	return *action ? ctl_usage(self, "'%s' is not record or replay", action) : ctl_usage(self, "give record or replay");
}

const struct ctl_command ctl_trace = {
	.name = "trace",
	.arguments = "record CONTEXT FILE | replay FILE [CONTEXT]",
	.summary = "Records the queries of live clients; asks them again in other ways",
	.options = "  record CONTEXT FILE|-   what is asked of a context from now on, by all its clients, until one of the "
		   "limits or\n"
		   "                      Ctrl-C; for the context's owner, since queries reveal text\n"
		   "  replay FILE|- [CONTEXT]   asks them again, one after the other, and compares\n"
		   "  -n, --requests N    record: so many; replay: the first so many\n"
		   "  -s, --seconds S     record: for so long\n"
		   "      --ring MIB      record: memory between the daemon and this program (default 32); what it has no room "
		   "for is\n"
		   "                      lost and counted\n"
		   "      --config C      replay: a configuration, as in signature,budget=0.02 or error=0.05,cap=0.1: a "
		   "proposal, budget,\n"
		   "                      error, floor, cap, delta; what it does not name is as recorded. Up to 8 of them, each "
		   "a line of the\n"
		   "                      table (default: recorded)\n"
		   "      --proposal P    replay: a configuration of its own, the same as --config P,...\n"
		   "      --budget B      its share of the rows\n"
		   "      --error E       its error target\n"
		   "      --exact         replay: asks for exact answers, too, and says how far the others are from them\n"
		   "      --speed X       replay: at X times the recorded pace (default: as fast as answers come)\n",
	.run = run,
};
