// magicpigctl show: one context in full, its layers grouped where they are equal, or its KV heads one by one.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "batch.h"
#include "context.h"
#include "policy.h"
#include "proposal.h"
#include "text.h"

#define MAX_LAYERS 512

enum { OPTION_HEADS = CTL_OPTION_OWN };

static const char *kind_name(int kind)
{
	static const char *const names[] = {"global", "sliding", "chunked"};
	return kind >= 0 && kind <= MPIG_LAYER_CHUNKED ? names[kind] : "unknown";
}

static const char *dtype_name(int dtype)
{
	static const char *const names[] = {"f32", "bf16", "f16", "int8"};
	return dtype >= 0 && dtype <= MPIG_I8 ? names[dtype] : "unknown";
}

static bool layers_equal(const struct mpig_layer *a, const struct mpig_layer *b)
{
	return a->kind == b->kind && a->row_dtype == b->row_dtype && a->query_heads == b->query_heads &&
	       a->kv_heads == b->kv_heads && a->d_k == b->d_k && a->d_v == b->d_v && a->scale == b->scale &&
	       a->softcap == b->softcap && a->alibi_slope_base == b->alibi_slope_base &&
	       a->default_proposal == b->default_proposal && a->default_budget == b->default_budget &&
	       a->signature_bits == b->signature_bits && a->paper_k == b->paper_k && a->paper_l == b->paper_l &&
	       a->window == b->window && a->table_hash == b->table_hash && a->table_balance == b->table_balance &&
	       a->signature_bytes == b->signature_bytes;
}

// Whether an earlier layer is equal, so that this one is in that one's group.
static bool grouped_before(const struct mpig_layer *layers, int layer)
{
	for (int i = 0; i < layer; i++)
		if (layers_equal(&layers[i], &layers[layer]))
			return true;
	return false;
}

// "0-2, 4-8:" for the group that begins with layer `first`.
static void print_numbers(const struct mpig_layer *layers, int first, int count)
{
	const char *separator = "    ";
	for (int i = first, end; i < count; i = end) {
		for (end = i + 1; end < count && layers_equal(&layers[i], &layers[end]);)
			end++;
		if (!layers_equal(&layers[first], &layers[i]))
			continue;
		printf("%s%d", separator, i);
		if (end - i > 1)
			printf("-%d", end - 1);
		separator = ", ";
	}
	fputs(": ", stdout);
}

static const char *text_bits(char text[TEXT_SHORT], int bits)
{
	snprintf(text, TEXT_SHORT, "%d", bits);
	return bits == MPIG_BITS_AUTO ? "auto" : text;
}

static void json_bits(struct json *json, int bits)
{
	if (bits == MPIG_BITS_AUTO)
		json_string(json, "signature_bits", "auto");
	else
		json_int(json, "signature_bits", bits);
}

static void print_layer(const struct mpig_layer *l)
{
	printf("%s, %d/%d heads, d %d", kind_name(l->kind), l->query_heads, l->kv_heads, l->d_k);
	if (l->d_v && l->d_v != l->d_k)
		printf("/%d", l->d_v);
	if (l->kind != MPIG_LAYER_GLOBAL) {
		if (l->window)
			printf(", window %d", l->window);
		puts(", no rows here");
		return;
	}
	printf(", %s", dtype_name(l->row_dtype));
	char bits[TEXT_SHORT];
	if (l->signature_bits)
		printf(", signature b=%s", text_bits(bits, l->signature_bits));
	if (l->signature_bytes)
		printf(" (at most %d bytes a row)", l->signature_bytes);
	if (l->paper_l)
		printf(", %s (%d,%d)%s", l->table_hash == MPIG_HASH_CROSSPOLYTOPE ? "cross-polytope" : "paper", l->paper_k,
		       l->paper_l, l->table_balance ? " balanced" : "");
	if (l->default_proposal)
		printf(", default %s", proposal_name(l->default_proposal));
	if (l->default_budget > 0)
		printf(" at %.3g %%", (double)l->default_budget * 100);
	if (l->softcap > 0)
		printf(", soft cap %g", (double)l->softcap);
	if (l->alibi_slope_base > 0)
		printf(", ALiBi %g", (double)l->alibi_slope_base);
	putchar('\n');
}

static void group_json(struct json *json, const struct mpig_layer *layers, int first, int count)
{
	const struct mpig_layer *l = &layers[first];
	json_object(json, NULL);
	json_array(json, "numbers");
	for (int i = first; i < count; i++)
		if (layers_equal(l, &layers[i]))
			json_int(json, NULL, i);
	json_array_end(json);
	json_string(json, "kind", kind_name(l->kind));
	json_string(json, "row_dtype", dtype_name(l->row_dtype));
	json_int(json, "query_heads", l->query_heads);
	json_int(json, "kv_heads", l->kv_heads);
	json_int(json, "d_k", l->d_k);
	json_int(json, "d_v", l->d_v);
	json_float(json, "scale", l->scale);
	json_float(json, "softcap", l->softcap);
	json_float(json, "alibi_slope_base", l->alibi_slope_base);
	json_string(json, "default_proposal", proposal_name(l->default_proposal));
	json_float(json, "default_budget", l->default_budget);
	json_bits(json, l->signature_bits);
	json_int(json, "signature_bytes", l->signature_bytes);
	json_int(json, "paper_k", l->paper_k);
	json_int(json, "paper_l", l->paper_l);
	json_string(json, "table_hash", l->table_hash == MPIG_HASH_CROSSPOLYTOPE ? "crosspolytope" : "simhash");
	json_int(json, "table_balance", l->table_balance);
	json_int(json, "window", l->window);
	json_object_end(json);
}

static void print_fingerprint(const uint8_t *fingerprint, size_t bytes)
{
	while (bytes && fingerprint[bytes - 1] == 0)
		bytes--;
	printf("  fingerprint   %s", bytes ? "" : "none");
	for (size_t i = 0; i < bytes; i++)
		printf("%02x", fingerprint[i]);
	putchar('\n');
}

static void print_times(const struct mpig_context_info *info)
{
	struct timespec now;
	char date[TEXT_SHORT], created[TEXT_SHORT], used[TEXT_SHORT];
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	printf("  created       %s (%s), used %s\n", text_utc(date, info->created_ns),
	       text_ago(created, info->created_ns, now_ns), text_ago(used, info->used_ns, now_ns));
}

static void print_sizes(const struct mpig_context_info *info)
{
	char rows[TEXT_SHORT], index[TEXT_SHORT], metadata[TEXT_SHORT], shared[TEXT_SHORT];
	printf("  memory        rows %s, index %s, metadata %s", text_bytes(rows, info->rows_bytes),
	       text_bytes(index, info->index_bytes), text_bytes(metadata, info->metadata_bytes));
	if (info->shared_bytes)
		printf(", of these shared %s", text_bytes(shared, info->shared_bytes));
	putchar('\n');
}

static void print_context(const struct mpig_context_info *info, const struct mpig_layer *layers, int count)
{
	char name[sizeof(info->name)], owner[TEXT_SHORT], group[TEXT_SHORT], tokens[TEXT_SHORT], indexed[TEXT_SHORT], kept[256];
	printf("%s%s%s\n", text_on(TEXT_BOLD), text_printable(name, sizeof(name), info->name), text_off());
	printf("  tokens        %s committed, %s indexed, in %u segment%s\n", text_count(tokens, info->committed),
	       text_count(indexed, info->indexed), info->segments, info->segments == 1 ? "" : "s");
	print_sizes(info);
	if (info->flags & MPIG_CONTEXT_SAVED)
		puts("  disk          all of it is saved");
	struct policy policy = policy_of(info);
	if (*policy_text(kept, sizeof(kept), &policy) != '-')
		printf("  kept          %s\n", kept);
	printf("  owner         %s:%s, mode %04o\n", text_uid(owner, info->uid), text_gid(group, info->gid), info->mode);
	print_times(info);
	printf("  open          by %u", info->readers);
	if (info->writer_pid)
		printf(", writer lease held by pid %u", info->writer_pid);
	if (info->flags & MPIG_CONTEXT_RECORDED)
		printf("\n  recorded      what is asked of it is being recorded");
	printf("\n  id            %" PRIu64, info->id);
	if (info->parent_id)
		printf(", forked from id %" PRIu64 " at token %s", info->parent_id, text_count(tokens, info->fork_tokens));
	putchar('\n');
	print_fingerprint(info->fingerprint, sizeof(info->fingerprint));
	if (info->profile)
		printf("  answered      by %s profile (magicpigctl tune --show)\n",
		       info->profile == MPIG_PROFILE_OWNER ? "its owner's" : "all users'");
	printf("  layers        %u, of them %u global\n", info->layer_count, info->global_layers);
	for (int i = 0; i < count; i++) {
		if (grouped_before(layers, i))
			continue;
		print_numbers(layers, i, count);
		print_layer(&layers[i]);
	}
}

static void print_json(struct json *json, const struct mpig_context_info *info, const struct mpig_layer *layers, int count)
{
	json_object(json, NULL);
	context_json(json, info);
	json_array(json, "layers");
	for (int i = 0; i < count; i++)
		if (!grouped_before(layers, i))
			group_json(json, layers, i, count);
	json_array_end(json);
}

// ---- heads -----------------------------------------------------------------------------------------------------------

static void heads_json(struct json *json, const struct mpig_head *heads, int count)
{
	json_array(json, "heads");
	for (int i = 0; i < count; i++) {
		const struct mpig_head *h = &heads[i];
		json_object(json, NULL);
		json_int(json, "layer", h->layer);
		json_int(json, "kv_head", h->kv_head);
		json_bits(json, h->signature_bits);
		json_uint(json, "signature_version", h->signature_version);
		json_uint(json, "samples", h->samples);
		json_uint(json, "rows", h->rows);
		json_float(json, "noise", h->noise);
		json_float(json, "n_eff", h->n_eff);
		json_float(json, "mass_1", h->mass_1);
		json_float(json, "mass_5", h->mass_5);
		json_float(json, "drawn", h->drawn);
		json_uint(json, "best_bits", h->best_bits);
		json_object_end(json);
	}
	json_array_end(json);
}

static void print_heads(const struct mpig_head *heads, int count)
{
	static const char *const titles[] = {">layer", ">KV head", ">bits",   ">version", ">samples", ">rows",
	                                     ">noise", ">n_eff",   ">in 1 %", ">in 5 %",  ">drawn",   ">best"};
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	for (int i = 0; i < count; i++) {
		const struct mpig_head *h = &heads[i];
		char text[TEXT_SHORT];
		table_format(table, "%d", h->layer);
		table_format(table, "%d", h->kv_head);
		table_cell(table, text_bits(text, h->signature_bits));
		table_format(table, "%u", h->signature_version);
		table_cell(table, text_count(text, h->samples));
		if (!h->samples) {
			for (int dash = 0; dash < 7; dash++)
				table_cell(table, "-");
			continue;
		}
		table_cell(table, text_count(text, h->rows));
		table_format(table, "%.3f", (double)h->noise);
		table_format(table, "%.0f", (double)h->n_eff);
		table_cell(table, text_share(text, (double)h->mass_1));
		table_cell(table, text_share(text, (double)h->mass_5));
		table_format(table, "%.0f", (double)h->drawn);
		table_format(table, "%u", h->best_bits);
	}
	table_print(table, stdout);
	table_destroy(table);
}

// All heads of a context, to be freed; the number of them or a negative status.
static int get_heads(mpig_client *client, const char *name, struct mpig_head **heads)
{
	int count = mpig_context_heads(client, name, NULL, 0);
	if (count < 0)
		return count;
	*heads = calloc((size_t)count + 1, sizeof(**heads));
	if (!*heads)
		return MPIG_ENOMEM;
	(*heads)->size = sizeof(**heads);
	int now = mpig_context_heads(client, name, *heads, count);
	return now < count ? now : count;
}

static bool with_heads;

static int show(mpig_client *client, const char *name, struct json *json, bool again)
{
	static struct mpig_layer layers[MAX_LAYERS];
	struct mpig_context_info info = MPIG_INIT(info);
	int status = mpig_context_info(client, name, &info);
	if (status)
		return status;
	int count = mpig_context_layers(client, name, layers, MAX_LAYERS);
	if (count < 0)
		return count;
	count = count > MAX_LAYERS ? MAX_LAYERS : count;
	struct mpig_head *heads = NULL;
	int head_count = with_heads ? get_heads(client, name, &heads) : 0;
	if (head_count < 0) {
		free(heads);
		return head_count;
	}
	if (ctl_globals.json) {
		print_json(json, &info, layers, count);
		if (with_heads)
			heads_json(json, heads, head_count);
		json_object_end(json);
	} else {
		if (again)
			putchar('\n');
		print_context(&info, layers, count);
		if (with_heads)
			print_heads(heads, head_count);
	}
	free(heads);
	return MPIG_OK;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {
		CTL_GLOBAL_OPTIONS, {"heads", no_argument, NULL, OPTION_HEADS}, {NULL, 0, NULL, 0}};
	while (ctl_option(self, argc, argv, "h", options) != -1)
		with_heads = true; // its only option
	if (optind == argc)
		return ctl_usage(self, "which context? Give one name or more (`magicpigctl ls` shows them)");

	struct batch batch;
	int code = batch_begin(&batch, self);
	if (code)
		return code;
	for (int i = optind; i < argc; i++)
		batch_note(&batch, argv[i], show(batch.client, argv[i], &batch.json, i > optind));
	return batch_end(&batch);
}

const struct ctl_command ctl_show = {
	.name = "show",
	.arguments = "NAME...",
	.summary = "Tells all about contexts: sizes, owner, index, layers",
	.options = "      --heads              also a line for every KV head: bits, logit noise, how concentrated its mass is\n",
	.run = run,
};
