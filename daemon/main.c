// magicpigd: the command line around server_run.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/options.h"
#include "daemon/base/log.h"
#include "daemon/disk/disk.h"
#include "daemon/server/server.h"
#include "shm/status.h"

#define EXIT_USAGE 2

struct command_line {
	const char *config;    // NULL: none
	const char *directory; // of FSCK
	const char *set[256];
	int set_count;
	enum { RUN, HELP, VERSION, PRINT_CONFIG, FSCK } what;
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
			c->what = FSCK, c->directory = value;
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
	return 0;
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

// The owners of contexts may be anybody: whoever may read the directory may check it.
static int fsck(const char *directory)
{
	enum { PAGE = 64 };
	static const struct credentials root;
	static struct disk_saved page[PAGE];
	struct disk_options options = {.dir = directory, .depth = 8, .chunk = 1 << 20};
	struct disk *disk;
	char why[MPIG_TEXT_BYTES], after[MPIG_NAME_BYTES] = "";
	bool more = true;
	if (access(directory, R_OK | W_OK) != 0) {
		fprintf(stderr, "magicpigd: %s: %m\n", directory);
		return EXIT_USAGE;
	}
	if (disk_create(&options, &disk, why) != MPIG_OK) {
		fprintf(stderr, "magicpigd: %s\n", why);
		return EXIT_FAILURE;
	}
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
	case RUN:
		break;
	}
	struct options options;
	char why[OPTIONS_WHY_BYTES];
	log_init(LOG_LEVEL_INFO);
	if (load(&c, &options, why) != 0) {
		log_error("%s", why);
		return EXIT_USAGE;
	}
	log_init((enum log_level)options.daemon.log_level);
	return server_run(&options, load, &c);
}
