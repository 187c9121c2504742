// The rules of access that the table of operations (control.c) names.
#ifndef MPIG_SERVER_CONTROL_ACCESS_H
#define MPIG_SERVER_CONTROL_ACCESS_H

#include "daemon/server/peer.h"

enum control_access {
	CONTROL_NOBODY, // the rule was forgotten
	CONTROL_ANYBODY,
	CONTROL_OWN_CONNECTION,    // acts on handles and queues of the connection
	CONTROL_WHAT_ONE_MAY_READ, // lists and searches
	CONTROL_CREATE,
	CONTROL_READ,
	CONTROL_OPEN, // read; write with MPIG_OPEN_WRITE
	CONTROL_OWN,
	CONTROL_DISK,     // by the work asked for
	CONTROL_STREAM,   // to export: read; to import: create
	CONTROL_OWN_USER, // acts on connections of the asking user, and limits of it and its groups; administrators: of all
	CONTROL_DRAIN,    // to look: anybody; else administrators
	CONTROL_ADMIN,    // root, the daemon's user, the admin group. They may also do all of the above, whoever owns a context
	CONTROL_ACCESS_COUNT
};
extern const char *const control_access_names[CONTROL_ACCESS_COUNT];

// MPIG_OK, or MPIG_EACCES with r->why. What does not exist is let through, for the operation to say so.
int control_access_check(struct peer *p, struct request *r, enum control_access rule);

#endif
