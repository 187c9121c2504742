#include "disk.h"

#include <stdio.h>
#include <unistd.h>

#include "batch.h"
#include "context.h"
#include "text.h"

struct run {
	struct batch batch;
	const struct disk_command *command;
	struct disk_bar bar;
};

void disk_draw(void *argument, uint64_t done, uint64_t total)
{
	struct disk_bar *bar = argument;
	char a[TEXT_SHORT], b[TEXT_SHORT];
	if (!bar->drawn || !total || (done < total && done - bar->last < total / 200 && done > bar->last))
		return;
	bar->last = done;
	fputc('\r', stderr);
	text_bar(stderr, (double)done / (double)total, 40);
	fprintf(stderr, " %s of %s ", text_bytes(a, done), text_bytes(b, total));
}

void disk_draw_end(const struct disk_bar *bar)
{
	if (bar->drawn)
		fputs("\r\033[K", stderr);
}

static void report(struct run *r, const char *name, const struct mpig_disk_result *v)
{
	char shown[256], tokens[TEXT_SHORT], bytes[TEXT_SHORT], moved[TEXT_SHORT];
	if (!ctl_globals.json) {
		printf("%s: %s, %s tokens, %s, %s %s\n", text_printable(shown, sizeof(shown), name), r->command->past,
		       text_count(tokens, v->tokens), text_bytes(bytes, v->bytes), text_bytes(moved, v->moved),
		       r->command->moved);
		return;
	}
	json_object(&r->batch.json, NULL);
	json_string(&r->batch.json, "name", name);
	json_uint(&r->batch.json, "tokens", v->tokens);
	json_uint(&r->batch.json, "bytes", v->bytes);
	json_uint(&r->batch.json, "moved", v->moved);
	json_uint(&r->batch.json, "segments", v->segments);
	json_uint(&r->batch.json, "shared", v->shared);
	json_object_end(&r->batch.json);
}

// all: one that is gone, or not the caller's to save, is no failure.
static void one(struct run *r, const char *name, bool all)
{
	struct mpig_disk_options options = MPIG_INIT(options);
	struct mpig_disk_result result = MPIG_INIT(result);
	options.progress = disk_draw;
	options.argument = &r->bar;
	int status = r->command->work(r->batch.client, name, &options, &result);
	disk_draw_end(&r->bar);
	if (status == MPIG_OK) {
		report(r, name, &result);
		return;
	}
	if (!all || (status != MPIG_ENOENT && status != MPIG_EACCES && status != MPIG_EEXIST))
		batch_note(&r->batch, name, status);
}

static int in_memory(void *run, const struct mpig_context_info *info)
{
	one(run, info->name, true);
	return 0;
}

static int on_disk(void *run, const struct mpig_saved_info *info)
{
	one(run, info->name, true);
	return 0;
}

int disk_run(const struct ctl_command *self, const struct disk_command *command, int argc, char **argv)
{
	static const struct option options[] = {CTL_GLOBAL_OPTIONS, {"all", no_argument, NULL, 'a'}, {NULL, 0, NULL, 0}};
	struct run r = {.command = command, .bar = {.drawn = isatty(STDERR_FILENO)}};
	bool all = false;
	while (ctl_option(self, argc, argv, "ha", options) != -1)
		all = true;
	if (optind == argc && command->all_by_default)
		all = true;
	if (all == (optind < argc))
		return ctl_usage(self, "give names, or --all");
	int code = batch_begin(&r.batch, self);
	if (code)
		return code;
	mpig_client *client = r.batch.client;
	if (all)
		batch_note(&r.batch, NULL,
		           command->from_memory ? context_each(client, in_memory, &r) : saved_each(client, on_disk, &r));
	for (int i = optind; i < argc; i++)
		one(&r, argv[i], false);
	return batch_end(&r.batch);
}
