// magicpigctl evict: takes contexts out of memory that are on disk and that nobody has open.
#include <stdio.h>

#include "batch.h"
#include "context.h"
#include "text.h"

struct run {
	struct batch batch;
	bool dry;
};

static void report(struct run *r, const struct mpig_context_info *info)
{
	char shown[256], bytes[TEXT_SHORT];
	uint64_t held = info->rows_bytes + info->index_bytes + info->metadata_bytes - info->shared_bytes;
	if (!ctl_globals.json) {
		printf("%s: %s, %s of its own\n", text_printable(shown, sizeof(shown), info->name),
		       r->dry ? "would leave memory" : "left memory", text_bytes(bytes, held));
		return;
	}
	json_object(&r->batch.json, NULL);
	json_string(&r->batch.json, "name", info->name);
	json_uint(&r->batch.json, "bytes", held);
	json_bool(&r->batch.json, "evicted", !r->dry);
	json_object_end(&r->batch.json);
}

static bool may(const struct mpig_context_info *info)
{
	return (info->flags & (MPIG_CONTEXT_SAVED | MPIG_CONTEXT_PINNED | MPIG_CONTEXT_QUARANTINED)) == MPIG_CONTEXT_SAVED &&
	       !info->readers && !info->writer_pid;
}

static void evict(struct run *r, const struct mpig_context_info *info, bool named)
{
	if (!named && !may(info))
		return;
	int status = r->dry ? MPIG_OK : mpig_context_evict(r->batch.client, info->name);
	if (status == MPIG_OK && (!r->dry || may(info)))
		report(r, info);
	else if (named || (status != MPIG_EBUSY && status != MPIG_ENOENT && status != MPIG_EACCES))
		batch_note(&r->batch, info->name, status);
}

static void evict_named(struct run *r, const char *name)
{
	struct mpig_context_info info = MPIG_INIT(info);
	int status = mpig_context_info(r->batch.client, name, &info);
	batch_note(&r->batch, name, status);
	if (status == MPIG_OK)
		evict(r, &info, true);
}

static int evict_listed(void *run, const struct mpig_context_info *info)
{
	evict(run, info, false);
	return 0;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static const struct option options[] = {
		CTL_GLOBAL_OPTIONS, {"all", no_argument, NULL, 'a'}, {"dry-run", no_argument, NULL, 'n'}, {NULL, 0, NULL, 0}};
	struct run r = {.dry = false};
	bool all = false;
	for (int option; (option = ctl_option(self, argc, argv, "han", options)) != -1;) {
		all |= option == 'a';
		r.dry |= option == 'n';
	}
	if (r.dry && optind == argc)
		all = true;
	if (all == (optind < argc))
		return ctl_usage(self, "give names, --all or --dry-run");
	int code = batch_begin(&r.batch, self);
	if (code)
		return code;
	if (all)
		batch_note(&r.batch, NULL, context_each(r.batch.client, evict_listed, &r));
	for (int i = optind; i < argc; i++)
		evict_named(&r, argv[i]);
	return batch_end(&r.batch);
}

const struct ctl_command ctl_evict = {
	.name = "evict",
	.arguments = "NAME...|--all",
	.summary = "Takes contexts out of memory that are on disk and not open",
	.options = "  -a, --all           all that the caller may\n  -n, --dry-run       say which could leave, and how much "
		   "they hold\n",
	.run = run,
};
