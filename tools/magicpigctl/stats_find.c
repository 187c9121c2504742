// Where the statistics file is. Looked for beside the socket before anybody is asked: the daemon may be the one who does not answer.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "stats.h"

#define ASK_MS 1000

// As the library finds it.
static void socket_path(char *path, size_t bytes)
{
	const char *named = ctl_globals.socket_path ? ctl_globals.socket_path : getenv("MAGICPIG_SOCKET");
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	if (named && *named) {
		snprintf(path, bytes, "%s", named);
		return;
	}
	if (runtime && *runtime) {
		snprintf(path, bytes, "%s/magicpig/magicpigd.sock", runtime);
		if (access(path, F_OK) == 0)
			return;
	}
	snprintf(path, bytes, "/run/magicpig/magicpigd.sock");
}

// The only one in the directory that can be read; several are for the daemon to tell apart.
static bool only_one_beside(const char *socket, char *path, size_t bytes)
{
	char directory[256], why[128];
	snprintf(directory, sizeof(directory), "%s", socket);
	char *slash = strrchr(directory, '/');
	snprintf(slash ? slash : directory, 2, slash ? "" : ".");
	DIR *d = opendir(*directory ? directory : "/");
	int found = 0;
	for (struct dirent *entry; d && (entry = readdir(d)) != NULL;) {
		size_t length = strlen(entry->d_name);
		char candidate[512];
		struct stats_file file;
		if (length < 7 || strcmp(entry->d_name + length - 6, ".stats") != 0)
			continue;
		snprintf(candidate, sizeof(candidate), "%s/%s", directory, entry->d_name);
		if (strlen(candidate) >= bytes || stats_open(candidate, &file, why, sizeof(why)) != 0)
			continue;
		stats_close(&file);
		if (found++ == 0)
			strcpy(path, candidate);
	}
	if (d)
		closedir(d);
	return found == 1;
}

int stats_find(const struct ctl_command *self, const char *named, char *path, size_t bytes)
{
	char socket[256];
	if (named) {
		snprintf(path, bytes, "%s", named);
		return CTL_OK;
	}
	socket_path(socket, sizeof(socket));
	if (only_one_beside(socket, path, bytes))
		return CTL_OK;
	struct mpig_connect_options options = MPIG_INIT(options);
	struct mpig_daemon_status daemon = MPIG_INIT(daemon);
	options.socket_path = ctl_globals.socket_path;
	options.timeout_ms = ASK_MS;
	options.reconnect_ms = -1;
	mpig_client *client = NULL;
	int status = mpig_connect(&options, &client);
	if (!status)
		status = mpig_daemon_status(client, &daemon);
	int code = status ? ctl_failed(self, client, NULL, status) : CTL_OK;
	mpig_disconnect(client);
	if (code)
		return code;
	if (!daemon.stats_file[0]) {
		fprintf(stderr, "magicpigctl %s: the daemon keeps no statistics file (daemon.stats = none)\n", self->name);
		return CTL_FAILED;
	}
	snprintf(path, bytes, "%s", daemon.stats_file);
	return CTL_OK;
}
