// magicpigctl config: the configuration the daemon runs with.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"
#include "json.h"

// "section.key = value" lines of the daemon; *text is the caller's to free. Returns a status.
static int fetch(mpig_client *client, char **text)
{
	size_t bytes = 16384;
	for (;;) {
		char *room = malloc(bytes);
		if (!room)
			return MPIG_ENOMEM;
		int needed = mpig_daemon_config(client, room, bytes);
		if (needed >= 0 && (size_t)needed < bytes) {
			*text = room;
			return MPIG_OK;
		}
		free(room);
		if (needed < 0)
			return needed;
		bytes = (size_t)needed + 1;
	}
}

// Cuts the next line off *text into key and value; false at the end.
static bool next_setting(char **text, char **key, char **value)
{
	char *line;
	while ((line = strsep(text, "\n"))) {
		char *separator = strstr(line, " =");
		if (!separator)
			continue;
		*separator = 0;
		*key = line;
		*value = separator + 2 + strspn(separator + 2, " ");
		return true;
	}
	return false;
}

static int list(char *text)
{
	struct json json;
	char *key, *value;
	if (!ctl_globals.json) {
		fputs(text, stdout);
		return CTL_OK;
	}
	json_begin(&json, stdout);
	json_object(&json, NULL);
	while (next_setting(&text, &key, &value))
		json_string(&json, key, value);
	json_object_end(&json);
	json_finish(&json);
	return CTL_OK;
}

static int get(const struct ctl_command *self, char *text, const char *wanted)
{
	struct json json;
	char *key, *value;
	while (next_setting(&text, &key, &value)) {
		if (strcmp(key, wanted) != 0)
			continue;
		if (!ctl_globals.json) {
			puts(value);
			return CTL_OK;
		}
		json_begin(&json, stdout);
		json_object(&json, NULL);
		json_string(&json, key, value);
		json_object_end(&json);
		json_finish(&json);
		return CTL_OK;
	}
	fprintf(stderr, "magicpigctl %s: no key '%s' (`magicpigctl config list` shows them all)\n", self->name, wanted);
	return CTL_NOT_FOUND;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	const char *action = optind < argc ? argv[optind] : "list", *wanted = NULL;
	bool known = strcmp(action, "list") == 0 || strcmp(action, "get") == 0;
	if (!known)
		return ctl_usage(self, "'%s' is not list or get", action);
	if (strcmp(action, "get") == 0 && optind + 1 < argc)
		wanted = argv[optind + 1];
	int most = optind + 1 + (wanted != NULL);
	if (argc > most)
		return ctl_usage(self, "one argument too many: '%s'", argv[most]);

	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	char *text = NULL;
	int status = fetch(client, &text);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	else
		code = wanted ? get(self, text, wanted) : list(text);
	free(text);
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_config = {
	.name = "config",
	.arguments = "[list | get [KEY]]",
	.summary = "Prints the configuration in force",
	.options = NULL,
	.run = run,
};
