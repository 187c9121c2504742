// What is on disk, in memory: for those who ask and must not wait for a disk. Sorted by name.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/disk/private.h"
#include "shm/status.h"

// The first entry whose name is not before `name`.
static size_t position(const struct disk *d, const char *name)
{
	size_t lo = 0, hi = d->saved_count;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (strcmp(d->saved[mid].name, name) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool is_at(const struct disk *d, size_t i, const char *name)
{
	return i < d->saved_count && !strcmp(d->saved[i].name, name);
}

void catalogue_put(struct disk *d, const struct manifest *m)
{
	struct disk_saved entry = {.identity = m->context.identity,
	                           .policy = m->context.policy,
	                           .created_ns = m->context.created_ns,
	                           .committed = m->context.committed,
	                           .used_ns = m->used_ns,
	                           .saved_ns = m->saved_ns,
	                           .bytes = m->file_bytes};
	memcpy(entry.name, m->context.name, sizeof entry.name);
	memcpy(entry.fingerprint, m->context.fingerprint, sizeof entry.fingerprint);
	for (uint32_t i = 0; i < m->context.segment_count; i++)
		entry.bytes += m->segment[i].file_bytes;
	pthread_mutex_lock(&d->lock);
	size_t i = position(d, entry.name);
	if (!is_at(d, i, entry.name)) {
		if (d->saved_count == d->saved_capacity) {
			size_t capacity = d->saved_capacity ? 2 * d->saved_capacity : 64;
			struct disk_saved *all = realloc(d->saved, capacity * sizeof *all);
			if (!all) { // it is on disk all the same, and can be loaded by its name
				pthread_mutex_unlock(&d->lock);
				return;
			}
			d->saved = all;
			d->saved_capacity = capacity;
		}
		memmove(&d->saved[i + 1], &d->saved[i], (d->saved_count - i) * sizeof d->saved[0]);
		d->saved_count++;
	} else {
		d->saved_bytes -= d->saved[i].bytes;
	}
	d->saved[i] = entry;
	d->saved_bytes += entry.bytes;
	pthread_mutex_unlock(&d->lock);
}

void catalogue_remove(struct disk *d, const char *name)
{
	if (d->store)
		store_saved_remove(d->store, name);
	pthread_mutex_lock(&d->lock);
	size_t i = position(d, name);
	if (is_at(d, i, name)) {
		d->saved_count--;
		d->saved_bytes -= d->saved[i].bytes;
		memmove(&d->saved[i], &d->saved[i + 1], (d->saved_count - i) * sizeof d->saved[0]);
	}
	pthread_mutex_unlock(&d->lock);
}

void catalogue_used(struct disk *d, const char *name, uint64_t used_ns)
{
	pthread_mutex_lock(&d->lock);
	size_t i = position(d, name);
	if (is_at(d, i, name) && d->saved[i].used_ns < used_ns)
		d->saved[i].used_ns = used_ns;
	pthread_mutex_unlock(&d->lock);
}

bool catalogue_next_mortal(struct disk *d, const char *after, struct disk_saved *out)
{
	bool found = false;
	pthread_mutex_lock(&d->lock);
	for (size_t i = position(d, after); i < d->saved_count && !found; i++) {
		const struct disk_saved *saved = &d->saved[i];
		found = strcmp(saved->name, after) && saved->policy.ttl_s && saved->policy.flags & MPIG_POLICY_ERASE;
		if (found)
			*out = *saved;
	}
	pthread_mutex_unlock(&d->lock);
	return found;
}

bool disk_find(struct disk *d, const char *name, struct disk_saved *out)
{
	pthread_mutex_lock(&d->lock);
	size_t i = position(d, name);
	bool has = is_at(d, i, name);
	if (has)
		*out = d->saved[i];
	pthread_mutex_unlock(&d->lock);
	return has;
}

uint32_t disk_list(struct disk *d, const struct credentials *who, const char *after, struct disk_saved *out, uint32_t max,
                   bool *more)
{
	uint32_t n = 0;
	*more = false;
	pthread_mutex_lock(&d->lock);
	for (size_t i = position(d, after); i < d->saved_count && !*more; i++) {
		if (!strcmp(d->saved[i].name, after) || !access_check(&d->saved[i].identity, who, ACCESS_READ))
			continue;
		*more = n == max;
		if (n < max)
			out[n++] = d->saved[i];
	}
	pthread_mutex_unlock(&d->lock);
	return n;
}

void disk_total(struct disk *d, uint64_t *contexts, uint64_t *bytes)
{
	pthread_mutex_lock(&d->lock);
	*contexts = d->saved_count;
	*bytes = d->saved_bytes;
	pthread_mutex_unlock(&d->lock);
}

int disk_access(struct disk *d, const struct credentials *who, const char *name, enum access want, char *why)
{
	int status = MPIG_OK;
	pthread_mutex_lock(&d->lock);
	size_t i = position(d, name);
	if (!is_at(d, i, name))
		status = disk_fail(why, MPIG_ENOENT, "no context '%s' is on disk", name);
	else if (!access_check(&d->saved[i].identity, who, want))
		status = disk_fail(why, MPIG_EACCES, "context '%s' on disk belongs to uid %u, mode %04o: uid %u may not %s it",
		                   name, d->saved[i].identity.uid, d->saved[i].identity.mode, who->uid,
		                   want == ACCESS_READ ? "read" : "replace or erase");
	pthread_mutex_unlock(&d->lock);
	return status;
}

bool disk_has(struct disk *d, const char *name)
{
	pthread_mutex_lock(&d->lock);
	bool has = is_at(d, position(d, name), name);
	pthread_mutex_unlock(&d->lock);
	return has;
}

bool disk_is_known(struct disk *d)
{
	return atomic_load(&d->known);
}
