// Profiles (config/profile.h) by user and fingerprint: kept in a directory, and what a context is answered by looked up in memory. Control
// thread only.
//
// They are kept in files (profile_files.h). A change is written by a thread, since the control thread must not wait for a disk, and counts when
// the disk has it: until then contexts go by the profile before it, and whoever asked for it has no answer.
#ifndef MPIG_SERVER_PROFILES_H
#define MPIG_SERVER_PROFILES_H

#include <pthread.h>
#include <stdint.h>

#include "config/profile.h"
#include "daemon/engine/engine.h"
#include "daemon/server/loop.h"

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
struct profile_change;
struct profiles {
	const char *dir; // borrowed; made when it is needed
	struct profile_entry *first;
	uint32_t count;
	struct profile_change *changes; // the first one is being written
	pthread_t writer;
	bool writing;
	int written_fd;
	struct loop_source *written;
};

// Reads what is there. What cannot be used is logged; without a directory there are none. 0 or MPIG_ENOMEM.
int profiles_open(struct profiles *all, const char *dir, struct loop *loop);
// Waits for what is being written, and writes what waits. After loop_destroy. One that is all zeros is fine.
void profiles_close(struct profiles *all);
bool profiles_changing(const struct profiles *all); // whether somebody waits for an answer
// Of exactly this user (or MPIG_PROFILE_ALL); NULL: there is none.
const struct profile_entry *profiles_find(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64]);
// What contexts of this owner go by: the owner's, else that of all, else NULL.
const struct profile_entry *profiles_of(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64]);
// The first behind (fingerprint, uid), in this order, that is of `who` or of all users; any: of whomever. NULL: none is left.
const struct profile_entry *profiles_next(const struct profiles *all, const uint8_t fingerprint[64], uint32_t uid, uint32_t who,
                                          bool any);
// How a change has ended: on the control thread, from the loop or profiles_close, once for each that was begun.
typedef void profiles_done_fn(void *arg, int status, const char *why);
// Checks the text and begins to keep it in the place of an older one. Statuses here and of `done`; on failure (why: MPIG_TEXT_BYTES) all is as it
// was, and `done` is not called: MPIG_EINVAL (not a profile, or of another fingerprint), MPIG_ELIMIT, MPIG_EAGAIN (this one is being changed),
// MPIG_ENOMEM, MPIG_EIO, MPIG_ENOSPC.
int profiles_set(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes,
                 profiles_done_fn *done, void *arg, char *why);
// Begins to remove it. The same, and MPIG_ENOENT: there is none.
int profiles_clear(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], profiles_done_fn *done, void *arg,
                   char *why);

// What the layers of this context take by default, [layers]: malloc, the caller's to free. NULL: nothing, or no memory, which is logged. A layer
// without the index that the profile's proposal needs stays as its spec says.
struct engine_default *profiles_defaults(const struct profile_entry *entry, const struct context *c);
// What layers of a new context leave to the daemon: the width of codes (MPIG_BITS_AUTO; stays so without an entry), K and L of tables
// (MPIG_TABLES_AUTO). entry: NULL if there is none.
void profiles_resolve(const struct profile_entry *entry, struct mpig_wire_layer *layers, uint32_t count);

#endif
