// What the files of this folder share. Nothing outside includes it.
//
// Private mirror of the pool: struct context -> snapshot (segments it references) -> struct segment -> record in the pool.
// The store's lock guards every field unless it is atomic or said to be the writer's.
//
// Readers take no lock. They pin the context (below), load the snapshot and `committed`, and follow published offsets.
//
//   writer (lock held)                                reader
//   P0 publish the new state                          R0 pins[e & 1] += 1   (e = epoch)
//   P1 retire the old into the current epoch's list   R1 epoch still e? otherwise undo and start again
//   P2 epoch += 1, once pins of the other side are 0  R2 load snapshot, committed; use them
//   P3 pins of the epoch left behind are 0: settle    R3 pins[e & 1] -= 1; at 0 with something retired: lock, P2, P3
//
// All of pins, epoch and `retired` are sequentially consistent: a reader that passed R1 before P2 is counted at P3, one that did
// not starts again and sees P0. R3 and P1 are a Dekker pair: either the writer sees the pin gone or the reader sees the list.
#ifndef MPIG_STORE_INTERNAL_H
#define MPIG_STORE_INTERNAL_H

#include "daemon/store/format.h"
#include "daemon/store/image.h"
#include "daemon/store/pool.h"
#include "daemon/store/record.h"
#include "daemon/store/store.h"

#define NAME_BUCKETS 4096u

// Something given up while readers may be inside.
struct garbage {
	struct garbage *next;
	void (*settle)(struct store *s, struct garbage *g);  // readers have left; lock held; ends in store_bury or frees g
	void (*destroy)(struct store *s, struct garbage *g); // after the lock: gives memory back, frees g
};

struct extent {
	uint64_t offset, bytes;
	int node;
};
struct extents {
	struct extent *item;
	size_t count, capacity, cursor;
};

// Who is accounted for: a user, or a group. Numbers of both kinds in one list.
typedef uint64_t party_id;
static inline party_id party_user(uint32_t uid)
{
	return uid;
}
static inline party_id party_group(uint32_t gid)
{
	return UINT64_C(1) << 32 | gid;
}

// Who pays for an object: each user and each group once, however many of its contexts reference it.
struct charge {
	uint64_t bytes;
	uint32_t count, capacity;
	struct {
		party_id party;
		uint32_t refs;
	} * who;
};
#define CHARGE_OWNER 2u // entries that one owner needs: its user and its group

// What an owner would hold in addition.
struct need {
	uint64_t user_bytes, group_bytes;
	uint32_t user_contexts, group_contexts;
};

struct spec { // what derives from the layers; shared by forks
	_Atomic uint32_t refs;
	uint32_t layer_count, global_layers, strips, max_d_k;
	bool has_codes, has_tables, has_upper, has_int8;
	uint64_t token_bytes;   // rows and codes of one token, all strips
	uint64_t params_bytes;  // of the extent
	struct layer *layer;    // [layer_count]
	uint64_t *params_first; // [layer_count] byte offset of the layer's first strip in a params record
	uint16_t *strip_layer;  // [strips]
};

struct params {
	struct garbage garbage;
	uint64_t offset, bytes;
	uint32_t version, refs; // contexts
	struct charge charge;
};

struct segment {
	struct garbage garbage;
	uint64_t offset;
	struct segment_record *record;
	struct spec *spec; // a reference
	uint32_t refs;     // contexts
	uint64_t rows_bytes, index_bytes, metadata_bytes;
	struct charge charge;
	struct piece_sums *pieces; // until it has sums of its content; NULL: none are known
	uint32_t summing;          // threads that make those of a sealed one, and may be reading them
	bool damaged;              // found so while attaching
	uint8_t id[2][16];         // sealed and on disk: of its file, for each generation (none: the first); else zero
};

struct ref {
	struct segment *segment;
	uint64_t first;
};
struct snapshot { // the segments of a context; the rows of one end where the next begins
	struct garbage garbage;
	uint64_t list_offset, list_bytes; // the list's extent; freed with the snapshot if free_list
	bool free_list;
	uint32_t count, keep; // refs below `keep` live on in the snapshot that replaced this one
	struct ref ref[];
};

struct prefix_end {               // where a sequence of token ids ends in the tree of its fingerprint
	struct prefix_node *node; // NULL: it has no place
	uint64_t tokens;
	struct prefix_end *next, **link; // others that end on the same edge
	bool saved;                      // of a struct saved; otherwise of a struct context
};

// A context on disk, as far as searches must know of it: it may be in memory as well (then it is not looked at), or have left.
struct saved {
	struct saved *next;
	struct prefix_end prefix;
	struct identity identity;
	uint8_t fingerprint[64];
	char name[MPIG_NAME_BYTES];
	uint64_t created_ns, committed, number; // number: of this state of it
	bool in_memory;                         // there is a context of that name
	bool given_up;                          // its tokens could not be read
};

struct context {
	struct store *store;
	_Atomic uint32_t refs;
	_Atomic bool dropped;
	struct spec *spec;
	uint64_t offset, spec_offset; // spec_offset 0: a damaged context without one
	struct context_record *record;
	uint32_t table_slot;
	char *damage; // why it is quarantined: neither read nor written, only listed and dropped; NULL: it is not
	struct identity identity;
	uint64_t id, parent_id, fork_tokens, created_ns, seed;
	char name[MPIG_NAME_BYTES];
	uint8_t fingerprint[64];
	uint64_t fixed_bytes; // record and spec
	struct context *name_next;

	_Atomic(struct snapshot *) snapshot;
	_Atomic(struct params *) params;
	_Atomic uint32_t signature_version;
	_Atomic uint64_t committed; // as in the record; stored after it
	_Atomic uint64_t used_ns;
	_Alignas(64) _Atomic uint64_t epoch;
	_Atomic uint64_t pins[2];
	_Atomic bool retired;
	struct garbage *garbage[2]; // by epoch
	uint32_t draining;          // truncations whose rows may not be overwritten yet
	_Atomic uint64_t cuts;      // truncations of committed tokens
	struct mpig_wire_policy policy;
	uint64_t patient_until_ns; // its time is over, but what that asks for failed: not tried before
	bool policy_stale;         // what is on disk may have been saved with another, or with other permissions
	bool on_disk;              // its first disk_tokens tokens, as they were after disk_cuts truncations
	uint64_t disk_tokens, disk_cuts;

	// the writer's side
	_Alignas(64) _Atomic uint64_t *rows; // appended, per layer
	uint64_t reserved; // end of what has been handed to the writer; above `committed`: it may be writing there
	bool sealing, reindexing;
	_Atomic bool writing; // holds a pin of epoch write_epoch; whoever clears it gives the pin back
	uint64_t write_epoch;
	_Atomic uint64_t holder;
	uint32_t writer_pid;
	void *private_data;
	void (*private_release)(void *data);
	struct {
		_Atomic(void *) data; // set once
		void (*release)(void *data);
	} companion[COMPANIONS];

	struct prefix_end prefix; // where its committed tokens end
	struct garbage drop;
};

struct account {
	party_id party;
	uint32_t contexts;
	uint64_t bytes;
};

struct prefix_index {
	struct prefix_tree *tree;
	struct prefix_node **bucket; // children by (parent, first token)
	size_t buckets, nodes;       // buckets: a power of two
	bool late;                   // some context has no place yet
};

struct store {
	pthread_mutex_t lock;
	struct pool *pool;
	struct store_options options;
	struct context **context; // ascending ids
	size_t count, capacity;
	struct context *by_name[NAME_BUCKETS];
	struct account *account;
	size_t account_count, account_capacity;
	uint64_t next_id, metadata_bytes;
	uint32_t next_slot;
	struct prefix_index prefix;
	struct saved *saved[NAME_BUCKETS]; // by name
	uint64_t saved_number;
	bool saved_late;      // some have no place yet
	struct garbage *dead; // destroyed when the lock is released
	struct {
		uint64_t real_ns, steady_ns; // at the same moment; 0: not known yet
	} clock;
	struct changed_policy *changed; // of contexts that left memory before anybody asked; the oldest first
};

// store.c
struct store *store_new(const struct store_options *options); // without contexts; NULL without memory
void store_lock(struct store *s);
void store_unlock(struct store *s); // and destroys what was buried meanwhile
void store_bury(struct store *s, struct garbage *g);
void context_retire(struct store *s, struct context *c, struct garbage *g);
void context_collect(struct store *s, struct context *c); // frees what no reader can see any more
uint64_t context_pin(struct context *c);
void context_unpin(struct context *c, uint64_t epoch);        // lock not held
void context_unpin_locked(struct context *c, uint64_t epoch); // the caller collects
void writer_enter(struct context *c);
void writer_leave(struct store *s, struct context *c);
__attribute__((format(printf, 3, 4))) int refuse(char *why, int status, const char *format, ...);
uint64_t store_now(const struct store *s);

// extents.c: what an operation needs, listed first and then allocated as a whole or not at all
int extents_want(struct extents *x, uint64_t bytes, int node); // 0 or MPIG_ENOMEM
uint64_t extents_total(const struct extents *x);
int extents_alloc(struct store *s, struct extents *x, char *why); // 0 or MPIG_ENOSPC
uint64_t extents_next(struct extents *x);                         // in the order they were wanted
void extents_give(struct store *s, struct extents *x);            // frees what was allocated, then the list
void extents_fini(struct extents *x);                             // frees the list only
struct trash {
	struct garbage garbage;
	struct extents list;
};
struct trash *trash_new(size_t capacity); // room for `capacity` extents; NULL without memory
void trash_add(struct trash *t, uint64_t offset, uint64_t bytes);

// quota.c
int account_open(struct store *s, const struct identity *owner); // makes sure there are both; 0 or MPIG_ENOMEM
void account_add(struct store *s, const struct identity *owner, uint64_t bytes);
void account_sub(struct store *s, const struct identity *owner, uint64_t bytes);
void account_contexts(struct store *s, const struct identity *owner, int by);
// MPIG_EQUOTA: `why` says which limit, how much of it is used, and what to do.
int quota_admit_need(const struct store *s, const struct identity *owner, const struct need *need, char *why);
int quota_admit(const struct store *s, const struct identity *owner, uint64_t bytes, uint32_t contexts, char *why); // of both
int charge_reference(struct store *s, struct charge *charge, const struct identity *owner); // has accounts; 0 or MPIG_ENOMEM
void charge_release(struct store *s, struct charge *charge, const struct identity *owner);
void charge_grow(struct store *s, struct charge *charge, uint64_t bytes);
void charge_shrink(struct store *s, struct charge *charge, uint64_t bytes);
bool charge_has(const struct charge *charge, party_id party);
// Adds the bytes to what the owner needs, as far as its user or its group is not charged for the object yet.
void charge_need(const struct charge *charge, const struct identity *owner, uint64_t bytes, struct need *need);
void charge_fini(struct charge *charge);

// spec.c
int spec_create(const struct mpig_wire_layer *layers, uint32_t count, struct spec **spec, char *why);
void spec_unref(struct spec *spec);
bool spec_same(const struct spec *a, const struct spec *b);
float *spec_params(const struct spec *spec, void *record, uint32_t strip); // mu, then balance
static inline const struct layer *spec_strip(const struct spec *spec, uint32_t strip)
{
	return &spec->layer[spec->strip_layer[strip]];
}
static inline uint8_t *params_bits(struct params_record *r)
{
	return (uint8_t *)(r + 1);
}
bool params_bits_good(const struct spec *spec, const uint8_t *bits); // of every strip: one that its layer allows
// Bytes of a row's codes, without its factor; bits [strips] of a generation or of parameters. 0: the strip has none.
static inline uint64_t code_bytes(const struct spec *spec, const uint8_t *bits, uint32_t strip)
{
	return (uint64_t)spec_strip(spec, strip)->d_pad * bits[strip] / 8;
}
// Of a strip's upper layer over `rows` rows; 0: its layer has none.
static inline uint64_t upper_bytes(const struct spec *spec, const uint8_t *bits, uint32_t strip, uint32_t rows)
{
	const struct layer *l = spec_strip(spec, strip);
	return l->may_have_upper ? sig_upper_bytes(l->d_pad, bits[strip], rows) : 0;
}
static inline uint64_t frames_bytes(const struct spec *spec)
{
	return spec->has_int8 ? spec->strips * ROW_FRAME(spec->max_d_k) * sizeof(float) : 0;
}
int strip_node(const struct store *s, const struct layer *l, uint32_t kv_head);

// segment.c
enum extent_use { USE_ROWS, USE_INDEX, USE_METADATA };
struct extent_sink {
	void (*put)(struct extent_sink *sink, uint64_t offset, uint64_t bytes, enum extent_use use);
};
struct segment *segment_new(struct store *s, struct spec *spec,
                            const struct identity *owner); // not yet in the pool; NULL without memory
void segment_put(struct store *s, struct segment *seg);
void segment_free(struct segment *seg); // the private mirror only, which nobody refers to
void params_put(struct store *s, struct params *p);
void segment_extents(const struct pool *pool, const struct segment *seg, struct extent_sink *sink);
// What is left over of the blocks if only `rows` rows of the segment count: unused granules of the block they end in (if `trim`),
// and every later block.
void segment_surplus(const struct pool *pool, const struct segment *seg, uint32_t rows, bool trim, struct extent_sink *sink);
void segment_grow(struct store *s, struct segment *seg, uint64_t bytes, enum extent_use use);
void segment_shrink(struct store *s, struct segment *seg, uint64_t bytes, enum extent_use use);
static inline uint64_t segment_bytes(const struct segment *seg)
{
	return seg->rows_bytes + seg->index_bytes + seg->metadata_bytes;
}
// A list with room for the surplus as it is now and `more` extents; NULL without memory.
struct trash *segment_trash_new(const struct store *s, const struct segment *seg, uint32_t rows, bool trim, size_t more);
// Lists the surplus and takes it off the books. Then publish what makes it unreachable, then retire the list.
void segment_trash_fill(struct store *s, struct segment *seg, uint32_t rows, bool trim, struct trash *trash);
#define GENERATIONS 2u
struct generation_record *generation_at(const struct pool *pool, const struct segment_record *r, uint32_t slot); // NULL: none
// The slot whose generation was made with these parameters; GENERATIONS: there is none. Any reader of a context with them may ask.
uint32_t generation_slot(const struct segment_record *r, uint64_t params_offset);
struct generation_record *generation_of(const struct pool *pool, const struct segment_record *r, uint64_t params_offset);
void generation_publish(struct pool *pool, struct segment_record *r, uint32_t slot, uint64_t offset); // into an empty slot
// Of an open segment, or one being made: it has no other.
struct generation_record *segment_generation(const struct pool *pool, const struct segment *seg);
const uint8_t *generation_widths(const struct pool *pool, const struct segment_record *r); // likewise, its bits; NULL: none
// Where the id of its file is kept, for contexts with these parameters; NULL: nowhere, since it has other generations only.
uint8_t *segment_id(struct segment *seg, uint64_t params_offset);
// The generation leaves its slot and its segment's books; its extents go into trash, or if that is NULL back to the pool.
void generation_drop(struct store *s, struct segment *seg, uint32_t slot, struct trash *trash);
size_t generation_extent_count(const struct pool *pool, const struct segment *seg, uint32_t slot);
void generation_surplus(const struct pool *pool, const struct segment *seg, const struct generation_record *g, uint32_t rows,
                        struct extent_sink *sink); // what is left over when `rows` rows count
// Extents of one generation of a segment of `rows` rows.
void generation_extents(const struct pool *pool, const struct segment *seg, const struct generation_record *g, uint64_t offset,
                        uint32_t rows, struct extent_sink *sink);
float *segment_frame(const struct pool *pool, const struct segment *seg, uint32_t strip); // of a strip with int8 rows
struct code_range {
	uint64_t begin, end;
};
// What a block of `rows` rows keeps of a strip's codes extent (code_bytes of a row) when `used` of them count: one or two ranges of whole granules.
// With used == rows this is the whole extent.
uint32_t code_ranges(uint64_t per_row, uint32_t rows, uint32_t used, struct code_range range[2]);

// checksum.c: what a sealed segment says about itself. 0 means none.
uint64_t segment_checksum(const struct pool *pool, const struct spec *spec, const struct segment_record *r,
                          uint32_t sealed_rows); // its records but for generations, and the frames of int8 keys
uint64_t generation_checksum(const struct pool *pool, const struct segment_record *r, const struct generation_record *g,
                             uint32_t sealed_rows);                                           // a generation's records
uint64_t segment_identity(const struct segment_record *r, const struct generation_record *g); // of both; g: NULL or one of its
static inline uint64_t not_zero(uint64_t sum)
{
	return sum ? sum : 1;
}
// Blocks that hold the first `rows` rows, and rows of one of them.
static inline uint32_t blocks_of(const struct segment_record *r, uint32_t rows)
{
	uint32_t blocks = 0;
	for (uint32_t at = 0; at < rows; blocks++)
		at += r->block[blocks].rows;
	return blocks;
}
static inline uint32_t used_rows(const struct segment_record *r, uint32_t b, uint32_t rows)
{
	uint32_t left = rows - r->block[b].first_row;
	return left < r->block[b].rows ? left : r->block[b].rows;
}

// content.c: of what its records lead to. Each of them alone, never 0:
uint64_t block_content(const struct store *s, const struct segment *seg, uint32_t b, uint32_t rows); // token ids, rows
uint64_t code_block_content(const struct store *s, const struct segment *seg, const struct generation_record *g, uint32_t b,
                            uint32_t rows);
uint64_t table_content(const struct store *s, const struct table_extent *table, uint32_t i);      // the i-th; 0: it is not there
uint64_t tables_content(const struct store *s, const struct table_extent *table, uint32_t count); // from the sum of those
// All of a segment's first `rows` rows, which do not change any more, part by part, in any order, by anybody who has what keeps the segment;
// then the end. g, table [2 strips]: NULL if there are none.
struct content_sums {
	uint64_t block[SEGMENT_MAX_BLOCKS], code_block[SEGMENT_MAX_BLOCKS], tables; // at the end; 0: it is not there
	uint32_t blocks, strips, parts;
	uint64_t part[];
};
struct content_sums *content_sums_begin(const struct segment *seg, uint32_t rows); // NULL without memory
void content_sum(const struct store *s, const struct segment *seg, const struct generation_record *g,
                 const struct table_extent *table, uint32_t rows, uint32_t part, struct content_sums *sums);
void content_sums_end(const struct store *s, const struct generation_record *g, const struct table_extent *table,
                      struct content_sums *sums);
struct content_sums *content_sums_new(const struct store *s, const struct segment *seg, const struct generation_record *g,
                                      const struct table_extent *table, uint32_t rows); // all of that; NULL without memory
void content_sums_publish(struct pool *pool, const struct segment_record *r, struct generation_record *g,
                          const struct content_sums *sums);
// All checksums of a generation that nobody reaches yet.
void generation_sums(const struct store *s, const struct segment *seg, struct generation_record *g, uint32_t rows);
// Sums of whole pieces of an open segment's rows, as those who wrote them left them; 0: not known. Without memory none is.
struct piece_sums {
	uint64_t *block[SEGMENT_MAX_BLOCKS]; // [strips][pieces]; NULL: none is known
};
void piece_sums_block(struct segment *seg, uint32_t block, uint32_t rows); // a block that begins; lock held, nobody writes rows
uint64_t *piece_sums_at(const struct segment *seg, uint32_t block, uint32_t strip, uint32_t block_row); // of that piece; or NULL
void piece_sums_free(struct segment *seg);
struct segment_walk { // of a verification, part by part: blocks, then codes and tables of each generation
	uint32_t step;
	bool damaged;
	uint64_t sum; // of the tables so far
	uint64_t bytes;
	uint32_t checked, unchecked; // parts with and without a checksum
	bool own; // only of the generation made with `params`, which is 0 without an index: others may go meanwhile
	uint64_t params;
};
// A segment that a fork sealed has no sums of its content until they are made. While they are being stored, and for good if that was
// cut off, the record's checksum is the one from before: it counts as well.
// Generations, too: those that the walk looks at, or all (NULL).
bool segment_records_good(const struct pool *pool, const struct spec *spec, const struct segment_record *r,
                          const struct segment_walk *walk);
bool segment_has_sums(const struct pool *pool, const struct segment *seg, const struct generation_record *g);
// g: one of its generations, or NULL. The caller has what keeps both, not the lock; 0 or MPIG_ENOMEM.
int segment_make_sums(struct store *s, struct segment *seg, struct generation_record *g);
// Verifies the next part of a sealed segment; false when there was none.
bool segment_verify_step(const struct store *s, const struct segment *seg, struct segment_walk *walk);
// The one store that seals a segment; its checksum, and that of its generation if it has one, are stored before.
void segment_publish_sealed(struct pool *pool, const struct spec *spec, struct segment_record *r, uint32_t rows);

// check.c: records in the pool before anybody believes them. All return false with `why` filled.
void *record_at(const struct pool *pool, uint64_t offset, enum record_kind kind, uint64_t bytes); // NULL: it is not one
struct segment_use {                                                                              // of a segment by a context
	const struct pool *pool;
	const struct spec *spec;
	uint64_t offset, params_offset;
	uint32_t rows; // the context uses, committed
	uint64_t (*table_bytes)(const struct layer *, uint32_t rows);
};
bool segment_check(const struct segment_use *use, char *why);

// snapshot.c
struct snapshot *snapshot_new(uint32_t count);
void snapshot_install(struct store *s, struct context *c, struct snapshot *next, uint32_t keep); // retires the old one
uint32_t snapshot_find(const struct snapshot *snap, uint64_t token); // the ref that holds it; UINT32_MAX: none begins before it
void fill_list(struct store *s, uint64_t offset, const struct snapshot *snap);
void slot_fill(const struct context *c, const struct snapshot *snap, struct context_slot *slot);

// context.c
struct context_draft { // a context being made
	const char *name;
	const uint8_t *fingerprint;
	struct identity identity;
	struct mpig_wire_policy policy;
	uint64_t seed, parent_id, fork_tokens;
	uint32_t segment_count;
	struct need more; // what the owner will be charged for beyond the context's own records
};
int name_valid(const char *name, const char *field, char *why);
int name_check(const struct store *s, const char *name, const char *field, char *why); // valid, and free
uint64_t spec_bytes(const struct spec *spec);
// Memory and charges of a context nobody sees yet: the caller sets committed, snapshot refs and params, then announces or
// discards it. Takes a reference of the spec.
int context_build(struct store *s, const struct context_draft *draft, struct spec *spec, struct context **out, char *why);
void context_discard(struct store *s, struct context *c);
void context_announce(struct store *s, struct context *c); // from here on it exists
int context_alive(const struct context *c, char *why);
struct context *name_find(const struct store *s, const char *name);
uint32_t name_bucket(const char *name);
// A context `who` may use in the way wanted, by name. lookup: quarantined ones too.
int context_lookup(const struct store *s, const struct credentials *who, const char *name, enum access want, struct context **out,
                   char *why);
int context_find(const struct store *s, const struct credentials *who, const char *name, enum access want, struct context **out,
                 char *why);
uint64_t context_own_bytes(const struct context *c);   // record, spec, list
void context_drop(struct store *s, struct context *c); // owner.c
// policy.c
bool context_is_saved(const struct context *c);             // all that is committed is on disk
void policy_left(struct store *s, const struct context *c); // it leaves memory: what is on disk may not know its policy
static inline bool context_pinned(const struct store *s, const struct context *c)
{
	return c->policy.pinned_until_ns && c->policy.pinned_until_ns > store_now(s);
}
void context_free_records(struct store *s, const struct context *c, const struct snapshot *snap);

// saved.c
struct saved *saved_find(const struct store *s, const char *name); // NULL: that is not on disk
void saved_put(struct store *s, const struct context *like,
               const struct image_context *from); // like: has the same tokens; or NULL
void saved_free_all(struct store *s);

// prefix.c
int prefix_extend_end(struct store *s, struct prefix_end *end, const uint8_t fingerprint[64], const uint32_t *token,
                      uint64_t count);
void prefix_cut_end(struct store *s, struct prefix_end *end, uint64_t tokens);
bool prefix_share_end(struct prefix_end *end, const struct prefix_end *with, uint64_t tokens); // false: that has no such place
// The context has `count` more tokens. MPIG_ENOMEM: the tree is as before.
int prefix_extend(struct store *s, struct context *c, const uint32_t *token, uint64_t count);
void prefix_cut(struct store *s, struct context *c, uint64_t tokens); // it has only so many; 0: it is gone
void prefix_share(struct store *s, struct context *child, const struct context *parent, uint64_t tokens); // begins as its parent
// Puts an attached context, which has no place yet, where its committed tokens lead. 0 or MPIG_ENOMEM.
int prefix_complete(struct store *s, struct context *c);
void prefix_close(struct store *s); // when no context is left in it

// commit.c
struct drain {
	struct garbage garbage;
	struct context *context;
};
void tokens_read(const struct context *c, uint64_t begin, uint64_t n, uint32_t *out);
uint64_t rows_most(const struct context *c);             // the most rows any layer holds
bool context_busy_writing(const struct context *c);      // rows beyond the committed ones exist or are being written
void context_forget(struct store *s, struct context *c); // uncommitted rows

// seal.c
uint32_t unsealed_rows(const struct context *c, uint32_t *index); // committed rows of the earliest sealable ref; 0: none
uint32_t ref_rows(const struct context *c, const struct snapshot *snap, uint32_t i); // committed rows of ref i

#endif
