// magicpigd: the command line around server_run.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/options.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/disk/disk.h"
#include "daemon/server/server.h"
#include "shm/status.h"

#define EXIT_USAGE 2

struct command_line {
	const char *config;    // NULL: none
	const char *directory; // of FSCK and GC
	bool dry;              // GC
	const char *days;      // GC: of damaged contexts; NULL: they stay
	const char *set[256];
	int set_count;
	enum { RUN, HELP, VERSION, PRINT_CONFIG, FSCK, GC } what;
};

static void print_help(FILE *out)
{
	fprintf(out,
	        "magicpigd %s: owns the KV caches of long contexts in host memory, and attends to them by sampling.\n\n"
	        "Usage: magicpigd [--config FILE] [--section.key=VALUE ...]\n\n"
	        "  --config FILE             read options from an INI file first\n"
	        "  --set section.key=VALUE   the same as --section.key=VALUE\n"
	        "  --print-config            print a configuration file with every option at its default\n"
	        "  --fsck DIRECTORY          compare all that is saved in a disk.dir, which no daemon uses, with its checksums\n"
	        "  --gc DIRECTORY            remove from such a directory what killed saves left, and segments no context has\n"
	        "  --dry-run                 with --gc: only say what would be removed\n"
	        "  --damaged-days N          with --gc: also damaged contexts that were put aside at least N days ago\n"
	        "  --help, --version\n\n"
	        "It runs in the foreground and logs to stderr. SIGTERM or SIGINT: stop when requests in progress are done; "
	        "again: at once.\n"
	        "SIGHUP: read the configuration again (what can change while it runs).\n\n"
	        "Options, with their defaults:\n",
	        MPIG_VERSION_STRING);
	options_print_help(out);
}

static int usage(const char *problem, const char *argument)
{
	fprintf(stderr, "magicpigd: %s%s%s; see magicpigd --help\n", problem, *argument ? ": " : "", argument);
	return EXIT_USAGE;
}

static int add_set(struct command_line *c, const char *assignment)
{
	if (c->set_count == (int)(sizeof c->set / sizeof c->set[0]))
		return usage("too many options", "");
	c->set[c->set_count++] = assignment;
	return 0;
}

// The value of "--name=VALUE" or of "--name VALUE"; NULL: this is not the option, or it has no value.
static const char *value_of(const char *name, int argc, char **argv, int *i)
{
	size_t n = strlen(name);
	if (strncmp(argv[*i], name, n) != 0)
		return NULL;
	if (argv[*i][n] == '=')
		return argv[*i] + n + 1;
	if (argv[*i][n] == '\0' && *i + 1 < argc)
		return argv[++*i];
	return NULL;
}

static int set_directory(struct command_line *c, int what, const char *option, const char *value)
{
	char text[64];
	snprintf(text, sizeof text, "%s takes a directory (./NAME where it begins with '-')", option);
	if (*value == '-' || !*value)
		return usage(text, value);
	c->what = what;
	c->directory = value;
	return 0;
}

static int parse(struct command_line *c, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value;
		int status = 0;
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			c->what = HELP;
		else if (strcmp(argv[i], "--version") == 0 || strcmp(argv[i], "-V") == 0)
			c->what = VERSION;
		else if (strcmp(argv[i], "--print-config") == 0)
			c->what = PRINT_CONFIG;
		else if ((value = value_of("--fsck", argc, argv, &i)) != NULL)
			status = set_directory(c, FSCK, "--fsck", value);
		else if ((value = value_of("--gc", argc, argv, &i)) != NULL)
			status = set_directory(c, GC, "--gc", value);
		else if ((value = value_of("--damaged-days", argc, argv, &i)) != NULL)
			c->days = value;
		else if (strcmp(argv[i], "--dry-run") == 0)
			c->dry = true;
		else if ((value = value_of("--config", argc, argv, &i)) != NULL)
			c->config = value;
		else if ((value = value_of("--set", argc, argv, &i)) != NULL)
			status = add_set(c, value);
		else if (strncmp(argv[i], "--", 2) == 0 && strchr(argv[i], '.') && strchr(argv[i], '='))
			status = add_set(c, argv[i] + 2);
		else
			status = usage("unknown or incomplete argument", argv[i]);
		if (status != 0)
			return status;
	}
	return (c->dry || c->days) && c->what != GC ? usage("--dry-run and --damaged-days belong to --gc", "") : 0;
}

static int load(void *arg, struct options *options, char *why)
{
	const struct command_line *c = arg;
	options_defaults(options);
	if (c->config && options_read_file(options, c->config, why) != 0)
		return -1;
	for (int i = 0; i < c->set_count; i++)
		if (options_set_text(options, c->set[i], why) != 0)
			return -1;
	return options_resolve(options, why);
}

// ---- fsck ------------------------------------------------------------------------------------------------------------
static void say(void *arg, bool failed, const char *text)
{
	(void)arg, (void)failed;
	printf("%s\n", text);
}

static int check_one(struct disk *disk, const char *name)
{
	static const struct credentials root;
	struct disk_progress progress = {0};
	struct disk_result result;
	char why[MPIG_TEXT_BYTES];
	int status = disk_check(disk, NULL, &root, name, &progress, &result, why);
	if (status)
		printf("%s: %s%s\n", name, why, status == MPIG_ECORRUPT ? "; put aside under damaged/" : "");
	else
		printf("%s: good, %llu tokens, %llu bytes\n", name, (unsigned long long)result.tokens,
		       (unsigned long long)result.bytes);
	return status;
}

static int open_offline(const char *directory, bool leave, struct disk **disk)
{
	struct disk_options options = {.dir = directory, .depth = 8, .chunk = 1 << 20, .leave = leave, .existing = true};
	char why[MPIG_TEXT_BYTES];
	if (access(directory, R_OK | W_OK) != 0) {
		fprintf(stderr, "magicpigd: %s: %m\n", directory);
		return EXIT_USAGE;
	}
	int status = disk_create(&options, disk, why);
	if (status == MPIG_OK)
		return 0;
	fprintf(stderr, "magicpigd: %s\n", why);
	return status == MPIG_ENOENT ? EXIT_USAGE : EXIT_FAILURE;
}

// The owners of contexts may be anybody: whoever may read the directory may check it.
static int fsck(const char *directory)
{
	enum { PAGE = 64 };
	static const struct credentials root;
	static struct disk_saved page[PAGE];
	struct disk *disk;
	char after[MPIG_NAME_BYTES] = "";
	bool more = true;
	int failed = open_offline(directory, false, &disk);
	if (failed)
		return failed;
	bool bad = disk_recognise(disk, NULL, say, NULL) != 0;
	while (more) {
		uint32_t count = disk_list(disk, &root, after, page, PAGE, &more);
		for (uint32_t i = 0; i < count; i++)
			bad |= check_one(disk, page[i].name) != MPIG_OK;
		if (count)
			memcpy(after, page[count - 1].name, sizeof after);
	}
	disk_destroy(disk);
	return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int gc(const struct command_line *c)
{
	struct disk_gc_options options = {.dry = c->dry, .tell = say};
	struct disk_gc_result result;
	struct disk *disk;
	char why[MPIG_TEXT_BYTES], *end;
	if (c->days) {
		errno = 0;
		unsigned long days = strtoul(c->days, &end, 10);
		uint64_t now = real_ns(), age = days * UINT64_C(86400000000000);
		if (errno || end == c->days || *end || *c->days == '-' || days > 100000)
			return usage("--damaged-days: a number of days is expected", c->days);
		options.damaged_before_ns = now > age ? now - age : 1;
	}
	int failed = open_offline(c->directory, true, &disk);
	if (failed)
		return failed;
	int status = disk_gc(disk, &options, &result, why);
	if (status)
		fprintf(stderr, "magicpigd: %s\n", why);
	else
		printf("%u left by saves, %u segments no context has, %u damaged contexts: %llu bytes%s\n", result.leftovers,
		       result.orphans, result.damaged, (unsigned long long)result.bytes, c->dry ? " would be free" : " are free");
	disk_destroy(disk);
	return status ? EXIT_FAILURE : EXIT_SUCCESS;
}

// A reload that is asked for while the daemon starts, which may take as long as a large pool takes to be read, waits until it serves; it would
// end it otherwise.
static void hold_reloads(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
	struct command_line c = {0};
	int status = parse(&c, argc, argv);
	if (status != 0)
		return status;
	switch (c.what) {
	case HELP:
		print_help(stdout);
		return EXIT_SUCCESS;
	case VERSION:
		printf("magicpigd %s\n", MPIG_VERSION_STRING);
		return EXIT_SUCCESS;
	case PRINT_CONFIG:
		options_print_sample(stdout);
		return EXIT_SUCCESS;
	case FSCK:
		return fsck(c.directory);
	case GC:
		return gc(&c);
	case RUN:
		break;
	}
	struct options options;
	char why[OPTIONS_WHY_BYTES];
	hold_reloads();
	log_init(LOG_LEVEL_INFO);
	if (load(&c, &options, why) != 0) {
		log_error("%s", why);
		return EXIT_USAGE;
	}
	log_init((enum log_level)options.daemon.log_level);
	return server_run(&options, load, &c);
}
