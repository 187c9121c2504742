// A context as a stream: the same bytes after it was read again; nothing altered, cut or made up becomes a context.
#include "daemon/disk/archive.h"
#include "tests/disk/fixture.h"
#include "tests/lib/suite.h"

struct tape {
	uint8_t *data;
	size_t bytes, capacity, at;
	uint64_t calls, fail_at; // the put that fails
	void (*meanwhile)(void);
};

static int tape_put(void *arg, const void *data, size_t bytes, char *why)
{
	struct tape *t = arg;
	if (++t->calls == t->fail_at) {
		snprintf(why, MPIG_TEXT_BYTES, "the tape is full");
		return MPIG_EIO;
	}
	if (t->meanwhile && t->calls == 6)
		t->meanwhile();
	if (t->bytes + bytes > t->capacity) {
		t->capacity = 2 * (t->bytes + bytes);
		t->data = realloc(t->data, t->capacity);
		must(t->data);
	}
	memcpy(t->data + t->bytes, data, bytes);
	t->bytes += bytes;
	return 0;
}

static int tape_get(void *arg, void *data, size_t bytes, char *why)
{
	struct tape *t = arg;
	(void)why;
	if (t->at + bytes > t->bytes)
		return MPIG_ERANGE;
	memcpy(data, t->data + t->at, bytes);
	t->at += bytes;
	return 0;
}

static struct mpig_archive_result done;

static int to_tape(struct tape *t, const struct credentials *who, const char *name)
{
	struct image *image;
	const struct archive_io io = {.put = tape_put, .arg = t};
	int status = image_take(f.store, who, name, ACCESS_READ, &image, f.why);
	if (status)
		return status;
	status = archive_write(image, &io, &done, f.why);
	image_release(image);
	return status;
}

static int from_tape(struct tape *t, const struct credentials *who, const char *name)
{
	const struct archive_io io = {.get = tape_get, .arg = t};
	const struct archive_options o = {.table_bytes = test_table_bytes};
	t->at = 0;
	return archive_read(f.store, who, name, &o, &io, &done, f.why);
}

static void nothing_came(uint64_t used)
{
	ck_assert_uint_eq(pool_used(f.pool), used);
	ck_assert_uint_eq(store_uid_bytes(f.store, 0), 0);
	ck_assert_msg(store_audit(f.store, f.why) == 0, "%s", f.why);
}

static struct context *three_segments(uint32_t kind)
{
	struct context *c = create("book", kind);
	grow(c, 1000, true);
	grow(c, 1500, true);
	grow(c, 1777, false);
	return c;
}

START_TEST(round_trip)
{
	struct tape t = {0}, again = {0};
	struct context *c = three_segments((uint32_t)_i);
	ck_assert_msg(to_tape(&t, &root, "book") == 0, "%s", f.why);
	ck_assert_uint_eq(done.tokens, 1777);
	ck_assert_uint_eq(done.bytes, t.bytes);
	ck_assert_int_eq(from_tape(&t, &root, ""), MPIG_EEXIST);
	ck_assert_msg(from_tape(&t, &root, "copy") == 0, "%s", f.why);
	ck_assert_str_eq(done.name, "copy");
	ck_assert_uint_eq(done.bytes, t.bytes);
	check_context("copy", 1777);
	ck_assert_uint_eq(unchecked_parts("copy"), 1); // the open segment
	done_with(c, "book");
	check_context("copy", 1777); // nothing is shared
	ck_assert_int_eq(save("copy"), 0);
	ck_assert_uint_eq(result.shared, 0);
	ck_assert_int_eq(to_tape(&again, &root, "copy"), 0);
	ck_assert_uint_eq(again.bytes, t.bytes);
	ck_assert_int_eq(store_context_open(f.store, &root, "copy", NULL, &c, f.why), 0);
	ck_assert_int_eq(context_lease(f.store, c, &root, 1, f.why), 0);
	grow(c, 1900, false); // and work goes on
	check_context("copy", 1900);
	done_with(c, "copy");
	ck_assert_int_eq(from_tape(&again, &root, ""), 0);
	ck_assert_str_eq(done.name, "copy");
	check_context("copy", 1777);
	free(t.data);
	free(again.data);
}
END_TEST

START_TEST(empty_context)
{
	struct tape t = {0};
	struct context *c = create("empty", 0);
	ck_assert_int_eq(to_tape(&t, &root, "empty"), 0);
	done_with(c, "empty");
	ck_assert_int_eq(from_tape(&t, &root, ""), 0);
	check_context("empty", 0);
	free(t.data);
}
END_TEST

// A fork's segments have no sums; what is imported of them has.
START_TEST(sums_are_made)
{
	struct tape t = {0};
	struct context *c = create("parent", 1), *child;
	grow(c, 700, false);
	ck_assert_int_eq(store_context_fork(f.store, &root, c, 650, "child", &child, f.why), 0);
	ck_assert_uint_gt(unchecked_parts("child"), 0);
	ck_assert_int_eq(to_tape(&t, &root, "child"), 0);
	ck_assert_int_eq(from_tape(&t, &root, "copy"), 0);
	ck_assert_uint_eq(unchecked_parts("copy"), 0);
	context_unref(child);
	context_release(f.store, c, 1);
	context_unref(c);
	free(t.data);
}
END_TEST

START_TEST(whose_it_is)
{
	struct credentials other = user(7), owner = user(5);
	struct tape t = {0};
	struct context *c = three_segments(0);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0640, 5, 5, f.why), 0);
	ck_assert_int_eq(to_tape(&t, &other, "book"), MPIG_EACCES);
	ck_assert_int_eq(to_tape(&t, &owner, "none"), MPIG_ENOENT);
	ck_assert_int_eq(store_context_chmod(f.store, &root, "book", 0644, UINT32_MAX, UINT32_MAX, f.why), 0);
	ck_assert_int_eq(to_tape(&t, &other, "book"), 0); // who may read it may copy it
	ck_assert_int_eq(from_tape(&t, &other, "mine"), 0);
	ck_assert_uint_gt(store_uid_bytes(f.store, 7), 1777 * 800);
	ck_assert_int_eq(store_context_drop(f.store, &owner, "mine", f.why), MPIG_EACCES);
	ck_assert_int_eq(store_context_drop(f.store, &other, "mine", f.why), 0);
	ck_assert_uint_eq(store_uid_bytes(f.store, 7), 0);
	ck_assert_int_eq(from_tape(&t, &other, "a/b"), MPIG_ECORRUPT);
	done_with(c, "book");
	free(t.data);
}
END_TEST

// A context of two segments, one of them open, that is nowhere but on the tape. Returns what the pool holds then.
static uint64_t two_segments_to(struct tape *t)
{
	struct context *c = create("book", 1);
	grow(c, 300, true);
	grow(c, 340, false);
	ck_assert_int_eq(to_tape(t, &root, "book"), 0);
	done_with(c, "book");
	return pool_used(f.pool);
}

// Every byte of the heads and the descriptions, and bytes of every page of the data: turned, the stream is refused. Cut anywhere, too.
START_TEST(altered_or_cut)
{
	struct tape t = {0};
	uint64_t used = two_segments_to(&t), tried = 0;
	size_t whole = t.bytes;
	for (size_t i = 0; i < whole; i += i < 6000 ? 1 : 509) {
		t.data[i] ^= (uint8_t)(1 << i % 8);
		int status = from_tape(&t, &root, "");
		t.data[i] ^= (uint8_t)(1 << i % 8);
		ck_assert_msg(status == MPIG_ECORRUPT || (status == MPIG_EVERSION && i >= 8 && i < 12), "byte %zu: %d", i,
		              status);
		tried++;
	}
	nothing_came(used);
	for (size_t cut = 0; cut < whole; cut += cut < 3000 || cut + 300 > whole ? 1 : 1021) {
		t.bytes = cut;
		ck_assert_int_eq(from_tape(&t, &root, ""), MPIG_ECORRUPT);
		ck_assert_msg(strstr(f.why, "it is not whole"), "%s", f.why);
		tried++;
	}
	nothing_came(used);
	t.bytes = whole;
	ck_assert_msg(from_tape(&t, &root, "") == 0, "%s", f.why);
	check_context("book", 340);
	ck_assert_uint_gt(tried, 6000);
	free(t.data);
}
END_TEST

// ---- streams with good checksums, made up ------------------------------------------------------------------------------

static void sign(uint8_t *chunk)
{
	struct mpig_archive_chunk h;
	memcpy(&h, chunk, sizeof h);
	h.data_checksum = XXH3_64bits(chunk + sizeof h, h.bytes);
	h.checksum = XXH3_64bits(&h, offsetof(struct mpig_archive_chunk, checksum));
	memcpy(chunk, &h, sizeof h);
}

static uint8_t *chunk_at(const struct tape *t, uint32_t kind, uint32_t number)
{
	struct mpig_archive_chunk h;
	for (size_t at = sizeof(struct mpig_archive_header); at < t->bytes; at += sizeof h + h.bytes) {
		memcpy(&h, t->data + at, sizeof h);
		if (h.kind == kind && number-- == 0)
			return t->data + at;
	}
	must(false);
	return NULL;
}

// The end again, and the header.
static void sign_all(struct tape *t)
{
	struct mpig_archive_chunk h;
	struct mpig_archive_header header;
	XXH3_state_t *heads = XXH3_createState();
	XXH3_64bits_reset(heads);
	uint8_t *at = t->data + sizeof header, *end = chunk_at(t, MPIG_ARCHIVE_END, 0);
	for (; at < end; at += sizeof h + h.bytes) {
		sign(at);
		memcpy(&h, at, sizeof h);
		XXH3_64bits_update(heads, &h, sizeof h);
	}
	uint64_t sum = XXH3_64bits_digest(heads);
	memcpy(end + sizeof h, &sum, sizeof sum);
	sign(end);
	XXH3_freeState(heads);
}

static void manifest_sign(uint8_t *chunk)
{
	struct mpig_archive_chunk h;
	memcpy(&h, chunk, sizeof h);
	uint8_t *m = chunk + sizeof h;
	uint64_t sum = XXH3_64bits(m, h.bytes - 8);
	memcpy(m + h.bytes - 8, &sum, 8);
}

static struct tape copy_of(const struct tape *t)
{
	struct tape copy = {.data = malloc(t->bytes), .bytes = t->bytes, .capacity = t->bytes};
	memcpy(copy.data, t->data, t->bytes);
	return copy;
}

// Every 32-bit word of the descriptions set to values that are likely to hurt; all checksums are right.
START_TEST(made_up)
{
	static const uint32_t values[] = {0, 1, 0x7fffffff, 0xffffffff, 65537, 0x80000000};
	struct tape t = {0};
	uint64_t used = two_segments_to(&t), refused = 0, taken = 0;
	for (uint32_t kind = MPIG_ARCHIVE_CONTEXT; kind <= MPIG_ARCHIVE_SEGMENT; kind++)
		for (uint32_t which = 0; which < (kind == MPIG_ARCHIVE_SEGMENT ? 2 : 1); which++) {
			struct mpig_archive_chunk h;
			memcpy(&h, chunk_at(&t, kind, which), sizeof h);
			for (uint64_t word = 0; word + 4 <= h.bytes && word < 1200; word += 4) {
				struct tape bad = copy_of(&t);
				uint8_t *chunk = chunk_at(&bad, kind, which);
				memcpy(chunk + sizeof h + word, &values[word / 4 % 6], 4);
				if (kind == MPIG_ARCHIVE_CONTEXT)
					manifest_sign(chunk);
				sign_all(&bad);
				int status = from_tape(&bad, &root, "x");
				ck_assert_msg(status <= 0 && status != MPIG_EIO, "%d", status);
				refused += status != 0;
				taken += status == 0;
				if (!status)
					ck_assert_int_eq(store_context_drop(f.store, &root, "x", f.why), 0);
				free(bad.data);
			}
		}
	nothing_came(used);
	fprintf(stderr, "%lu made-up descriptions refused, %lu were contexts all the same\n", (unsigned long)refused,
	        (unsigned long)taken);
	ck_assert_uint_gt(refused, 40);
	// A sealed segment's rows replaced, with all checksums of the stream right: not what was sealed.
	struct tape bad = copy_of(&t);
	struct mpig_archive_chunk h;
	for (uint32_t i = 0;; i++) {
		uint8_t *chunk = chunk_at(&bad, IMAGE_ROWS, i);
		memcpy(&h, chunk, sizeof h);
		chunk[sizeof h] ^= (uint8_t)(h.segment == 0);
		if (h.segment == 0)
			break;
	}
	sign_all(&bad);
	ck_assert_int_eq(from_tape(&bad, &root, "x"), MPIG_ECORRUPT);
	ck_assert_msg(strstr(f.why, "when it was sealed"), "%s", f.why);
	free(bad.data);
	// Two chunks of a kind in the other's place.
	bad = copy_of(&t);
	uint8_t *a = chunk_at(&bad, MPIG_ARCHIVE_SEGMENT, 0), *b = chunk_at(&bad, MPIG_ARCHIVE_SEGMENT, 1), head[64];
	memcpy(head, a, 64);
	memcpy(a, b, 64);
	memcpy(b, head, 64);
	ck_assert_int_eq(from_tape(&bad, &root, "x"), MPIG_ECORRUPT);
	free(bad.data);
	nothing_came(used);
	free(t.data);
}
END_TEST

// A stream of version 1 has sums of other parts. They are passed over, and the context gets its own; in a stream of this version they are compared.
START_TEST(the_version_before)
{
	struct tape t = {0};
	uint64_t used = two_segments_to(&t);
	uint8_t *chunk = chunk_at(&t, MPIG_ARCHIVE_SEGMENT, 0);
	struct mpig_archive_shape shape;
	struct disk_block block;
	memcpy(&shape, chunk + sizeof(struct mpig_archive_chunk), sizeof shape);
	must(shape.flags & DISK_SEALED && shape.block_count);
	uint8_t *at = chunk + sizeof(struct mpig_archive_chunk) + sizeof shape;
	memcpy(&block, at, sizeof block);
	must(block.content);
	block.content ^= 1;
	memcpy(at, &block, sizeof block);
	sign_all(&t);
	ck_assert_int_eq(from_tape(&t, &root, "book"), MPIG_ECORRUPT);
	ck_assert_msg(strstr(f.why, "when it was sealed"), "%s", f.why);
	nothing_came(used);
	struct mpig_archive_header h;
	memcpy(&h, t.data, sizeof h);
	h.version = 1;
	h.checksum = XXH3_64bits(&h, offsetof(struct mpig_archive_header, checksum));
	memcpy(t.data, &h, sizeof h);
	ck_assert_msg(from_tape(&t, &root, "book") == 0, "%s", f.why);
	check_context("book", 340);
	struct verify_part part = {0};
	uint32_t unchecked = 0, checked = 0;
	do {
		ck_assert_int_eq(store_context_verify(f.store, &root, "book", &part, f.why), 0);
		ck_assert_uint_eq(part.damaged, 0);
		unchecked += part.unchecked;
		checked += part.checked;
	} while (part.more);
	ck_assert_uint_eq(unchecked, 1); // what is open
	ck_assert_uint_gt(checked, 3);
	free(t.data);
}
END_TEST

// A description of `segments` segments with `blocks` blocks each, of one token each, and nothing after it.
static struct tape shapes(const struct tape *from, uint32_t segments, uint32_t blocks, uint64_t tokens)
{
	struct mpig_archive_chunk h = {0};
	const uint8_t *chunk = chunk_at(from, MPIG_ARCHIVE_CONTEXT, 0) + sizeof h;
	struct disk_manifest m;
	struct disk_segment_ref ref;
	memcpy(&m, chunk, sizeof m);
	uint64_t refs = sizeof m + m.layer_count * sizeof(struct mpig_wire_layer);
	memcpy(&ref, chunk + refs, sizeof ref);
	uint64_t after = refs + m.segment_count * sizeof ref;
	m.segment_count = segments;
	m.committed = tokens;
	m.file_bytes = refs + segments * sizeof ref + m.params_bytes + 8;
	uint64_t shape_bytes = sizeof(struct mpig_archive_shape) + blocks * sizeof(struct disk_block);
	size_t capacity = sizeof(struct mpig_archive_header) + sizeof h + m.file_bytes + segments * (sizeof h + shape_bytes);
	struct tape t = {.data = calloc(1, capacity), .bytes = capacity, .capacity = capacity};
	must(t.data && m.file_bytes <= MPIG_ARCHIVE_CHUNK_MAX && shape_bytes <= MPIG_ARCHIVE_CHUNK_MAX);
	memcpy(t.data, from->data, sizeof(struct mpig_archive_header));
	memcpy(&h, chunk - sizeof h, sizeof h);
	h.bytes = m.file_bytes;
	uint8_t *at = t.data + sizeof(struct mpig_archive_header), *context = at;
	memcpy(at, &h, sizeof h);
	at += sizeof h;
	memcpy(at, &m, sizeof m);
	memcpy(at + sizeof m, chunk + sizeof m, refs - sizeof m);
	for (uint32_t i = 0; i < segments; i++) {
		ref.first = i;
		memcpy(at + refs + i * sizeof ref, &ref, sizeof ref);
	}
	memcpy(at + refs + segments * sizeof ref, chunk + after, m.params_bytes);
	at += m.file_bytes;
	manifest_sign(context);
	sign(context);
	for (uint32_t i = 0; i < segments; i++, at += sizeof h + shape_bytes) {
		struct mpig_archive_shape shape = {.rows = ref.rows, .flags = ref.flags, .block_count = blocks};
		h = (struct mpig_archive_chunk){.magic = MPIG_ARCHIVE_CHUNK_MAGIC,
		                                .kind = MPIG_ARCHIVE_SEGMENT,
		                                .number = i + 1,
		                                .segment = i,
		                                .bytes = shape_bytes};
		memcpy(at, &h, sizeof h);
		memcpy(at + sizeof h, &shape, sizeof shape);
		sign(at);
	}
	return t;
}

// What could never be had is refused as soon as it is told, not when all of it has been kept.
START_TEST(descriptions_without_end)
{
	struct tape t = {0};
	struct context *c = create("book", 1);
	grow(c, 300, true);
	ck_assert_int_eq(to_tape(&t, &root, "book"), 0);
	done_with(c, "book");
	uint64_t used = pool_used(f.pool), most = pool_bytes(f.pool) / POOL_GRANULE;
	uint32_t enough = (uint32_t)(most / SEGMENT_MAX_BLOCKS + 10);
	const struct credentials nobody = {.uid = 77, .gid = 77};
	const struct store_limits limits = {.uid_bytes = pool_bytes(f.pool) / 4}, none = {0};
	struct tape bad = shapes(&t, 3, SEGMENT_MAX_BLOCKS + 1, 3);
	ck_assert_int_eq(from_tape(&bad, &root, "x"), MPIG_ECORRUPT);
	ck_assert_msg(strstr(f.why, "more blocks than one can have"), "%s", f.why);
	free(bad.data);
	bad = shapes(&t, 3, 1, 2);
	ck_assert_int_eq(from_tape(&bad, &root, "x"), MPIG_ECORRUPT);
	ck_assert_msg(strstr(f.why, "more segments than tokens"), "%s", f.why);
	free(bad.data);
	bad = shapes(&t, enough, SEGMENT_MAX_BLOCKS, enough);
	ck_assert_int_eq(from_tape(&bad, &root, "x"), MPIG_ENOSPC);
	ck_assert_msg(strstr(f.why, "no room"), "%s", f.why);
	ck_assert_uint_lt(bad.at, bad.bytes); // the rest was not asked for
	uint64_t all = bad.at;
	store_set_limits(f.store, &limits);
	ck_assert_int_eq(from_tape(&bad, &nobody, "x"), MPIG_EQUOTA);
	ck_assert_uint_lt(bad.at, all / 2);
	store_set_limits(f.store, &none);
	free(bad.data);
	nothing_came(used);
	free(t.data);
}
END_TEST

// Ids in a stream would give whoever made it the segments of others.
START_TEST(ids_mean_nothing)
{
	struct tape t = {0};
	struct context *c = create("book", 0);
	grow(c, 1000, true);
	ck_assert_int_eq(save("book"), 0); // its segment has an id now
	ck_assert_int_eq(to_tape(&t, &root, "book"), 0);
	uint8_t id[IMAGE_ID_BYTES], *chunk = chunk_at(&t, MPIG_ARCHIVE_CONTEXT, 0);
	DIR *list = opendir(where);
	must(list);
	closedir(list);
	char path[200];
	snprintf(path, sizeof path, "%s/segments", where);
	list = opendir(path);
	must(list);
	for (struct dirent *e; (e = readdir(list));)
		if (e->d_name[0] != '.')
			for (uint32_t i = 0; i < IMAGE_ID_BYTES; i++)
				must(sscanf(e->d_name + 2 * i, "%2hhx", &id[i]) == 1);
	closedir(list);
	uint64_t refs =
		sizeof(struct mpig_archive_chunk) + sizeof(struct disk_manifest) + LAYERS * sizeof(struct mpig_wire_layer);
	memcpy(chunk + refs, id, sizeof id);
	manifest_sign(chunk);
	sign_all(&t);
	uint64_t used = pool_used(f.pool);
	ck_assert_msg(from_tape(&t, &root, "mine") == 0, "%s", f.why);
	ck_assert_uint_gt(pool_used(f.pool) - used, 1000 * 800);
	check_context("mine", 1000);
	done_with(c, "book");
	free(t.data);
}
END_TEST

// ---- while it is written ---------------------------------------------------------------------------------------------

// An upper layer is made of codes: one over a block without them is refused, whoever says that there is one. So is a last version.
START_TEST(descriptions_that_lead_nowhere)
{
	struct image *image;
	struct making *m;
	struct context *c = three_segments(0);
	ck_assert_int_eq(image_take(f.store, &root, "book", ACCESS_READ, &image, f.why), 0);
	struct image_context from = *image_of(image);
	from.foreign = true;
	snprintf(from.name, sizeof from.name, "copy");
	ck_assert(from.segment[0].has_upper);
	for (int coded = 0; coded < 2; coded++) {
		from.segment[0].block[0].has_codes = coded;
		ck_assert_msg(making_begin(f.store, &from, test_table_bytes, &m, f.why) == 0, "%s", f.why);
		ck_assert_int_eq(making_finish(m, f.why), coded ? 0 : MPIG_ECORRUPT);
		ck_assert(coded || strstr(f.why, "no codes"));
	}
	from.signature_version = UINT32_MAX; // the next would be 0: none
	ck_assert_int_eq(making_begin(f.store, &from, test_table_bytes, &m, f.why), MPIG_ECORRUPT);
	image_release(image);
	done_with(c, "book");
	ck_assert_int_eq(store_context_drop(f.store, &root, "copy", f.why), 0);
	nothing_came(pool_used(f.pool));
}
END_TEST

static struct context *living;
static void truncate_it(void)
{
	ck_assert_int_eq(context_truncate(f.store, living, 1600, f.why), 0);
}
static void append_it(void)
{
	grow(living, 1900, false);
}
static void drop_it(void)
{
	ck_assert_int_eq(store_context_drop(f.store, &root, "book", f.why), 0);
}

START_TEST(while_it_is_written)
{
	struct tape t = {.meanwhile = append_it};
	living = three_segments(1);
	ck_assert_int_eq(to_tape(&t, &root, "book"), 0); // what was committed when it began
	ck_assert_uint_eq(done.tokens, 1777);
	ck_assert_int_eq(from_tape(&t, &root, "copy"), 0);
	check_context("copy", 1777);
	t.bytes = t.calls = 0;
	t.meanwhile = truncate_it;
	ck_assert_int_eq(to_tape(&t, &root, "book"), MPIG_EAGAIN);
	t.bytes = t.calls = 0;
	t.meanwhile = drop_it;
	ck_assert_int_eq(to_tape(&t, &root, "book"), MPIG_ENOENT);
	context_release(f.store, living, 1);
	context_unref(living);
	free(t.data);
}
END_TEST

START_TEST(errors_while_writing)
{
	struct tape t = {0};
	struct context *c = create("book", 1);
	grow(c, 300, true);
	grow(c, 340, false);
	int status = MPIG_EIO;
	for (uint64_t k = 1; status; k++) {
		t.bytes = t.calls = 0;
		t.fail_at = k;
		status = to_tape(&t, &root, "book");
		ck_assert(status == MPIG_EIO || (!status && t.calls < k));
	}
	done_with(c, "book");
	nothing_came(pool_used(f.pool));
	ck_assert_int_eq(from_tape(&t, &root, ""), 0);
	free(t.data);
}
END_TEST

START_TEST(a_full_pool)
{
	struct tape t = {0};
	struct context *c = create("book", 0);
	grow(c, 9000, true);
	ck_assert_int_eq(to_tape(&t, &root, "book"), 0);
	done_with(c, "book");
	uint64_t used = pool_used(f.pool), most = 0, at, taken[200];
	while (most < 200 && (at = pool_alloc(f.pool, 1 << 20, 0)))
		taken[most++] = at;
	ck_assert_int_eq(from_tape(&t, &root, ""), MPIG_ENOSPC);
	while (most)
		pool_free(f.pool, taken[--most], 1 << 20);
	nothing_came(used);
	ck_assert_int_eq(from_tape(&t, &root, ""), 0);
	check_context("book", 9000);
	free(t.data);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("archive");
	TCase *t = tcase_create("archive");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, round_trip, 0, 4);
	tcase_add_test(t, empty_context);
	tcase_add_test(t, sums_are_made);
	tcase_add_test(t, whose_it_is);
	tcase_add_test(t, altered_or_cut);
	tcase_add_test(t, made_up);
	tcase_add_test(t, the_version_before);
	tcase_add_test(t, descriptions_without_end);
	tcase_add_test(t, ids_mean_nothing);
	tcase_add_test(t, descriptions_that_lead_nowhere);
	tcase_add_test(t, while_it_is_written);
	tcase_add_test(t, errors_while_writing);
	tcase_add_test(t, a_full_pool);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
