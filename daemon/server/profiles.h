// Profiles (config/profile.h) by user and fingerprint: kept in a directory, and what a context is answered by looked up in memory. Control
// thread only.
//
//   DIR/FINGERPRINT.UID.profile     a line with the XXH3 of what follows, then the profile's text
//   DIR/FINGERPRINT.all.profile     of all users who have none of their own
//
// A file is written beside its place and renamed: a daemon that is killed leaves the old one or the new one. Nothing is synced, since the control
// thread must not wait for a disk: a power loss may take a profile that is seconds old, and what is torn does not have its checksum. Such a
// file, like one of another version, is told of at start, left where it is, and not used.
#ifndef MPIG_SERVER_PROFILES_H
#define MPIG_SERVER_PROFILES_H

#include <stdint.h>

#include "config/profile.h"
#include "daemon/engine/engine.h"

#define PROFILES_PER_UID 64u
#define PROFILES_MOST 1024u

struct profile_entry {
	struct profile_entry *next;
	uint32_t uid; // or MPIG_PROFILE_ALL
	uint8_t fingerprint[64];
	struct profile *profile; // as large as it has layers
	char *text;
	size_t bytes;
};
struct profiles {
	const char *dir; // borrowed; made when it is needed
	struct profile_entry *first;
	uint32_t count;
};

// Reads what is there. What cannot be used is logged. Never fails: without a directory there are none.
void profiles_open(struct profiles *all, const char *dir);
void profiles_close(struct profiles *all);
// Of exactly this user (or MPIG_PROFILE_ALL); NULL: there is none.
const struct profile_entry *profiles_find(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64]);
// What contexts of this owner go by: the owner's, else that of all, else NULL.
const struct profile_entry *profiles_of(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64]);
// The first behind (fingerprint, uid), in this order, that is of `who` or of all users; any: of whomever. NULL: none is left.
const struct profile_entry *profiles_next(const struct profiles *all, const uint8_t fingerprint[64], uint32_t uid, uint32_t who,
                                          bool any);
// Checks the text and keeps it in the place of an older one. On failure (why: MPIG_TEXT_BYTES) all is as it was. MPIG_EINVAL (not a profile, or
// of another fingerprint), MPIG_ELIMIT, MPIG_ENOMEM, MPIG_EIO, MPIG_ENOSPC, MPIG_EACCES.
int profiles_set(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, char *why);
int profiles_clear(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], char *why); // MPIG_ENOENT: there was none

// What the layers of this context take by default, [layers]: malloc, the caller's to free. NULL: nothing, or no memory, which is logged. A layer
// without the index that the profile's proposal needs stays as its spec says.
struct engine_default *profiles_defaults(const struct profile_entry *entry, const struct context *c);
// What layers of a new context leave to the daemon: the width of codes (MPIG_BITS_AUTO; stays so without an entry), K and L of tables
// (MPIG_TABLES_AUTO). entry: NULL if there is none.
void profiles_resolve(const struct profile_entry *entry, struct mpig_wire_layer *layers, uint32_t count);

#endif
