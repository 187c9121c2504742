#include "trace_file.h"
#include "shm/zero.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define HEADER_MAX (sizeof(struct mpig_trace_header) + MPIG_MAX_LAYERS * sizeof(struct mpig_wire_layer))

struct trace_reader {
	FILE *file;
	const char *path;
	off_t first;     // where the first query is in `file`; of one that is kept
	uint64_t at;     // bytes read
	uint8_t *header; // with the layers
	uint8_t *record; // the last
	uint64_t room;
	uint64_t records, next_number;
	struct mpig_trace_end end;
	bool ended;
};

static uint64_t checksum(uint8_t *bytes, uint64_t count, uint64_t *field)
{
	uint64_t was = *field;
	*field = 0;
	uint64_t sum = XXH3_64bits(bytes, count);
	*field = was;
	return sum;
}

static bool room_for(uint8_t **buffer, uint64_t *room, uint64_t bytes)
{
	if (bytes <= *room)
		return true;
	uint8_t *more = aligned_alloc(64, (bytes + 63) / 64 * 64);
	if (!more)
		return false;
	if (*room)
		memcpy(more, *buffer, *room);
	free(*buffer);
	*buffer = more;
	*room = bytes;
	return true;
}

// ---- reading ---------------------------------------------------------------------------------------------------------
__attribute__((format(printf, 3, 4))) static int wrong(const struct trace_reader *r, char *why, const char *format, ...)
{
	char text[160];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	snprintf(why, TRACE_WHY_BYTES, "%.300s: at byte %" PRIu64 ": %s", r->path, r->at, text);
	return -1;
}

// 1: all of it; 0: the file ended before; -1: an error.
static int take(struct trace_reader *r, void *into, uint64_t bytes, char *why)
{
	size_t got = fread(into, 1, bytes, r->file);
	if (got == bytes)
		return 1;
	if (ferror(r->file))
		return wrong(r, why, "%s", strerror(errno));
	return 0;
}

static int check_layers(const struct trace_reader *r, char *why)
{
	const struct mpig_wire_layer *l = trace_layers(r);
	for (uint32_t i = 0; i < trace_header(r)->layer_count; i++) {
		bool used = l[i].kind == MPIG_LAYER_GLOBAL;
		if (l[i].kind >= MPIG_LAYER_KIND_COUNT || l[i].query_heads > MPIG_MAX_HEADS || l[i].kv_heads > MPIG_MAX_HEADS ||
		    l[i].d_k > MPIG_MAX_HEAD_DIM || l[i].d_v > MPIG_MAX_HEAD_DIM ||
		    (used && (!l[i].query_heads || !l[i].kv_heads || !l[i].d_k || !l[i].d_v || l[i].query_heads % l[i].kv_heads)))
			return wrong(r, why, "layer %" PRIu32 " has a shape that no context has", i);
	}
	return 0;
}

static int read_header(struct trace_reader *r, char *why)
{
	static const char cut[] = "it ends within its header";
	struct mpig_trace_header *h = (void *)r->header;
	int got = take(r, h, sizeof(*h), why);
	if (got < 0)
		return -1;
	if (h->magic != MPIG_TRACE_MAGIC)
		return wrong(r, why, "this is no file of recorded queries");
	if (got == 0)
		return wrong(r, why, "%s", cut);
	if (h->version != MPIG_TRACE_VERSION)
		return wrong(r, why, "it has format version %" PRIu32 ", this program reads version %u", h->version,
		             MPIG_TRACE_VERSION);
	if (h->layer_count < 1 || h->layer_count > MPIG_MAX_LAYERS ||
	    h->header_bytes != sizeof(*h) + h->layer_count * sizeof(struct mpig_wire_layer))
		return wrong(r, why, "its header is damaged");
	got = take(r, h + 1, h->header_bytes - sizeof(*h), why);
	if (got <= 0)
		return got < 0 ? -1 : wrong(r, why, "%s", cut);
	if (checksum(r->header, h->header_bytes, &h->checksum) != h->checksum || !memchr(h->name, 0, sizeof(h->name)) ||
	    !memchr(h->release, 0, sizeof(h->release)) || !mpig_all_zero(h->reserved, sizeof(h->reserved)))
		return wrong(r, why, "its header is damaged");
	if (check_layers(r, why) != 0)
		return -1;
	r->at = h->header_bytes;
	return 0;
}

int trace_open(const char *path, struct trace_reader **out, char *why)
{
	struct trace_reader *r = calloc(1, sizeof(*r));
	bool standard = strcmp(path, "-") == 0;
	if (!r || !(r->header = calloc(1, HEADER_MAX))) {
		snprintf(why, TRACE_WHY_BYTES, "%.300s: no memory", path);
		goto free_reader;
	}
	r->path = standard ? "standard input" : path;
	r->file = standard ? stdin : fopen(path, "rbe");
	if (!r->file) {
		snprintf(why, TRACE_WHY_BYTES, "%.300s: %s", path, strerror(errno));
		goto free_reader;
	}
	if (read_header(r, why) != 0)
		goto free_reader;
	*out = r;
	return 0;

free_reader:
	trace_close(r);
	return -1;
}

static void close_file(struct trace_reader *r)
{
	if (r->file && r->file != stdin)
		fclose(r->file);
	r->file = NULL;
}

// The rest of a pipe.
static int copy_rest(struct trace_reader *r, FILE *copy, char *why)
{
	uint8_t bytes[16384];
	for (size_t n; (n = fread(bytes, 1, sizeof(bytes), r->file)) > 0;)
		if (fwrite(bytes, 1, n, copy) != n)
			return wrong(r, why, "no copy of it in " P_tmpdir ": %s", strerror(errno));
	if (ferror(r->file))
		return wrong(r, why, "%s", strerror(errno));
	if (fflush(copy) != 0)
		return wrong(r, why, "no copy of it in " P_tmpdir ": %s", strerror(errno));
	return 0;
}

int trace_keep(struct trace_reader *r, char *why)
{
	r->first = ftello(r->file);
	if (r->first >= 0)
		return 0;
	FILE *copy = tmpfile();
	if (!copy)
		return wrong(r, why, "no copy of it in " P_tmpdir ": %s", strerror(errno));
	if (copy_rest(r, copy, why) != 0) {
		fclose(copy);
		return -1;
	}
	close_file(r);
	r->file = copy;
	r->first = 0;
	return trace_rewind(r, why);
}

int trace_rewind(struct trace_reader *r, char *why)
{
	r->at = trace_header(r)->header_bytes;
	r->records = r->next_number = 0;
	r->ended = false;
	return fseeko(r->file, r->first, SEEK_SET) == 0 ? 0 : wrong(r, why, "%s", strerror(errno));
}

const struct mpig_trace_header *trace_header(const struct trace_reader *r)
{
	return (const void *)r->header;
}

const struct mpig_wire_layer *trace_layers(const struct trace_reader *r)
{
	return (const void *)(r->header + sizeof(struct mpig_trace_header));
}

const struct mpig_trace_end *trace_end(const struct trace_reader *r)
{
	return r->ended ? &r->end : NULL;
}

static int take_end(struct trace_reader *r, char *why)
{
	memcpy(&r->end, r->record, sizeof(r->end));
	if (r->end.records != r->records || r->end.file_bytes != r->at + sizeof(r->end) || r->end.answers < r->next_number ||
	    r->end.reserved0 || !mpig_all_zero(r->end.reserved, sizeof(r->end.reserved)))
		return wrong(r, why, "its last record does not fit what came before");
	uint8_t more;
	if (take(r, &more, 1, why) != 0)
		return wrong(r, why, "something follows its last record");
	r->ended = true;
	return 0;
}

// Whether the record's length is what its fields say: before so much is read, since a length that is wrong would end at the end of the file as
// one that was cut short does.
static int check_query(const struct trace_reader *r, struct trace_query *query, struct mpig_trace_layout *layout, char *why)
{
	const struct mpig_trace_record *record = (const void *)r->record;
	const struct mpig_trace_header *h = trace_header(r);
	const struct mpig_wire_layer *layer = record->layer < h->layer_count ? &trace_layers(r)[record->layer] : NULL;
	if (!layer || layer->kind != MPIG_LAYER_GLOBAL)
		return wrong(r, why, "a query of layer %u, which has none", record->layer);
	query->shape = (struct mpig_layer_shape){
		.query_heads = layer->query_heads, .kv_heads = layer->kv_heads, .d_k = layer->d_k, .d_v = layer->d_v};
	if (record->tokens < 1 || record->tokens > MPIG_MAX_QUERY_TOKENS ||
	    (record->dtype != MPIG_F32 && record->dtype != MPIG_BF16) || record->asked_dtype >= MPIG_I8 ||
	    record->present & ~(uint32_t)(MPIG_HAS_WINDOW_LSE | MPIG_HAS_WINDOW_OUT | MPIG_HAS_SIGNATURE) ||
	    record->flags & ~MPIG_SQE_CAUSAL || record->proposal >= MPIG_PROPOSAL_COUNT || record->begin > record->end ||
	    record->end > MPIG_MAX_TOKENS || record->number < r->next_number || record->reserved0 ||
	    !mpig_all_zero(record->reserved, sizeof(record->reserved)))
		return wrong(r, why, "a query with a field that makes no sense");
	*layout = mpig_trace_layout(&query->shape, record->tokens, record->dtype, record->present);
	if (layout->bytes != record->head.bytes)
		return wrong(r, why, "a query of %" PRIu64 " bytes; its layer's have %" PRIu64, record->head.bytes,
		             layout->bytes);
	return 0;
}

static void take_query(struct trace_reader *r, struct trace_query *query, const struct mpig_trace_layout *l)
{
	const struct mpig_trace_record *record = (const void *)r->record;
	query->record = record;
	query->q = r->record + l->q;
	query->window_lse = l->window_lse ? (const void *)(r->record + l->window_lse) : NULL;
	query->window_out = l->window_out ? (const void *)(r->record + l->window_out) : NULL;
	r->next_number = record->number + 1;
	r->records++;
	r->at += record->head.bytes;
}

int trace_next(struct trace_reader *r, struct trace_query *out, char *why)
{
	struct mpig_trace_head head;
	struct mpig_trace_layout layout = {0};
	struct trace_query query = {0};
	if (r->ended)
		return 0;
	int got = take(r, &head, sizeof(head), why);
	if (got <= 0)
		return got; // cut short between two records, or within a head
	bool end = head.kind == MPIG_TRACE_END;
	uint64_t first =
		end ? sizeof(struct mpig_trace_end) : MPIG_TRACE_RECORD_BYTES; // what there is at least, and is read first
	if (head.magic != MPIG_TRACE_RECORD_MAGIC || (head.kind != MPIG_TRACE_QUERY && !end) || head.bytes % MPIG_PAYLOAD_ALIGN ||
	    head.bytes > MPIG_TRACE_RECORD_MAX || (end ? head.bytes != first : head.bytes < first))
		return wrong(r, why, "no record begins here: the file is damaged");
	if (!room_for(&r->record, &r->room, first))
		return wrong(r, why, "no memory for a record");
	memcpy(r->record, &head, sizeof(head));
	got = take(r, r->record + sizeof(head), first - sizeof(head), why);
	if (got > 0 && !end && check_query(r, &query, &layout, why) != 0)
		return -1;
	if (!room_for(&r->record, &r->room, head.bytes))
		return wrong(r, why, "no memory for a record of %" PRIu64 " bytes", head.bytes);
	if (got > 0 && head.bytes > first)
		got = take(r, r->record + first, head.bytes - first, why);
	if (got <= 0)
		return got;
	struct mpig_trace_head *here = (void *)r->record;
	if (checksum(r->record, head.bytes, &here->checksum) != head.checksum)
		return wrong(r, why, "a record does not have its checksum: the file is damaged");
	if (end)
		return take_end(r, why);
	take_query(r, &query, &layout);
	*out = query;
	return 1;
}

void trace_close(struct trace_reader *r)
{
	if (!r)
		return;
	close_file(r);
	free(r->record);
	free(r->header);
	free(r);
}

bool trace_attend(const struct trace_query *query, struct mpig_attend *attend)
{
	const struct mpig_trace_record *r = query->record;
	*attend = (struct mpig_attend){
		.size = sizeof(*attend),
		MPIG_TRACE_ASKED(r),
		.q = query->q,
		.window_lse = query->window_lse,
		.window_out = query->window_out,
	};
	return r->end > r->begin;
}

// ---- writing ---------------------------------------------------------------------------------------------------------
static int put(struct trace_writer *w, uint64_t bytes)
{
	if (fwrite(w->buffer, 1, bytes, w->file) != bytes)
		return -1;
	w->bytes += bytes;
	return 0;
}

static int need(struct trace_writer *w, uint64_t bytes)
{
	if (!room_for(&w->buffer, &w->room, bytes)) {
		errno = ENOMEM;
		return -1;
	}
	memset(w->buffer, 0, bytes);
	return 0;
}

int trace_write_header(struct trace_writer *w, const struct mpig_trace_header *header, const struct mpig_wire_layer *layers)
{
	uint32_t bytes = (uint32_t)(sizeof(*header) + header->layer_count * sizeof(*layers));
	if (need(w, bytes) != 0)
		return -1;
	struct mpig_trace_header *h = (void *)w->buffer;
	*h = *header;
	h->magic = MPIG_TRACE_MAGIC;
	h->version = MPIG_TRACE_VERSION;
	h->header_bytes = bytes;
	memcpy(h + 1, layers, header->layer_count * sizeof(*layers));
	h->checksum = checksum(w->buffer, bytes, &h->checksum);
	return put(w, bytes);
}

static bool is_bf16(const float *x, size_t n)
{
	uint32_t lost = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		memcpy(&bits, &x[i], sizeof(bits));
		lost |= bits & 0xffff;
	}
	return !lost;
}

static void to_bf16(const float *x, size_t n, uint8_t *out)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;
		memcpy(&bits, &x[i], sizeof(bits));
		uint16_t high = (uint16_t)(bits >> 16);
		memcpy(out + i * sizeof(high), &high, sizeof(high));
	}
}

int trace_write(struct trace_writer *w, const struct mpig_trace_record *record, const struct mpig_layer_shape *s, const float *q,
                const float *window_lse, const float *window_out)
{
	size_t heads = (size_t)record->tokens * s->query_heads, n = heads * s->d_k;
	uint8_t dtype = record->asked_dtype == MPIG_BF16 && is_bf16(q, n) ? MPIG_BF16 : MPIG_F32;
	struct mpig_trace_layout l = mpig_trace_layout(s, record->tokens, dtype, record->present);
	if (need(w, l.bytes) != 0)
		return -1;
	struct mpig_trace_record *r = (void *)w->buffer;
	*r = *record;
	r->dtype = dtype;
	r->head = (struct mpig_trace_head){.magic = MPIG_TRACE_RECORD_MAGIC, .kind = MPIG_TRACE_QUERY, .bytes = l.bytes};
	if (dtype == MPIG_BF16)
		to_bf16(q, n, w->buffer + l.q);
	else
		memcpy(w->buffer + l.q, q, n * sizeof(*q));
	if (l.window_lse)
		memcpy(w->buffer + l.window_lse, window_lse, heads * sizeof(*window_lse));
	if (l.window_out)
		memcpy(w->buffer + l.window_out, window_out, heads * s->d_v * sizeof(*window_out));
	r->head.checksum = checksum(w->buffer, l.bytes, &r->head.checksum);
	w->records++;
	return put(w, l.bytes);
}

int trace_write_end(struct trace_writer *w, const struct mpig_trace_end *end)
{
	if (need(w, sizeof(*end)) != 0)
		return -1;
	struct mpig_trace_end *e = (void *)w->buffer;
	*e = *end;
	e->head = (struct mpig_trace_head){.magic = MPIG_TRACE_RECORD_MAGIC, .kind = MPIG_TRACE_END, .bytes = sizeof(*e)};
	e->records = w->records;
	e->file_bytes = w->bytes + sizeof(*e);
	e->head.checksum = checksum(w->buffer, sizeof(*e), &e->head.checksum);
	return put(w, sizeof(*e));
}

void trace_writer_free(struct trace_writer *w)
{
	free(w->buffer);
	*w = (struct trace_writer){0};
}
