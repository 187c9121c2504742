// A whole context as one stream of bytes: a file that `magicpigctl export` wrote, and what goes over the socket between the daemon and the
// client that writes or reads such a file. It is read and written front to back, so it may be a pipe. daemon/disk/FORMAT.md says what
// the chunks hold.
//
//   header | CONTEXT.. | SEGMENT.. | parts of the last segment.. | ... | parts of the first.. | END
//
// Each chunk has a head with a checksum of itself and of the bytes behind it; END has one of all heads before. Little-endian, reserved
// bytes zero.
#ifndef MPIG_SHM_ARCHIVE_H
#define MPIG_SHM_ARCHIVE_H

#include <assert.h>
#include <stdint.h>

#include "shm/control.h"

#define MPIG_ARCHIVE_MAGIC UINT64_C(0x545058454749504d) // "MPIGEXPT"
#define MPIG_ARCHIVE_VERSION 2u                         // 1 had sums of other parts, which a reader passes over
#define MPIG_ARCHIVE_VERSION_SUMS 2u
#define MPIG_ARCHIVE_CHUNK_MAGIC 0x5847504du // "MPGX"
#define MPIG_ARCHIVE_CHUNK_MAX (UINT64_C(1) << 20)

enum mpig_archive_kind { // 1 to 15: parts of a segment, numbered as sections of segment files
	MPIG_ARCHIVE_PARTS = 16,
	MPIG_ARCHIVE_CONTEXT = 16, // a piece of a manifest
	MPIG_ARCHIVE_SEGMENT = 17, // the shape of a segment
	MPIG_ARCHIVE_END = 18,
	MPIG_ARCHIVE_RESULT = 19, // how it went: on a socket only, never in a file
};

struct mpig_archive_header {
	uint64_t magic;
	uint32_t version, header_bytes;
	uint64_t total_bytes; // from here to the end of END
	uint64_t chunks;      // END included
	uint8_t reserved[24];
	uint64_t checksum; // XXH3 of all before it
};
static_assert(sizeof(struct mpig_archive_header) == 64, "format frozen: make another version");

struct mpig_archive_chunk { // followed by `bytes` bytes
	uint32_t magic;
	uint16_t kind, block;
	uint32_t segment, strip;
	uint64_t at, bytes; // of the thing it is a piece of
	uint64_t number;    // 0, 1, ...
	uint64_t reserved;
	uint64_t data_checksum; // XXH3 of the bytes
	uint64_t checksum;      // XXH3 of the head before this field
};
static_assert(sizeof(struct mpig_archive_chunk) == 64, "format frozen: make another version");

struct mpig_archive_shape { // SEGMENT, followed by block_count blocks of segment files
	uint32_t rows, flags, block_count, reserved;
	uint64_t table_content;
};
static_assert(sizeof(struct mpig_archive_shape) == 24, "format frozen: make another version");

struct mpig_archive_end {
	uint64_t heads_checksum; // XXH3 of the heads of all chunks before this one, one after the other
	uint64_t tokens, segments, reserved;
};
static_assert(sizeof(struct mpig_archive_end) == 32, "format frozen: make another version");

struct mpig_archive_result {
	int32_t status; // of the export or import
	uint32_t segments;
	uint64_t tokens, bytes; // of the context; of the stream
	char name[MPIG_NAME_BYTES];
	char text[MPIG_TEXT_BYTES]; // why, if the status is not 0
};
static_assert(sizeof(struct mpig_archive_result) == 408, "wire format frozen");

#endif
