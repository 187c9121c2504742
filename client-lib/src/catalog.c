// Contexts by name, whether this client has them open or not: what there is, who may use it, and removing it.
#include "internal.h"

#include <string.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)
#define LIST_END UINT64_MAX // cursor after the last page

static void info_from_wire(const struct mpig_wire_context *w, struct mpig_context_info *info)
{
	*info = (struct mpig_context_info){
		.id = w->id,
		.committed = w->committed,
		.indexed = w->indexed,
		.rows_bytes = w->rows_bytes,
		.index_bytes = w->index_bytes,
		.metadata_bytes = w->metadata_bytes,
		.shared_bytes = w->shared_bytes,
		.created_ns = w->created_ns,
		.used_ns = w->used_ns,
		.parent_id = w->parent_id,
		.fork_tokens = w->fork_tokens,
		.matched = w->matched,
		.seed = w->seed,
		.uid = w->uid,
		.gid = w->gid,
		.mode = w->mode,
		.layer_count = w->layer_count,
		.global_layers = w->global_layers,
		.segments = w->segments,
		.signature_version = w->signature_version,
		.readers = w->readers,
		.writer_pid = w->writer_pid,
		.flags = w->flags,
		.persist = (int)w->policy.persist,
		.idle_s = w->policy.idle_s,
		.ttl_s = w->policy.ttl_s,
		.ttl_erase = w->policy.flags & MPIG_POLICY_ERASE,
		.pinned_until_ns = w->policy.pinned_until_ns,
		.profile = (int)w->profile,
	};
	memcpy(info->name, w->name, sizeof(info->name));
	info->name[sizeof(info->name) - 1] = 0;
	memcpy(info->fingerprint, w->fingerprint, sizeof(info->fingerprint));
}

// A request that names a context. Lock held.
static int named_call(mpig_client *c, uint16_t op, const char *name, struct mpig_ctl_open *request, size_t reply_min)
{
	memcpy(request->name, name, strlen(name));
	return client_call(c, op, request, sizeof(*request), -1, reply_min, NULL);
}

// One that says no more than a name, and a mode.
static int name_only(mpig_client *c, uint16_t op, const char *name, unsigned mode)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	struct mpig_ctl_open request = {.mode = mode};
	pthread_mutex_lock(&c->lock);
	rc = named_call(c, op, name, &request, sizeof(struct mpig_control_header));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_drop(mpig_client *c, const char *name)
{
	return name_only(c, MPIG_CTL_DROP, name, 0);
}

int mpig_context_evict(mpig_client *c, const char *name)
{
	return name_only(c, MPIG_CTL_EVICT, name, 0);
}

static int policy_call(mpig_client *c, const char *name, uint32_t set, struct mpig_wire_policy policy)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	struct mpig_ctl_policy request = {.set = set, .policy = policy};
	memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock);
	rc = client_call(c, MPIG_CTL_POLICY, &request, sizeof(request), -1, sizeof(request), NULL);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_pin(mpig_client *c, const char *name, int pinned)
{
	return policy_call(c, name, MPIG_SET_PIN, (struct mpig_wire_policy){.pinned_until_ns = pinned ? UINT64_MAX : 0});
}

int mpig_context_pin_for(mpig_client *c, const char *name, uint64_t seconds)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t left = UINT64_MAX / NS_PER_S - (uint64_t)now.tv_sec - 1;
	if (!seconds || seconds > left)
		return client_forked(c) ? MPIG_EFORK
		                        : error_set(c, MPIG_EINVAL, "seconds = %llu: must be 1..%llu",
		                                    (unsigned long long)seconds, (unsigned long long)left);
	uint64_t until = ((uint64_t)now.tv_sec + seconds) * NS_PER_S + (uint64_t)now.tv_nsec;
	return policy_call(c, name, MPIG_SET_PIN, (struct mpig_wire_policy){.pinned_until_ns = until});
}

int mpig_context_persist(mpig_client *c, const char *name, int persist, uint32_t idle_s)
{
	return policy_call(c, name, MPIG_SET_PERSIST, (struct mpig_wire_policy){.persist = (uint32_t)persist, .idle_s = idle_s});
}

int mpig_context_ttl(mpig_client *c, const char *name, uint32_t ttl_s, int erase)
{
	return policy_call(c, name, MPIG_SET_TTL,
	                   (struct mpig_wire_policy){.ttl_s = ttl_s, .flags = erase ? MPIG_POLICY_ERASE : 0});
}

int mpig_context_chmod(mpig_client *c, const char *name, unsigned mode, uint32_t uid, uint32_t gid)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (mode & ~0666u)
		return error_set(c, MPIG_EINVAL, "mode = 0%o: only read and write bits (0666)", mode);
	struct mpig_ctl_open request = {.mode = mode, .uid = uid, .gid = gid};
	pthread_mutex_lock(&c->lock);
	rc = named_call(c, MPIG_CTL_CHMOD, name, &request, sizeof(struct mpig_control_header));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_info(mpig_client *c, const char *name, struct mpig_context_info *info)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (!info)
		return error_set(c, MPIG_EINVAL, "info is NULL");
	struct mpig_ctl_open request = {0};
	pthread_mutex_lock(&c->lock);
	rc = named_call(c, MPIG_CTL_SHOW, name, &request, sizeof(struct mpig_ctl_context_reply));
	if (rc == MPIG_OK) {
		struct mpig_context_info known;
		info_from_wire(&((const struct mpig_ctl_context_reply *)(const void *)c->reply)->context, &known);
		rc = options_return(c, "mpig_context_info", info, &known, sizeof(known));
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_layers(mpig_client *c, const char *name, struct mpig_layer *layers, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (max < 0 || (max > 0 && !layers))
		return error_set(c, MPIG_EINVAL, "max = %d: must not be negative, and layers not NULL", max);
	struct mpig_ctl_open request = {0};
	pthread_mutex_lock(&c->lock);
	rc = named_call(c, MPIG_CTL_SHOW, name, &request, sizeof(struct mpig_ctl_context_reply));
	if (rc == MPIG_OK) {
		const struct mpig_wire_layer *wire;
		uint32_t count;
		rc = reply_layers(c, &wire, &count);
		for (uint32_t i = 0; rc == MPIG_OK && i < count && i < (uint32_t)max; i++)
			layer_from_wire(&wire[i], &layers[i]);
		rc = rc ? rc : (int)count;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static void head_from_wire(const struct mpig_wire_head *w, struct mpig_head *head)
{
	*head = (struct mpig_head){
		.layer = (int)w->layer,
		.kv_head = (int)w->kv_head,
		.signature_bits = (int)w->signature_bits,
		.signature_version = w->signature_version,
		.samples = w->samples,
		.rows = w->rows,
		.noise = w->noise,
		.n_eff = w->n_eff,
		.mass_1 = w->mass_1,
		.mass_5 = w->mass_5,
		.drawn = w->drawn,
		.best_bits = w->best_bits,
	};
}

// Takes over the heads of a page, which begin at number `first`; *first is what comes after them. Returns how many there are in all.
static int take_heads(mpig_client *c, uint32_t *first, struct mpig_head *heads, uint32_t max)
{
	const struct mpig_ctl_heads *page = (const void *)c->reply;
	const struct mpig_wire_head *w = (const void *)(page + 1);
	if (page->count > MPIG_HEADS_PAGE || page->total > MPIG_MAX_LAYERS * MPIG_MAX_HEADS || page->first != *first ||
	    c->reply_bytes < sizeof(*page) + page->count * sizeof(*w) || (!page->count && *first < page->total))
		return error_set(c, MPIG_EPROTO, "%u of %u heads in %u bytes", page->count, page->total, c->reply_bytes);
	for (uint32_t i = 0; i < page->count && *first + i < max; i++) {
		struct mpig_head known;
		head_from_wire(&w[i], &known);
		int rc = options_return_at(c, "mpig_head", heads, *first + i, &known, sizeof(known));
		if (rc)
			return rc;
	}
	*first += page->count;
	return (int)page->total;
}

int mpig_context_heads(mpig_client *c, const char *name, struct mpig_head *heads, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (max < 0 || (max > 0 && !heads))
		return error_set(c, MPIG_EINVAL, "max = %d: must not be negative, and heads not NULL", max);
	uint32_t first = 0;
	do {
		struct mpig_ctl_heads request = {.first = first};
		memcpy(request.name, name, strlen(name));
		pthread_mutex_lock(&c->lock);
		rc = client_call(c, MPIG_CTL_HEADS, &request, sizeof(request), -1, sizeof(request), NULL);
		rc = rc ? rc : take_heads(c, &first, heads, (uint32_t)max);
		pthread_mutex_unlock(&c->lock);
	} while (rc > 0 && first < (uint32_t)rc && first < (uint32_t)max);
	return rc;
}

static int verify_part(mpig_client *c, const char *name, struct mpig_ctl_verify *part)
{
	struct mpig_ctl_verify request = {.segment = part->segment, .part = part->part, .sum = part->sum};
	memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock); // for one part only: other threads' calls go between
	int rc = client_call(c, MPIG_CTL_VERIFY, &request, sizeof(request), -1, sizeof(request), NULL);
	if (rc == MPIG_OK)
		memcpy(part, c->reply, sizeof(*part));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_verify(mpig_client *c, const char *name, struct mpig_verification *result)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (!result)
		return error_set(c, MPIG_EINVAL, "result is NULL");
	struct mpig_verification sum = {0};
	struct mpig_ctl_verify part = {.more = 1};
	while (part.more && rc == MPIG_OK) {
		rc = verify_part(c, name, &part);
		sum.bytes += part.bytes;
		sum.checked += part.checked;
		sum.unchecked += part.unchecked;
		sum.damaged += part.damaged;
	}
	if (rc == MPIG_OK)
		rc = options_return(c, "mpig_verification", result, &sum, sizeof(sum));
	if (rc == MPIG_OK && sum.damaged)
		rc = error_set(c, MPIG_ECORRUPT, "%u of %u parts of '%s' differ from their checksums: drop it", sum.damaged,
		               sum.checked, name);
	return rc;
}

// A page of the daemon may hold more than the caller takes; its cursor is the id after which to go on.
static int take_page(mpig_client *c, uint64_t *cursor, struct mpig_context_info *infos, uint32_t max)
{
	const struct mpig_ctl_list *page = (const void *)c->reply;
	const struct mpig_wire_context *w = (const void *)(page + 1);
	int n = page_records(c, "contexts", page->count, MPIG_LIST_PAGE, sizeof(*page), sizeof(*w), max);
	for (int i = 0; i < n; i++) {
		struct mpig_context_info known;
		info_from_wire(&w[i], &known);
		int rc = options_return_at(c, "mpig_context_info", infos, i, &known, sizeof(known));
		if (rc)
			return rc;
	}
	if (n >= 0)
		*cursor = (uint32_t)n < page->count ? w[n - 1].id : page->cursor ? page->cursor : LIST_END;
	return n;
}

int mpig_context_list(mpig_client *c, uint64_t *cursor, struct mpig_context_info *infos, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!cursor || !infos || max < 1)
		return error_set(c, MPIG_EINVAL, "max = %d: must be at least 1, with cursor and infos not NULL", max);
	if (*cursor == LIST_END)
		return 0;
	struct mpig_ctl_list request = {.cursor = *cursor};
	pthread_mutex_lock(&c->lock);
	int rc = client_connected(c);
	request.count = c->list_page;
	rc = rc ? rc : client_call(c, MPIG_CTL_LIST, &request, sizeof(request), -1, sizeof(request), NULL);
	if (rc == MPIG_OK)
		rc = take_page(c, cursor, infos, (uint32_t)max);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static int reindex_ask(mpig_client *c, const char *name, struct mpig_ctl_reindex *part, uint64_t *epoch)
{
	struct mpig_ctl_reindex request = {.job = part->job};
	memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock); // for one request only: other threads' calls go between
	int rc = client_call(c, MPIG_CTL_REINDEX, &request, sizeof(request), -1, sizeof(request), NULL);
	rc = client_same_daemon(c, part->job, epoch, rc);
	if (rc == MPIG_OK)
		memcpy(part, c->reply, sizeof(*part));
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_context_reindex(mpig_client *c, const char *name, struct mpig_reindex_result *result)
{
	if (client_forked(c))
		return MPIG_EFORK;
	struct mpig_ctl_reindex part = {0};
	struct timespec pause = {.tv_nsec = 500000};
	uint64_t epoch;
	int rc = name_check(c, "name", name);
	rc = rc ? rc : reindex_ask(c, name, &part, &epoch);
	while (rc == MPIG_OK && part.state != MPIG_REINDEX_DONE) {
		nanosleep(&pause, NULL);
		pause.tv_nsec = pause.tv_nsec < 20000000 ? 2 * pause.tv_nsec : pause.tv_nsec;
		rc = reindex_ask(c, name, &part, &epoch);
	}
	if (rc || !result)
		return rc;
	struct mpig_reindex_result known = {.tokens = part.total, .signature_version = part.signature_version};
	return options_return(c, "mpig_reindex_result", result, &known, sizeof(known));
}
