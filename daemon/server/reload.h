// Changing the configuration while the daemon runs. Control thread.
#ifndef MPIG_SERVER_RELOAD_H
#define MPIG_SERVER_RELOAD_H

#include "daemon/server/server.h"

#define RELOAD_TEXT_BYTES 8192

// Reads the configuration (file and command line) again, and puts in force what can change; `cause` goes to the log. `changed`
// (RELOAD_TEXT_BYTES) gets a line for each option that differs: "section.key = new (was old)", with "needs a restart: " before it where it
// cannot change. MPIG_EINVAL: nothing was changed; `why` (OPTIONS_WHY_BYTES) says file, line, key and what is allowed.
int server_reload(struct server *s, const char *cause, char *changed, char *why);
// One option, "section.key=value", until the next reload or restart. MPIG_EINVAL; MPIG_ENOTSUP: it cannot change while the daemon runs.
int server_configure(struct server *s, const char *assignment, char *changed, char *why);
// The group's number from its name. UINT32_MAX for ""; -1: there is no such group, see why.
int server_find_group(const char *option, const char *name, uint32_t *gid, char *why);

#endif
