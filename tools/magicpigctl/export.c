// magicpigctl export, import: a whole context as one file, or through a pipe.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "disk.h"
#include "json.h"
#include "text.h"

static void report(FILE *out, const char *past, const struct mpig_disk_result *v)
{
	char shown[256], tokens[TEXT_SHORT], bytes[TEXT_SHORT];
	struct json json;
	if (!ctl_globals.json) {
		fprintf(out, "%s: %s, %s tokens, %s\n", text_printable(shown, sizeof(shown), v->name), past,
		        text_count(tokens, v->tokens), text_bytes(bytes, v->bytes));
		return;
	}
	json_begin(&json, out);
	json_object(&json, NULL);
	json_string(&json, "name", v->name);
	json_uint(&json, "tokens", v->tokens);
	json_uint(&json, "bytes", v->bytes);
	json_uint(&json, "segments", v->segments);
	json_object_end(&json);
	json_finish(&json);
}

static int no_options(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		;
	return argc - optind;
}

static int run_export(const struct ctl_command *self, int argc, char **argv)
{
	if (no_options(self, argc, argv) != 2)
		return ctl_usage(self, "give the name of a context, and a file");
	const char *name = argv[optind], *path = argv[optind + 1];
	bool out = strcmp(path, "-") == 0;
	if (out && isatty(STDOUT_FILENO))
		return ctl_usage(self, "a terminal is no place for an export: give a file, or a pipe");
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	struct disk_bar bar = {.drawn = isatty(STDERR_FILENO)};
	struct mpig_disk_options options = MPIG_INIT(options);
	struct mpig_disk_result result = MPIG_INIT(result);
	options.progress = disk_draw;
	options.argument = &bar;
	int status = out ? mpig_context_export(client, name, STDOUT_FILENO, &options, &result)
	                 : mpig_context_export_file(client, name, path, &options, &result);
	disk_draw_end(&bar);
	if (status == MPIG_OK)
		report(out ? stderr : stdout, "exported", &result);
	else
		code = ctl_failed(self, client, name, status);
	mpig_disconnect(client);
	return code;
}

static int run_import(const struct ctl_command *self, int argc, char **argv)
{
	int given = no_options(self, argc, argv);
	if (given != 1 && given != 2)
		return ctl_usage(self, "give a file, and a name if it is to have another");
	const char *path = argv[optind], *name = given == 2 ? argv[optind + 1] : NULL;
	int fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "magicpigctl import: '%s': %s\n", path, strerror(errno));
		return errno == EACCES ? CTL_PERMISSION : CTL_FAILED;
	}
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		goto close_file;
	struct disk_bar bar = {.drawn = isatty(STDERR_FILENO)};
	struct mpig_disk_options options = MPIG_INIT(options);
	struct mpig_disk_result result = MPIG_INIT(result);
	options.progress = disk_draw;
	options.argument = &bar;
	int status = mpig_context_import(client, fd, name, &options, &result);
	disk_draw_end(&bar);
	if (status == MPIG_OK)
		report(stdout, "imported", &result);
	else
		code = ctl_failed(self, client, path, status);
	mpig_disconnect(client);
close_file:
	if (fd != STDIN_FILENO)
		close(fd);
	return code;
}

const struct ctl_command ctl_export = {
	.name = "export",
	.arguments = "NAME FILE|-",
	.summary = "Writes a whole context into one file (-: to a pipe)",
	.run = run_export,
};

const struct ctl_command ctl_import = {
	.name = "import",
	.arguments = "FILE|- [NAME]",
	.summary = "Makes a context of such a file; it is the caller's",
	.run = run_import,
};
