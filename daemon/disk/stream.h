// Exports and imports under way: each has a thread and a socket of the daemon's making, whose other end is the client's. The client opens the file
// and moves the bytes, so the daemon never opens a path of a client's and never waits for a client's file system; it waits for the socket, for
// so long, and nobody waits for it.
#ifndef MPIG_DISK_STREAM_H
#define MPIG_DISK_STREAM_H

#include "daemon/disk/archive.h"

#define STREAMS_MAX 16u
#define STREAMS_PER_UID 2u

struct streams_options {
	struct store *store;
	struct archive_options archive;
	uint32_t silence_ms; // how long a client may move nothing; 0 = 30 s
	void (*tell)(void *arg, bool failed, const char *text);
	void *arg;
};
struct streams;
int streams_create(const struct streams_options *options, struct streams **out); // 0 or MPIG_ENOMEM
void streams_destroy(struct streams *streams);                                   // ends what is under way; NULL is allowed
// *fd is the client's end, a stream socket. MPIG_ELIMIT, MPIG_ENOMEM. Takes over the image on success only. The stream of shm/archive.h
// follows; if it cannot be completed, RESULT takes the place of a chunk.
int streams_export(struct streams *streams, const struct credentials *who, struct image *image, int *fd, char *why);
// Reads such a stream; the answer is a chunk RESULT.
int streams_import(struct streams *streams, const struct credentials *who, const char *name, int *fd, char *why);

#endif
