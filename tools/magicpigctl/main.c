// magicpigctl: looks at a running magicpigd and manages its contexts.
#include <errno.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "text.h"
#include "tools/common/output.h"

static const struct ctl_command *const commands[] = {
#define COMMAND(name) &ctl_##name,
#include "commands.def"
#undef COMMAND
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

struct ctl_globals ctl_globals;

static const char global_options[] =
	"  --socket PATH       the daemon's socket (default: $MAGICPIG_SOCKET, then $XDG_RUNTIME_DIR/magicpig/magicpigd.sock\n"
	"                      if it exists, then /run/magicpig/magicpigd.sock)\n"
	"  --json              JSON on standard output\n"
	"  -h, --help          this text\n";

static void help(void)
{
	puts("Usage: magicpigctl [OPTIONS] COMMAND [ARGUMENTS]\n\n"
	     "Looks at a running magicpigd and manages the contexts it holds.\n\nCommands:");
	for (size_t i = 0; i < COMMANDS; i++) {
		char usage[64];
		snprintf(usage, sizeof(usage), "%s %s", commands[i]->name, commands[i]->arguments);
		printf("  %-25s %s\n", usage, commands[i]->summary);
	}
	printf("\nOptions, before or after the command:\n%s  --version           the version\n", global_options);
	puts("\n`magicpigctl COMMAND --help` tells more. NO_COLOR=1 turns colours off.\n\n"
	     "Exit status: 0 success, 1 the command failed, 2 wrong usage, 3 no daemon answers, 4 no such context, client or "
	     "key,\n"
	     "5 permission denied.");
}

static void command_help(const struct ctl_command *self)
{
	printf("Usage: magicpigctl %s [OPTIONS]%s%s\n\n%s.\n\nOptions:\n%s%s", self->name, *self->arguments ? " " : "",
	       self->arguments, self->summary, self->options ? self->options : "", global_options);
}

int ctl_option(const struct ctl_command *self, int argc, char **argv, const char *letters, const struct option *options)
{
	for (;;) {
		int option = getopt_long(argc, argv, letters, options, NULL);
		switch (option) {
		case CTL_OPTION_SOCKET:
			ctl_globals.socket_path = optarg;
			break;
		case CTL_OPTION_JSON:
			ctl_globals.json = true;
			break;
		case 'h':
			command_help(self);
			exit(CTL_OK);
		case '?':
			fprintf(stderr, "Try 'magicpigctl %s --help'.\n", self->name);
			exit(CTL_USAGE);
		default:
			return option;
		}
	}
}

int ctl_usage(const struct ctl_command *self, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "magicpigctl %s: ", self->name);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "\nTry 'magicpigctl %s --help'.\n", self->name);
	va_end(arguments);
	return CTL_USAGE;
}

unsigned long ctl_number(const struct ctl_command *self, const char *option, const char *text, unsigned long least,
                         unsigned long most)
{
	char *end;
	errno = 0;
	unsigned long value = strtoul(text, &end, 10);
	if (errno || end == text || *end || strchr(text, '-') || value < least || value > most)
		exit(ctl_usage(self, "%s: '%s' is not a number from %lu to %lu", option, text, least, most));
	return value;
}

double ctl_positive(const struct ctl_command *self, const char *option, const char *text, double most)
{
	char *end;
	double value = strtod(text, &end);
	if (end == text || *end || !(value > 0) || value > most)
		exit(ctl_usage(self, "%s: '%s' is not a number above 0 and up to %g", option, text, most));
	return value;
}

static int cannot_write(const struct ctl_command *self, const char *path)
{
	int reason = errno;
	fprintf(stderr, "magicpigctl %s: cannot write %s: %s\n", self->name, path, strerror(reason));
	return reason == EACCES ? CTL_PERMISSION : CTL_FAILED;
}

int ctl_check_file(const struct ctl_command *self, const char *path)
{
	return path && output_check(path) != 0 ? cannot_write(self, path) : CTL_OK;
}

int ctl_write_file(const struct ctl_command *self, const char *path, void (*write)(FILE *out, const void *argument),
                   const void *argument)
{
	if (output_write(path, write, argument) != 0)
		return cannot_write(self, path);
	if (!ctl_globals.json)
		printf("%s is written\n", path);
	return CTL_OK;
}

int ctl_exit_code(int status)
{
	switch (status) {
	case MPIG_OK:
		return CTL_OK;
	case MPIG_ENODAEMON:
		return CTL_NO_DAEMON;
	case MPIG_ENOENT:
		return CTL_NOT_FOUND;
	case MPIG_EACCES:
		return CTL_PERMISSION;
	default:
		return CTL_FAILED;
	}
}

int ctl_failed(const struct ctl_command *self, mpig_client *client, const char *subject, int status)
{
	char name[256];
	const char *reason = mpig_last_error(client);
	fflush(stdout);
	fprintf(stderr, "magicpigctl %s: ", self->name);
	if (subject)
		fprintf(stderr, "'%s': ", text_printable(name, sizeof(name), subject));
	fprintf(stderr, "%s\n", reason && *reason ? reason : mpig_strerror(status));
	return ctl_exit_code(status);
}

bool ctl_confirmed(void)
{
	char answer[16] = "";
	if (!fgets(answer, sizeof(answer), stdin))
		putc('\n', stderr);
	return answer[0] == 'y' || answer[0] == 'Y';
}

int ctl_connect(const struct ctl_command *self, mpig_client **client)
{
	struct mpig_connect_options options = MPIG_INIT(options);
	options.socket_path = ctl_globals.socket_path;
	options.reconnect_ms = -1;
	*client = NULL;
	int status = mpig_connect(&options, client);
	return status ? ctl_failed(self, NULL, NULL, status) : CTL_OK;
}

// The global options before the command; returns the index of the command in argv.
static int global_arguments(int argc, char **argv)
{
	enum { VERSION = CTL_OPTION_OWN };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"version", no_argument, NULL, VERSION}, {NULL, 0, NULL, 0}};
	for (int option; (option = getopt_long(argc, argv, "+h", options, NULL)) != -1;)
		switch (option) {
		case CTL_OPTION_SOCKET:
			ctl_globals.socket_path = optarg;
			break;
		case CTL_OPTION_JSON:
			ctl_globals.json = true;
			break;
		case 'h':
			help();
			exit(CTL_OK);
		case VERSION:
			printf("magicpigctl %s\n", mpig_version());
			exit(CTL_OK);
		default:
			fputs("Try 'magicpigctl --help'.\n", stderr);
			exit(CTL_USAGE);
		}
	return optind;
}

int main(int argc, char **argv)
{
	static char output[1 << 16];
	setlocale(LC_CTYPE, "");
	if (!isatty(STDOUT_FILENO)) // ten thousand lines in a dozen writes; what must be seen at once is flushed where it is written
		setvbuf(stdout, output, _IOFBF, sizeof(output));
	text_init();
	static char program[] = "magicpigctl"; // getopt's messages begin with it, whatever path was typed
	argv[0] = program;
	int at = global_arguments(argc, argv);
	if (at >= argc) {
		fputs("magicpigctl: a command is missing\nTry 'magicpigctl --help'.\n", stderr);
		return CTL_USAGE;
	}
	for (size_t i = 0; i < COMMANDS; i++) {
		if (strcmp(commands[i]->name, argv[at]) != 0)
			continue;
		char command[64];
		snprintf(command, sizeof(command), "magicpigctl %s", commands[i]->name);
		argv[at] = command;
		optind = 0; // the GNU way to begin with another argv
		int code = commands[i]->run(commands[i], argc - at, argv + at);
		if (fflush(stdout) || ferror(stdout)) {
			fprintf(stderr, "magicpigctl: standard output: %s\n", strerror(errno));
			return CTL_FAILED;
		}
		return code;
	}
	fprintf(stderr, "magicpigctl: no command '%s'\nTry 'magicpigctl --help'.\n", argv[at]);
	return CTL_USAGE;
}
