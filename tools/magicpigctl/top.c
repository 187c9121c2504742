// magicpigctl top: what the daemon does, second by second. Everything comes from the statistics file, mapped read-only, so it works while the
// daemon is stuck; only names of contexts are asked for, by a thread that nobody waits for.
#include "top.h"

#include <stdio.h>
#include <unistd.h>

#include "ctl.h"

static int run(const struct ctl_command *self, int argc, char **argv)
{
	enum { STATS = CTL_OPTION_OWN };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"batch", no_argument, NULL, 'b'},
	                                        {"delay", required_argument, NULL, 'd'},
	                                        {"count", required_argument, NULL, 'n'},
	                                        {"stats", required_argument, NULL, STATS},
	                                        {NULL, 0, NULL, 0}};
	const char *named = NULL;
	unsigned long delay_ms = 1000, count = 0;
	bool batch = false;
	for (int option; (option = ctl_option(self, argc, argv, "hbd:n:", options)) != -1;)
		switch (option) {
		case 'b':
			batch = true;
			break;
		case 'd':
			delay_ms = ctl_number(self, "--delay", optarg, 50, 3600000);
			break;
		case 'n':
			count = ctl_number(self, "--count", optarg, 1, 1000000000);
			break;
		case STATS:
			named = optarg;
			break;
		}
	if (optind < argc)
		return ctl_usage(self, "takes no argument ('%s')", argv[optind]);
	batch = batch || ctl_globals.json;
	if (count && !batch)
		return ctl_usage(self, "--count goes with --batch");
	if (!batch && !(isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)))
		return ctl_usage(self, "needs a terminal; without one, use --batch");
	char path[512];
	int code = stats_find(self, named, path, sizeof(path));
	if (code)
		return code;
	struct top_source *source = top_source_open(path);
	if (!source) {
		fputs("magicpigctl top: out of memory\n", stderr);
		return CTL_FAILED;
	}
	names_start();
	code = batch ? top_batch(source, delay_ms, count) : top_screen(source, delay_ms);
	top_source_close(source);
	return code;
}

const struct ctl_command ctl_top = {
	.name = "top",
	.arguments = "",
	.summary = "Shows live what the daemon does, even while it is stuck",
	.options = "  -d, --delay MS      between two looks (default 1000)\n"
		   "  -b, --batch         a line for each look, for logs; with --json an object for each\n"
		   "  -n, --count N       with --batch: N looks (default: until interrupted)\n"
		   "      --stats FILE    this statistics file (default: the one beside the socket)\n"
		   "\n"
		   "Keys: q leaves; s sorts by requests, rows, bytes, name; o, w, c, l hide and show operations, workers, "
		   "contexts,\n"
		   "clients; + and - change the delay; p holds the picture; h helps.\n",
	.run = run,
};
