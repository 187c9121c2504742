// Files of recorded queries (shm/trace.h): written front to back, and read so, pipes included. What is read is believed only after its
// checksum and its sizes were looked at; numbers in it may still be any.
#ifndef MAGICPIGCTL_TRACE_FILE_H
#define MAGICPIGCTL_TRACE_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "shm/trace.h"

#include <magicpig.h>

#define TRACE_WHY_BYTES 512

struct trace_query { // of a file: valid until the next is read
	const struct mpig_trace_record *record;
	struct mpig_layer_shape shape;        // of its layer
	const void *q;                        // [tokens][query_heads][d_k] of record->dtype
	const float *window_lse, *window_out; // [tokens][query_heads], and [d_v] of each; NULL: none
};

// ---- reading ---------------------------------------------------------------------------------------------------------
struct trace_reader;
// From a path, or "-" for standard input. 0, or -1 and `why` (TRACE_WHY_BYTES): what is wrong, and at which byte.
int trace_open(const char *path, struct trace_reader **reader, char *why);
const struct mpig_trace_header *trace_header(const struct trace_reader *reader);
const struct mpig_wire_layer *trace_layers(const struct trace_reader *reader); // [layer_count]
// The next query: 1; 0 at the end; -1 and `why`.
int trace_next(struct trace_reader *reader, struct trace_query *query, char *why);
// So that the queries can be read several times: what cannot be sought, as a pipe, is copied into a temporary file that has no name. Before the
// first trace_next. 0, or -1 and `why`.
int trace_keep(struct trace_reader *reader, char *why);
// Back to the first query of a file that is kept. 0, or -1 and `why`.
int trace_rewind(struct trace_reader *reader, char *why);
// After trace_next answered 0: the END record, or NULL where the file was cut short (which loses nothing of what came before).
const struct mpig_trace_end *trace_end(const struct trace_reader *reader);
void trace_close(struct trace_reader *reader); // NULL is allowed

// The query as it was asked, over the same rows and with the same random numbers: the same answer from a context that still holds them.
// False where there is nothing to ask: no row was in its range.
bool trace_attend(const struct trace_query *query, struct mpig_attend *attend);

// ---- writing ---------------------------------------------------------------------------------------------------------
struct trace_writer {
	FILE *file; // borrowed
	uint64_t bytes, records;
	uint8_t *buffer;
	uint64_t room;
};
// The header is completed: magic, version, sizes, checksum. All return 0, or -1 with errno.
int trace_write_header(struct trace_writer *writer, const struct mpig_trace_header *header, const struct mpig_wire_layer *layers);
// head, dtype and reserved bytes of the record are completed; q: fp32, kept as bf16 where the request had that and nothing is lost.
int trace_write(struct trace_writer *writer, const struct mpig_trace_record *record, const struct mpig_layer_shape *shape,
                const float *q, const float *window_lse, const float *window_out);
// head, file_bytes and records are completed.
int trace_write_end(struct trace_writer *writer, const struct mpig_trace_end *end);
void trace_writer_free(struct trace_writer *writer);

#endif
