// The files of profiles: read at start, changed one at a time. They last: a change that was answered with 0 is there after a power loss, and
// at any moment before that the old one or the new one is, whole.
//
//   DIR/FINGERPRINT.UID.profile     a line with the XXH3 of what follows, then the profile's text
//   DIR/FINGERPRINT.all.profile     of all users who have none of their own
//
// What does not have its checksum or cannot be read, like one of another version, is told of in the log, left where it is, and not used.
#ifndef MPIG_SERVER_PROFILE_FILES_H
#define MPIG_SERVER_PROFILE_FILES_H

#include <stddef.h>
#include <stdint.h>

// Takes a text, or says why not (why: MPIG_TEXT_BYTES, empty before).
typedef int profile_file_fn(void *arg, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, char *why);
// Calls fn for each file. What a killed daemon left is removed. Without a directory there are none.
void profile_files_read(const char *dir, profile_file_fn *fn, void *arg);

struct profile_file {
	const char *dir; // made if it is not there; its parent must be
	uint32_t uid;    // or MPIG_PROFILE_ALL
	const uint8_t *fingerprint;
};
// Puts the text in the place of `old`, or removes that (text NULL); old NULL: there was none. Waits for the disk, so not on the control thread; any
// thread, one at a time. On failure (why: MPIG_TEXT_BYTES) `old` is what is there; if not even that can be had, the log says so.
// MPIG_EIO, MPIG_ENOSPC, MPIG_ENOMEM.
int profile_file_change(const struct profile_file *of, const char *text, size_t bytes, const char *old, size_t old_bytes,
                        char *why);

#endif
