// magicpigctl config: the configuration the daemon runs with, and files of it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "config/options.h"
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

// ---- set -------------------------------------------------------------------------------------------------------------
static int set(const struct ctl_command *self, const char *key, const char *value)
{
	char assignment[256], text[4096];
	int n = value ? snprintf(assignment, sizeof(assignment), "%s=%s", key, value)
	              : snprintf(assignment, sizeof(assignment), "%s", key);
	if (n < 0 || (size_t)n >= sizeof(assignment) || !strchr(assignment, '='))
		return ctl_usage(self, "give section.key=value");
	mpig_client *client;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = mpig_daemon_configure(client, assignment, text, sizeof(text));
	code = status < 0 ? ctl_failed(self, client, NULL, status) : config_print_changes(text);
	mpig_disconnect(client);
	return code;
}

// ---- test ------------------------------------------------------------------------------------------------------------
#define USUAL_FILE "/etc/magicpig/magicpigd.conf"

struct errors {
	struct json json;
	bool as_json;
};

static void tell_error(void *arg, const char *why)
{
	struct errors *errors = arg;
	if (errors->as_json)
		json_string(&errors->json, NULL, why);
	else
		fprintf(stderr, "%s\n", why);
}

static int test(const char *file)
{
	struct errors errors = {.as_json = ctl_globals.json};
	if (errors.as_json) {
		json_begin(&errors.json, stdout);
		json_object(&errors.json, NULL);
		json_string(&errors.json, "file", file);
		json_array(&errors.json, "errors");
	}
	unsigned count = options_test_file(file, tell_error, &errors);
	if (errors.as_json) {
		json_array_end(&errors.json);
		json_object_end(&errors.json);
		json_finish(&errors.json);
	} else if (!count) {
		printf("%s: good\n", file);
	}
	return count ? CTL_FAILED : CTL_OK;
}

// ---- diff ------------------------------------------------------------------------------------------------------------
struct differences {
	struct json json;
	unsigned count;
};

// The daemon's configuration is a list of lines, each ended by a zero, `bytes` long in all.
static const char *in_force(const char *text, size_t bytes, const char *name)
{
	size_t n = strlen(name);
	for (const char *line = text; line < text + bytes; line += strlen(line) + 1)
		if (strncmp(line, name, n) == 0 && strncmp(line + n, " = ", 3) == 0)
			return line + n + 3;
	return NULL;
}

static void difference(struct differences *d, const char *name, const char *value, const char *now, bool live)
{
	if (strcmp(value, now) == 0)
		return;
	d->count++;
	if (!ctl_globals.json) {
		printf("%s = %s (in force: %s)%s\n", name, value, now, live ? "" : ", needs a restart");
		return;
	}
	json_object(&d->json, NULL);
	json_string(&d->json, "option", name);
	json_string(&d->json, "file", value);
	json_string(&d->json, "in_force", now);
	json_bool(&d->json, "live", live);
	json_object_end(&d->json);
}

// What is not given anywhere (an empty value) the daemon has worked out for itself: that is no difference.
static void diff_options(struct differences *d, const struct options *options, const char *text, size_t bytes)
{
	struct option_view option;
	char name[128];
	for (size_t i = 0; options_view(options, i, &option); i++) {
		snprintf(name, sizeof(name), "%s.%s", option.section, option.key);
		const char *now = in_force(text, bytes, name);
		if (now && option.value[0])
			difference(d, name, option.value, now, option.live);
	}
}

// Limits of single users and groups: those of the file, then those that are in force and not in the file.
static void diff_overrides(struct differences *d, const struct overrides *overrides, const char *text, size_t bytes)
{
	static const char unset[] = "not set";
	char name[128], value[64];
	for (size_t i = 0; override_view(overrides, i, name, sizeof(name), value, sizeof(value)); i++) {
		const char *now = in_force(text, bytes, name);
		difference(d, name, value, now ? now : unset, true);
	}
	for (const char *line = text; line < text + bytes; line += strlen(line) + 1) {
		const char *separator = strstr(line, " = ");
		bool known = !separator || !override_section(line);
		for (size_t i = 0; !known && override_view(overrides, i, name, sizeof(name), value, sizeof(value)); i++)
			known = strlen(name) == (size_t)(separator - line) && strncmp(line, name, strlen(name)) == 0;
		if (known)
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(separator - line), line);
		difference(d, name, unset, separator + 3, true);
	}
}

static int diff(const struct ctl_command *self, const char *file, char *text)
{
	struct options options;
	struct differences d = {.count = 0};
	char why[OPTIONS_WHY_BYTES];
	options_defaults(&options);
	if (file && *file && options_read_file(&options, file, why) != 0) {
		fprintf(stderr, "magicpigctl %s: %s\n", self->name, why);
		return CTL_FAILED;
	}
	size_t bytes = strlen(text);
	for (char *at = text; (at = strchr(at, '\n')) != NULL;)
		*at++ = 0;
	if (ctl_globals.json) {
		json_begin(&d.json, stdout);
		json_array(&d.json, NULL);
	}
	diff_options(&d, &options, text, bytes);
	diff_overrides(&d, &options.overrides, text, bytes);
	if (ctl_globals.json) {
		json_array_end(&d.json);
		json_finish(&d.json);
	} else if (!d.count) {
		printf("what is in force is what %s says\n", file && *file ? file : "the table of defaults");
	}
	return CTL_OK;
}

// Calls list, get or diff with what the daemon says.
static int ask(const struct ctl_command *self, const char *action, const char *argument)
{
	mpig_client *client;
	struct mpig_daemon_status daemon = MPIG_INIT(struct mpig_daemon_status);
	char *text = NULL;
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = fetch(client, &text);
	bool differences = strcmp(action, "diff") == 0;
	if (!status && differences && !argument)
		status = mpig_daemon_status(client, &daemon);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	else if (differences)
		code = diff(self, argument ? argument : daemon.config_file, text);
	else
		code = argument ? get(self, text, argument) : list(text);
	free(text);
	mpig_disconnect(client);
	return code;
}

// The file of the daemon that answers, else the usual one.
static int test_usual(void)
{
	mpig_client *client = NULL;
	struct mpig_connect_options options = MPIG_INIT(struct mpig_connect_options);
	struct mpig_daemon_status daemon = MPIG_INIT(struct mpig_daemon_status);
	options.socket_path = ctl_globals.socket_path;
	options.reconnect_ms = -1;
	if (mpig_connect(&options, &client) == MPIG_OK)
		(void)mpig_daemon_status(client, &daemon); // without an answer config_file stays empty
	mpig_disconnect(client);
	return test(daemon.config_file[0] ? daemon.config_file : USUAL_FILE);
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {NULL, 0, NULL, 0}};
	static const struct {
		const char *name;
		int most; // arguments
	} actions[] = {{"list", 0}, {"get", 1}, {"set", 2}, {"test", 1}, {"diff", 1}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		continue;
	const char *action = optind < argc ? argv[optind] : "list";
	int given = optind < argc ? argc - optind - 1 : 0;
	const char *first = given > 0 ? argv[optind + 1] : NULL, *second = given > 1 ? argv[optind + 2] : NULL;
	size_t i = 0;
	while (i < sizeof(actions) / sizeof(actions[0]) && strcmp(action, actions[i].name) != 0)
		i++;
	if (i == sizeof(actions) / sizeof(actions[0]))
		return ctl_usage(self, "'%s' is not list, get, set, test or diff", action);
	if (given > actions[i].most)
		return ctl_usage(self, "one argument too many: '%s'", argv[optind + 1 + actions[i].most]);
	if (strcmp(action, "set") == 0)
		return first ? set(self, first, second) : ctl_usage(self, "set what? Give section.key=value");
	if (strcmp(action, "test") == 0)
		return first ? test(first) : test_usual();
	return ask(self, action, first);
}

const struct ctl_command ctl_config = {
	.name = "config",
	.arguments = "[ACTION...]",
	.summary = "Shows, changes and checks the daemon's configuration",
	.options = "  list                (an action; the default) what is in force, a line for each option\n"
		   "  get KEY             the value of one\n"
		   "  set KEY=VALUE       change it until the next reload or restart, where that is possible (administrators)\n"
		   "  test FILE           find all errors in a configuration file; no daemon is needed\n"
		   "  diff FILE           what FILE, or the daemon's own file, says other than what is in force\n",
	.run = run,
};
