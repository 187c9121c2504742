// A context as something that can be written down and made again: the store's side of saving and loading. Nothing here does I/O.
//
// Taking an image refers to what the context consists of; the lock is held for the list of segments only. Sealed segments do not
// change, and the reference keeps them when the context is dropped. Open segments are read under a pin a part at a time: a pin held
// for a whole save would make truncations answer MPIG_EAGAIN for as long. If such a segment was truncated or sealed in between, reading
// answers MPIG_EAGAIN and the image is taken again.
//
// Making a context from an image allocates memory that nobody can reach, which the caller fills; finishing checks the records as
// attaching a pool does, and only then is there a context.
#ifndef MPIG_STORE_IMAGE_H
#define MPIG_STORE_IMAGE_H

#include <string.h>

#include "daemon/store/store.h"

#define IMAGE_ID_BYTES 16u
static inline bool image_id_is_set(const uint8_t id[IMAGE_ID_BYTES])
{
	static const uint8_t none[IMAGE_ID_BYTES];
	return memcmp(id, none, sizeof none) != 0;
}
#define IMAGE_PART_MAX (UINT64_C(1) << 20)

enum image_kind {
	IMAGE_TOKENS = 1, // of a block: u32 a row
	IMAGE_ROWS = 2,   // of a strip of a block
	IMAGE_CODES = 3,  // likewise; opaque: ranges of the extent as the store keeps it
	IMAGE_TABLE = 4,  // of a strip
	IMAGE_FRAMES = 5, // float [strips][2][largest d_k]
	IMAGE_UPPER = 6,  // of a strip
	IMAGE_KINDS
};
struct image_part { // at most IMAGE_PART_MAX bytes; the order and the cut of the parts of a segment follow from its shape
	uint16_t kind, block;
	uint32_t strip;
	uint64_t at, bytes; // in the thing it is a part of
};

struct image_block {
	uint32_t first_row, rows; // rows: room, not what is used
	uint32_t has_codes, reserved;
	uint64_t content, codes_content; // checksums as the pool has them; 0: open
};
struct image_segment {
	uint8_t id[IMAGE_ID_BYTES]; // of a sealed segment on disk; zero: none yet
	uint64_t first;             // token of its first row in this context
	uint32_t rows;              // sealed rows; of an open segment: the committed ones
	bool sealed, indexed, has_tables, has_upper;
	uint32_t block_count;
	struct image_block *block;
	uint64_t table_content;    // of tables and upper layers
	uint64_t offset, checksum; // of its record in the pool, by which it is found again after a restart
};
struct image_context {
	char name[MPIG_NAME_BYTES];
	uint8_t fingerprint[64];
	struct identity identity;
	struct mpig_wire_policy policy;
	uint64_t created_ns, used_ns, seed, committed;
	uint32_t layer_count, signature_version, segment_count;
	struct mpig_wire_layer *layer;
	uint64_t params_bytes; // 0: no index yet
	uint8_t *params;       // as the pool keeps them, without the record's head: widths of codes, mu and balance
	struct image_segment *segment;
	bool foreign; // from a file that anybody may have written: nothing in it is shared or trusted, and it is not on disk
};
void image_context_free(struct image_context *c); // what it points to

// ---- taking ----------------------------------------------------------------------------------------------------------
struct image;
// MPIG_ENOENT, MPIG_EACCES (`who` may not do what is wanted), MPIG_ECORRUPT (quarantined), MPIG_ENOMEM.
int image_take(struct store *s, const struct credentials *who, const char *name, enum access want, struct image **out, char *why);
bool image_dropped(const struct image *image); // its context was; the image is as good as before
const struct image_context *image_of(const struct image *image);
// Segments that a fork sealed in passing have no checksums of their content: this reads such a segment and makes them.
int image_make_sums(struct image *image, uint32_t segment);
// The parts of a segment, in order; the caller frees them. MPIG_EAGAIN: an open segment changed.
int image_parts(const struct image *image, uint32_t segment, struct image_part **parts, size_t *count);
int image_read(const struct image *image, uint32_t segment, const struct image_part *part, void *out); // 0 or MPIG_EAGAIN
void image_set_id(struct image *image, uint32_t segment, const uint8_t id[IMAGE_ID_BYTES]);            // it is on disk
void image_saved(struct image *image);                                                                 // all of it is
void image_release(struct image *image);
void store_context_not_on_disk(struct store *s, const char *name); // not any more
// Its file is gone or damaged: no context that uses the segment is on disk, and the next save writes it anew.
void store_segment_not_on_disk(struct store *s, const uint8_t id[IMAGE_ID_BYTES]);
// At start: tells the store that the segment whose record is at this offset, with this checksum, is on disk. False: no such one.
bool store_segment_on_disk(struct store *s, uint32_t uid, uint64_t offset, uint64_t checksum, const uint8_t id[IMAGE_ID_BYTES]);

// ---- searches ----------------------------------------------------------------------------------------------------------
// What is on disk is found by its tokens, too. A save tells so by itself (image_saved); whoever finds manifests tells it here, and brings the tokens
// later: store_next_unplaced says of which, store_place_saved takes them in order, in pieces of any length. MPIG_ENOENT: it was replaced
// meanwhile; MPIG_ENOMEM.
void store_saved_put(struct store *s, const struct image_context *from);
void store_saved_identity(struct store *s, const char *name, const struct identity *identity); // who may find it by its tokens
void store_saved_remove(struct store *s, const char *name);
struct unplaced {
	char name[MPIG_NAME_BYTES];
	uint64_t number; // of its state
};
bool store_next_unplaced(struct store *s, struct unplaced *out); // false: there is none
int store_place_saved(struct store *s, const struct unplaced *of, uint64_t position, const uint32_t *tokens, uint64_t count);
void store_give_up_placing(struct store *s, const struct unplaced *of); // they cannot be read

// ---- policies ----------------------------------------------------------------------------------------------------------
struct persist_default {  // of contexts whose policy does not say
	uint32_t persist; // enum mpig_persist but DEFAULT
	uint64_t idle_ns;
};
// The first context after *cursor (an id, 0 to begin) of which not all is on disk and that is to be saved now, or because the daemon stops;
// advances the cursor.
bool store_next_unsaved(struct store *s, const struct persist_default *otherwise, bool stopping, uint64_t *cursor,
                        char name[MPIG_NAME_BYTES]);
// A context that nobody has used for its TTL, has open, or pinned. What is on disk as it is, or is not to be saved by its policy, has left memory already
// (EXPIRED_LEFT). The others are to be saved first (EXPIRED_SAVE), or erased from disk and then dropped by store_drop_expired (EXPIRED_ERASE).
// False: there is none. disk: whether there is one at all.
enum expired { EXPIRED_LEFT, EXPIRED_SAVE, EXPIRED_ERASE };
struct expiry {
	enum expired what;
	bool lost; // LEFT: it was not on disk
	char name[MPIG_NAME_BYTES];
	uint64_t created_ns;
	uint32_t uid;
};
bool store_next_expired(struct store *s, const struct persist_default *otherwise, bool disk, struct expiry *out);
bool store_drop_expired(struct store *s, const struct expiry *of);                   // false: it is in use again
void store_not_expired_before(struct store *s, const char *name, uint64_t until_ns); // it is not asked for before
uint64_t store_used_ns(struct store *s, const char *name, uint64_t created_ns);      // 0: that one is not in memory
// Where CLOCK_REALTIME has been set since the last call, by seconds, uses are as long ago as they were; steady_ns: of a clock that is never set.
void store_note_clock(struct store *s, uint64_t steady_ns);
void store_note_uses(struct store *s); // into the pool, for those whose time a restart must not begin again
// A context whose policy or permissions were changed, so that what is on disk should be told; one that has left memory since, too. False: there is
// none.
struct changed_policy {
	struct changed_policy *next; // inside
	char name[MPIG_NAME_BYTES];
	struct mpig_wire_policy policy;
	uint64_t created_ns;
	struct identity identity;
};
bool store_next_changed_policy(struct store *s, struct changed_policy *out);
// Drops the least recently used of the contexts that are on disk as they are and that nobody has open. False: there is none.
bool store_evict(struct store *s, char name[MPIG_NAME_BYTES]);
// The owner's business. MPIG_EBUSY: it is not on disk as it is, pinned, or open.
int store_context_evict(struct store *s, const struct credentials *who, const char *name, char *why);

// ---- making ----------------------------------------------------------------------------------------------------------
struct making;
// Whether `who` could have a context of so many segments and blocks at all, as far as their records alone tell: for a reader that is
// about to keep their descriptions. 0, MPIG_ENOSPC (the pool is smaller), MPIG_EQUOTA.
int making_admits(struct store *s, const struct credentials *who, uint64_t segments, uint64_t blocks, char *why);
// *from is checked, not trusted, and copied as far as it is needed later. Segments with an id that are in the pool already are
// shared. MPIG_EEXIST, MPIG_ENOSPC, MPIG_EQUOTA, MPIG_ENOMEM, MPIG_ECORRUPT (it contradicts itself).
int making_begin(struct store *s, const struct image_context *from, uint64_t (*table_bytes)(const struct layer *, uint32_t rows),
                 struct making **out, char *why);
bool making_wants(const struct making *m, uint32_t segment);                                             // false: it is shared
int making_parts(const struct making *m, uint32_t segment, struct image_part **parts, size_t *count);    // 0 or MPIG_ENOMEM
void making_write(struct making *m, uint32_t segment, const struct image_part *part, const void *bytes); // one of its parts
// What a foreign image holds, once all of it is written: numbers are finite, tables lead nowhere outside, and the sums of sealed segments that it
// brought are those of what is there. Segments without sums get them. MPIG_ECORRUPT, MPIG_ENOMEM.
struct making_checks { // what the store does not know itself
	bool (*rows_good)(const struct layer *, const uint8_t *rows, uint32_t n,
	                  const float *frame);                                      // NULL (tests): no numbers are looked at
	bool (*table_good)(const struct layer *, const void *table, uint32_t rows); // NULL: no tables
	bool (*upper_good)(const struct layer *, uint32_t bits, const void *upper, uint32_t rows); // NULL: not looked at
};
int making_check(struct making *m, const struct making_checks *checks, char *why);
// A segment that is written, and came without sums, gets them if it is sealed. 0 or MPIG_ENOMEM.
int making_sum(struct making *m, uint32_t segment, char *why);
// The context is there, or nothing is. Frees m.
int making_finish(struct making *m, char *why);
void making_cancel(struct making *m); // NULL is allowed

#endif
