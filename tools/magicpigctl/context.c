#include "context.h"
#include "policy.h"

#include <stdio.h>
#include <string.h>

#define PAGE 160 // what the daemon sends at once

void context_json(struct json *json, const struct mpig_context_info *info)
{
	json_string(json, "name", info->name);
	json_uint(json, "id", info->id);
	json_uint(json, "uid", info->uid);
	json_uint(json, "gid", info->gid);
	char mode[16];
	snprintf(mode, sizeof(mode), "%04o", info->mode);
	json_string(json, "mode", mode);
	json_hex(json, "fingerprint", info->fingerprint, sizeof(info->fingerprint));
	json_uint(json, "committed", info->committed);
	json_uint(json, "indexed", info->indexed);
	json_uint(json, "rows_bytes", info->rows_bytes);
	json_uint(json, "index_bytes", info->index_bytes);
	json_uint(json, "metadata_bytes", info->metadata_bytes);
	json_uint(json, "shared_bytes", info->shared_bytes);
	json_uint(json, "created_ns", info->created_ns);
	json_uint(json, "used_ns", info->used_ns);
	json_uint(json, "parent_id", info->parent_id);
	json_uint(json, "fork_tokens", info->fork_tokens);
	json_uint(json, "seed", info->seed);
	json_uint(json, "layer_count", info->layer_count);
	json_uint(json, "global_layers", info->global_layers);
	json_uint(json, "segments", info->segments);
	json_uint(json, "signature_version", info->signature_version);
	json_uint(json, "readers", info->readers);
	json_uint(json, "writer_pid", info->writer_pid);
	json_bool(json, "quarantined", info->flags & MPIG_CONTEXT_QUARANTINED);
	json_bool(json, "saved", info->flags & MPIG_CONTEXT_SAVED);
	json_bool(json, "pinned", info->flags & MPIG_CONTEXT_PINNED);
	json_string(json, "profile",
	            info->profile == MPIG_PROFILE_OWNER    ? "owner"
	            : info->profile == MPIG_PROFILE_COMMON ? "common"
	                                                   : "none");
	json_bool(json, "recorded", info->flags & MPIG_CONTEXT_RECORDED);
	struct policy policy = policy_of(info);
	policy_json(json, &policy);
}

int context_each(mpig_client *client, int (*each)(void *argument, const struct mpig_context_info *info), void *argument)
{
	struct mpig_context_info page[PAGE];
	uint64_t cursor = 0;
	for (;;) {
		for (size_t i = 0; i < PAGE; i++)
			page[i] = (struct mpig_context_info)MPIG_INIT(page[i]);
		int count = mpig_context_list(client, &cursor, page, PAGE), status = 0;
		for (int i = 0; i < count && !status; i++)
			status = each(argument, &page[i]);
		if (count <= 0 || status)
			return status ? status : count;
	}
}

int saved_each(mpig_client *client, int (*each)(void *argument, const struct mpig_saved_info *info), void *argument)
{
	struct mpig_saved_info page[PAGE];
	char after[sizeof(page[0].name)] = "";
	for (;;) {
		for (size_t i = 0; i < PAGE; i++)
			page[i] = (struct mpig_saved_info)MPIG_INIT(page[i]);
		int count = mpig_saved_list(client, after, page, PAGE), status = 0;
		for (int i = 0; i < count && !status; i++)
			status = each(argument, &page[i]);
		if (count <= 0 || status)
			return status ? status : count;
		memcpy(after, page[count - 1].name, sizeof(after));
	}
}
