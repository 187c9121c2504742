// magicpigctl: what its commands share. One command per file; main.c holds the table of them.
#ifndef MAGICPIGCTL_CTL_H
#define MAGICPIGCTL_CTL_H

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>

#include <magicpig.h>

enum ctl_exit { CTL_OK = 0, CTL_FAILED = 1, CTL_USAGE = 2, CTL_NO_DAEMON = 3, CTL_NOT_FOUND = 4, CTL_PERMISSION = 5 };

struct ctl_command {
	const char *name;
	const char *arguments;                                             // as in "NAME..."
	const char *summary;                                               // one line
	const char *options;                                               // its own options, a line each, or NULL
	int (*run)(struct ctl_command const *self, int argc, char **argv); // argv[0] is the command; returns enum ctl_exit
};

#define COMMAND(name) extern const struct ctl_command ctl_##name;
#include "commands.def"
#undef COMMAND

// The global options, wherever on the line they stood.
struct ctl_globals {
	const char *socket_path; // NULL: where the library looks by itself
	bool json;
};
extern struct ctl_globals ctl_globals;

// Values of long options that have no letter: a command's own begin at CTL_OPTION_OWN.
enum { CTL_OPTION_SOCKET = 256, CTL_OPTION_JSON, CTL_OPTION_OWN };

// To be put at the head of a command's table of long options.
#define CTL_GLOBAL_OPTIONS                                                                                                       \
	{"socket", required_argument, NULL, CTL_OPTION_SOCKET}, {"json", no_argument, NULL, CTL_OPTION_JSON},                    \
	{                                                                                                                        \
		"help", no_argument, NULL, 'h'                                                                                   \
	}

// getopt_long for a command: deals with the global options, prints help and ends the process for --help, and ends it with
// CTL_USAGE for a wrong option. Returns the command's own option, or -1 after the last.
int ctl_option(const struct ctl_command *self, int argc, char **argv, const char *letters, const struct option *options);
// Prints "magicpigctl COMMAND: ..." and how to get help; returns CTL_USAGE.
__attribute__((format(printf, 2, 3))) int ctl_usage(const struct ctl_command *self, const char *format, ...);
// The whole argument as a number in [least, most], or ends the process with CTL_USAGE.
unsigned long ctl_number(const struct ctl_command *self, const char *option, const char *text, unsigned long least,
                         unsigned long most);

// The whole argument as a number above 0 and up to `most`, or ends the process with CTL_USAGE.
double ctl_positive(const struct ctl_command *self, const char *option, const char *text, double most);
// Before long work: whether ctl_write_file could write this file (NULL: none is wanted), or what fails; returns the exit code.
int ctl_check_file(const struct ctl_command *self, const char *path);
// Writes a file by `write` (tools/common/output.h), and says that it is written, or what failed; returns the exit code.
int ctl_write_file(const struct ctl_command *self, const char *path, void (*write)(FILE *out, const void *argument),
                   const void *argument);

// Connects; on failure says why and returns the exit code, with *client NULL.
int ctl_connect(const struct ctl_command *self, mpig_client **client);
// Says what failed ("show 'book': ...", subject may be NULL) with the library's reason; returns the exit code.
int ctl_failed(const struct ctl_command *self, mpig_client *client, const char *subject, int status);
int ctl_exit_code(int status);
// The answer on standard input to a question that was just asked on stderr: true for yes.
bool ctl_confirmed(void);

#endif
