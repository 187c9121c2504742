// Profiles that the daemon keeps: looked at, given, cleared.
#ifndef MAGICPIGCTL_TUNE_STORED_H
#define MAGICPIGCTL_TUNE_STORED_H

#include <stdbool.h>
#include <stdint.h>

#include <magicpig.h>

#include "config/profile.h"
#include "ctl.h"

struct stored_of { // whose, of what
	uint8_t fingerprint[64];
	uint32_t uid; // UINT32_MAX: the caller's
};
// A context's name, or the digits of a fingerprint. uid: as given, else the context's owner, else the caller. An exit code, the error told.
int stored_find(const struct ctl_command *self, mpig_client *client, const char *what, uint32_t uid, struct stored_of *of);
// What contexts of it go by. text: PROFILE_TEXT_BYTES + 1. A status; MPIG_ENOENT: none.
int stored_get(mpig_client *client, const struct stored_of *of, char *text, uint32_t *whose);
int stored_show(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of);
// All that the caller may look at; uid: only of this one, UINT32_MAX: of whomever.
int stored_list(const struct ctl_command *self, mpig_client *client, uint32_t uid);
int stored_clear(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of);
int stored_use(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of,
               const char *path);
const char *stored_whose(uint32_t uid, char text[80]); // "of user alice", "of all users"

#endif
