#include "daemon/server/profiles.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/server/profile_files.h"
#include "shm/control.h"
#include "shm/status.h"

static_assert(PROFILE_TEXT_BYTES == MPIG_PROFILE_BYTES, "a text that the file holds fits a message");

__attribute__((format(printf, 3, 4))) static int refuse(char *why, int status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, MPIG_TEXT_BYTES, format, args);
	va_end(args);
	return status;
}

// ---- in memory -------------------------------------------------------------------------------------------------------
static void entry_free(struct profile_entry *e)
{
	if (!e)
		return;
	free(e->profile);
	free(e->text);
	free(e);
}

// Checked, and a copy of it. `profile` is the caller's, for its size.
static int entry_make(uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, struct profile *profile,
                      struct profile_entry **out, char *why)
{
	uint8_t own[64];
	if (profile_parse(text, bytes, profile, why) != 0)
		return MPIG_EINVAL;
	profile_unhex(profile->fingerprint, own);
	if (memcmp(own, fingerprint, sizeof own) != 0)
		return refuse(why, MPIG_EINVAL, "the profile is of another fingerprint, %.16s...", profile->fingerprint);
	size_t used = offsetof(struct profile, layer) + profile->count * sizeof profile->layer[0];
	struct profile_entry *e = calloc(1, sizeof *e);
	if (e) {
		e->uid = uid;
		memcpy(e->fingerprint, fingerprint, sizeof e->fingerprint);
		e->profile = malloc(used);
		e->text = malloc(bytes);
		e->bytes = bytes;
	}
	if (!e || !e->profile || !e->text) {
		entry_free(e);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory for a profile");
	}
	memcpy(e->profile, profile, used);
	memcpy(e->text, text, bytes);
	*out = e;
	return MPIG_OK;
}

static struct profile_entry **place_of(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	struct profile_entry **at = &all->first;
	while (*at && ((*at)->uid != uid || memcmp((*at)->fingerprint, fingerprint, 64) != 0))
		at = &(*at)->next;
	return at;
}

const struct profile_entry *profiles_find(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	for (const struct profile_entry *e = all->first; e; e = e->next)
		if (e->uid == uid && memcmp(e->fingerprint, fingerprint, 64) == 0)
			return e;
	return NULL;
}

const struct profile_entry *profiles_of(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	const struct profile_entry *own = profiles_find(all, uid, fingerprint);
	return own ? own : profiles_find(all, MPIG_PROFILE_ALL, fingerprint);
}

// Before, at or behind (fingerprint, uid): below, equal to or above 0.
static int compare(const struct profile_entry *e, const uint8_t fingerprint[64], uint32_t uid)
{
	int order = memcmp(e->fingerprint, fingerprint, 64);
	return order ? order : (e->uid > uid) - (e->uid < uid);
}

const struct profile_entry *profiles_next(const struct profiles *all, const uint8_t fingerprint[64], uint32_t uid, uint32_t who,
                                          bool any)
{
	const struct profile_entry *next = NULL;
	for (const struct profile_entry *e = all->first; e; e = e->next)
		if ((any || e->uid == who || e->uid == MPIG_PROFILE_ALL) && compare(e, fingerprint, uid) > 0 &&
		    (!next || compare(e, next->fingerprint, next->uid) < 0))
			next = e;
	return next;
}

static void put(struct profiles *all, struct profile_entry *e)
{
	struct profile_entry **at = place_of(all, e->uid, e->fingerprint), *old = *at;
	e->next = old ? old->next : NULL;
	*at = e;
	all->count += !old;
	entry_free(old);
}

static void take_out(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64])
{
	struct profile_entry **at = place_of(all, uid, fingerprint), *old = *at;
	*at = old->next;
	all->count--;
	entry_free(old);
}

// ---- at start --------------------------------------------------------------------------------------------------------
struct taking {
	struct profiles *all;
	struct profile *profile; // room for one
};

static int take(void *arg, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes, char *why)
{
	struct taking *t = arg;
	struct profile_entry *e = NULL;
	if (t->all->count == PROFILES_MOST)
		return refuse(why, MPIG_ELIMIT, "this daemon keeps %u profiles, which is the most", PROFILES_MOST);
	int status = entry_make(uid, fingerprint, text, bytes, t->profile, &e, why);
	if (status == MPIG_OK)
		put(t->all, e);
	return status;
}

static void on_written(void *arg, uint32_t events);

int profiles_open(struct profiles *all, const char *dir, struct loop *loop)
{
	*all = (struct profiles){.dir = dir, .written_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	struct taking taking = {.all = all, .profile = malloc(sizeof *taking.profile)};
	all->written = all->written_fd < 0 ? NULL : loop_poll(loop, all->written_fd, on_written, all);
	int status = all->written && taking.profile ? MPIG_OK : MPIG_ENOMEM;
	if (status == MPIG_OK)
		profile_files_read(dir, take, &taking);
	free(taking.profile);
	if (all->count)
		log_info("%u profiles in %s", all->count, dir);
	return status;
}

// ---- changing them ---------------------------------------------------------------------------------------------------
// The control thread waits for no disk: each change is written by a thread of its own, one after the other, and what was decided before
// it still holds after it, since a profile that is being changed is changed by nobody else.
struct profile_change {
	struct profile_change *next;
	struct profile_file file;
	uint8_t fingerprint[64];
	struct profile_entry *fresh;     // NULL: it is cleared
	const struct profile_entry *old; // NULL: there is none
	profiles_done_fn *done;
	void *arg;
	int status, written_fd;
	char why[MPIG_TEXT_BYTES];
};

static void write_change(struct profile_change *change)
{
	const struct profile_entry *fresh = change->fresh, *old = change->old;
	change->status = profile_file_change(&change->file, fresh ? fresh->text : NULL, fresh ? fresh->bytes : 0,
	                                     old ? old->text : NULL, old ? old->bytes : 0, change->why);
}

static void *writer(void *arg)
{
	struct profile_change *change = arg;
	write_change(change);
	(void)!write(change->written_fd, &(uint64_t){1}, sizeof(uint64_t));
	return NULL;
}

// The first change is done, or cannot be: memory follows, and whoever asked for it is told.
static void end_change(struct profiles *all)
{
	struct profile_change *change = all->changes;
	all->changes = change->next;
	if (change->status == MPIG_OK && change->fresh)
		put(all, change->fresh);
	else if (change->status == MPIG_OK)
		take_out(all, change->file.uid, change->fingerprint);
	else
		entry_free(change->fresh);
	change->done(change->arg, change->status, change->why);
	free(change);
}

// False: there is no thread for the first change.
static bool begin_first(struct profiles *all)
{
	struct profile_change *first = all->changes;
	all->writing = pthread_create(&all->writer, NULL, writer, first) == 0;
	if (!all->writing)
		first->status = refuse(first->why, MPIG_ENOMEM, "the daemon can start no thread that writes the profile");
	return all->writing;
}

static void on_written(void *arg, uint32_t events)
{
	struct profiles *all = arg;
	uint64_t one;
	(void)events;
	if (read(all->written_fd, &one, sizeof one) != sizeof one)
		return;
	pthread_join(all->writer, NULL);
	all->writing = false;
	end_change(all);
	while (all->changes && !begin_first(all))
		end_change(all);
}

bool profiles_changing(const struct profiles *all)
{
	return all->changes;
}

void profiles_close(struct profiles *all)
{
	if (all->writing)
		pthread_join(all->writer, NULL);
	for (; all->changes; end_change(all), all->writing = false)
		if (!all->writing)
			write_change(all->changes);
	if (all->dir && all->written_fd >= 0)
		close(all->written_fd);
	for (struct profile_entry *e = all->first, *next; e; e = next) {
		next = e->next;
		entry_free(e);
	}
	*all = (struct profiles){0};
}

static int check_room(const struct profiles *all, uint32_t uid, char *why)
{
	uint32_t own = 0, count = all->count;
	for (const struct profile_entry *e = all->first; e; e = e->next)
		own += e->uid == uid;
	for (const struct profile_change *change = all->changes; change; change = change->next) {
		bool more = change->fresh && !change->old;
		own += more && change->file.uid == uid;
		count += more;
	}
	if (own >= PROFILES_PER_UID)
		return refuse(why, MPIG_ELIMIT,
		              "%u profiles are kept for one user, which is the most: clear one (magicpigctl tune --clear)", own);
	if (count >= PROFILES_MOST)
		return refuse(why, MPIG_ELIMIT,
		              "this daemon keeps %u profiles, which is the most: clear some (magicpigctl tune --clear)", count);
	return MPIG_OK;
}

static int check_unchanged(const struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], char *why)
{
	for (const struct profile_change *change = all->changes; change; change = change->next)
		if (change->file.uid == uid && memcmp(change->fingerprint, fingerprint, 64) == 0)
			return refuse(why, MPIG_EAGAIN,
			              "another change of this profile is being written: try again when it is done");
	return MPIG_OK;
}

// Takes over `fresh`, also on failure.
static int begin_change(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], struct profile_entry *fresh,
                        const struct profile_entry *old, profiles_done_fn *done, void *arg, char *why)
{
	struct profile_change *change = calloc(1, sizeof *change), **end = &all->changes;
	if (!change) {
		entry_free(fresh);
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory for a profile");
	}
	*change = (struct profile_change){.file = {all->dir, uid, change->fingerprint},
	                                  .fresh = fresh,
	                                  .old = old,
	                                  .done = done,
	                                  .arg = arg,
	                                  .written_fd = all->written_fd};
	memcpy(change->fingerprint, fingerprint, sizeof change->fingerprint);
	while (*end)
		end = &(*end)->next;
	*end = change;
	if (all->writing || begin_first(all))
		return MPIG_OK;
	all->changes = NULL; // it was the only one
	entry_free(fresh);
	strcpy(why, change->why);
	free(change);
	return MPIG_ENOMEM;
}

int profiles_set(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], const char *text, size_t bytes,
                 profiles_done_fn *done, void *arg, char *why)
{
	struct profile_entry *e = NULL;
	const struct profile_entry *old = profiles_find(all, uid, fingerprint);
	struct profile *profile = malloc(sizeof *profile);
	int status = profile ? check_unchanged(all, uid, fingerprint, why)
	                     : refuse(why, MPIG_ENOMEM, "the daemon has no memory for a profile");
	if (status == MPIG_OK && !old)
		status = check_room(all, uid, why);
	if (status == MPIG_OK)
		status = entry_make(uid, fingerprint, text, bytes, profile, &e, why);
	free(profile);
	return status == MPIG_OK ? begin_change(all, uid, fingerprint, e, old, done, arg, why) : status;
}

int profiles_clear(struct profiles *all, uint32_t uid, const uint8_t fingerprint[64], profiles_done_fn *done, void *arg,
                   char *why)
{
	const struct profile_entry *old = profiles_find(all, uid, fingerprint);
	int status = check_unchanged(all, uid, fingerprint, why);
	if (status != MPIG_OK)
		return status;
	if (!old && uid != MPIG_PROFILE_ALL && profiles_find(all, MPIG_PROFILE_ALL, fingerprint))
		return refuse(why, MPIG_ENOENT,
		              "there is no profile of this fingerprint of uid %u's own; what holds is that of all users, which "
		              "administrators clear (tune --clear --all-users)",
		              uid);
	if (!old)
		return refuse(why, MPIG_ENOENT, "there is no profile of this fingerprint");
	return begin_change(all, uid, fingerprint, NULL, old, done, arg, why);
}

// ---- what goes by them -----------------------------------------------------------------------------------------------
static bool layer_can(const struct mpig_wire_layer *w, uint8_t proposal)
{
	switch (proposal) {
	case MPIG_PROPOSAL_SIGNATURE:
		return w->signature_bits;
	case MPIG_PROPOSAL_PAPER:
		return w->paper_l && w->table_hash == MPIG_HASH_SIMHASH;
	case MPIG_PROPOSAL_CROSSPOLYTOPE:
		return w->paper_l && w->table_hash == MPIG_HASH_CROSSPOLYTOPE;
	default:
		return true;
	}
}

struct engine_default *profiles_defaults(const struct profile_entry *entry, const struct context *c)
{
	static const uint8_t proposals[PROFILE_PROPOSALS] = {
		[PROFILE_SIGNATURE] = MPIG_PROPOSAL_SIGNATURE,
		[PROFILE_DENSE] = MPIG_PROPOSAL_DENSE,
		[PROFILE_PAPER] = MPIG_PROPOSAL_PAPER,
		[PROFILE_CROSSPOLYTOPE] = MPIG_PROPOSAL_CROSSPOLYTOPE,
	};
	struct engine_default *defaults = entry ? calloc(context_layer_count(c), sizeof *defaults) : NULL;
	if (entry && !defaults)
		log_warn("context %" PRIu64 " is opened without its profile: no memory", context_id(c));
	for (uint32_t i = 0; defaults && i < entry->profile->count; i++) {
		const struct profile_layer *l = &entry->profile->layer[i];
		const struct layer *layer = context_layer(c, l->number);
		if (layer && layer_can(&layer->wire, proposals[l->proposal]))
			defaults[l->number] = (struct engine_default){.proposal = proposals[l->proposal],
			                                              .budget = l->budget,
			                                              .error_target = l->error_target,
			                                              .budget_floor = l->budget_floor,
			                                              .budget_cap = l->budget_cap};
	}
	return defaults;
}

// As published for SimHash; as many cross-polytope tables as find what (10, 150) finds at a cosine of .5.
static void default_tables(struct mpig_wire_layer *w)
{
	uint32_t d = mpig_padded_dim(w->d_k);
	bool simhash = w->table_hash == MPIG_HASH_SIMHASH;
	w->paper_k = simhash ? 10 : 0;
	w->paper_l = simhash ? 150 : d <= 64 ? 28 : d <= 128 ? 35 : 46;
}

void profiles_resolve(const struct profile_entry *entry, struct mpig_wire_layer *layers, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct mpig_wire_layer *w = &layers[i];
		const struct profile_layer *l = entry ? profile_find(entry->profile, i) : NULL;
		if (l && l->signature_bits && w->signature_bits == MPIG_BITS_AUTO && !w->signature_bytes)
			w->signature_bits = (uint8_t)l->signature_bits;
		if (w->paper_l != MPIG_TABLES_AUTO || w->paper_k)
			continue;
		default_tables(w);
		if (l && l->paper_l && (l->paper_k || w->table_hash == MPIG_HASH_CROSSPOLYTOPE)) {
			w->paper_k = w->table_hash == MPIG_HASH_SIMHASH ? (uint16_t)l->paper_k : 0;
			w->paper_l = (uint16_t)l->paper_l;
		}
	}
}
