#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/store/internal.h"

static struct account *account_find(const struct store *s, party_id party)
{
	for (size_t i = 0; i < s->account_count; i++)
		if (s->account[i].party == party)
			return &s->account[i];
	return NULL;
}

static int open_one(struct store *s, party_id party)
{
	if (account_find(s, party))
		return 0;
	if (s->account_count == s->account_capacity) {
		size_t capacity = s->account_capacity ? 2 * s->account_capacity : 8;
		struct account *account = realloc(s->account, capacity * sizeof *account);
		if (!account)
			return MPIG_ENOMEM;
		s->account = account;
		s->account_capacity = capacity;
	}
	s->account[s->account_count++] = (struct account){.party = party};
	return 0;
}

static void add_one(struct store *s, party_id party, uint64_t bytes)
{
	struct account *a = account_find(s, party);
	assert(a);
	a->bytes += bytes;
}

static void sub_one(struct store *s, party_id party, uint64_t bytes)
{
	struct account *a = account_find(s, party);
	assert(a && a->bytes >= bytes);
	a->bytes -= bytes;
}

static void contexts_one(struct store *s, party_id party, int by)
{
	struct account *a = account_find(s, party);
	assert(a && (by > 0 || a->contexts));
	a->contexts += (uint32_t)by;
}

int account_open(struct store *s, const struct identity *owner)
{
	int status = open_one(s, party_user(owner->uid));
	return status ? status : open_one(s, party_group(owner->gid));
}

void account_add(struct store *s, const struct identity *owner, uint64_t bytes)
{
	add_one(s, party_user(owner->uid), bytes);
	add_one(s, party_group(owner->gid), bytes);
}

void account_sub(struct store *s, const struct identity *owner, uint64_t bytes)
{
	sub_one(s, party_user(owner->uid), bytes);
	sub_one(s, party_group(owner->gid), bytes);
}

void account_contexts(struct store *s, const struct identity *owner, int by)
{
	contexts_one(s, party_user(owner->uid), by);
	contexts_one(s, party_group(owner->gid), by);
}

// ---- limits ----------------------------------------------------------------------------------------------------------

struct limit {
	const char *kind; // uid or gid: as in the names of the options
	uint32_t number;
	const struct account *account; // NULL: holds nothing yet
	uint64_t bytes;                // 0 = unlimited
	uint32_t contexts;
};

static int admit(const struct limit *l, uint64_t bytes, uint32_t contexts, char *why)
{
	uint64_t held = l->account ? l->account->bytes : 0, many = l->account ? l->account->contexts : 0;
	if (l->contexts && contexts && many + contexts > l->contexts)
		return refuse(why, MPIG_EQUOTA,
		              "limits.contexts_per_%s: %s %u has %" PRIu64
		              " contexts and may have %u: drop some first, or ask the "
		              "administrator for more",
		              l->kind, l->kind, l->number, many, l->contexts);
	if (l->bytes && bytes && (held > l->bytes || bytes > l->bytes - held))
		return refuse(why, MPIG_EQUOTA,
		              "limits.bytes_per_%s: %s %u holds %" PRIu64 " KiB of %" PRIu64 " KiB and needs %" PRIu64
		              " KiB more: drop contexts first, or ask the administrator for more",
		              l->kind, l->kind, l->number, held >> 10, l->bytes >> 10, (bytes + 1023) >> 10);
	return 0;
}

static void use_own(const struct store_limits *limits, bool group, struct limit *l)
{
	for (uint32_t i = 0; i < limits->own_count; i++)
		if (limits->own[i].group == group && limits->own[i].number == l->number) {
			l->bytes = limits->own[i].bytes;
			l->contexts = limits->own[i].contexts;
		}
}

int quota_admit_need(const struct store *s, const struct identity *owner, const struct need *need, char *why)
{
	const struct store_limits *limits = &s->options.limits;
	struct limit user = {"uid", owner->uid, account_find(s, party_user(owner->uid)), limits->uid_bytes, limits->uid_contexts};
	struct limit group = {"gid", owner->gid, account_find(s, party_group(owner->gid)), limits->gid_bytes,
	                      limits->gid_contexts};
	use_own(limits, false, &user);
	use_own(limits, true, &group);
	int status = admit(&user, need->user_bytes, need->user_contexts, why);
	return status ? status : admit(&group, need->group_bytes, need->group_contexts, why);
}

int quota_admit(const struct store *s, const struct identity *owner, uint64_t bytes, uint32_t contexts, char *why)
{
	struct need need = {bytes, bytes, contexts, contexts};
	return quota_admit_need(s, owner, &need, why);
}

void store_set_limits(struct store *s, const struct store_limits *limits)
{
	store_lock(s);
	s->options.limits = *limits;
	store_unlock(s);
}

static uint64_t bytes_of(struct store *s, party_id party)
{
	store_lock(s);
	const struct account *a = account_find(s, party);
	uint64_t bytes = a ? a->bytes : 0;
	store_unlock(s);
	return bytes;
}

static uint64_t contexts_of(struct store *s, party_id party)
{
	store_lock(s);
	const struct account *a = account_find(s, party);
	uint64_t contexts = a ? a->contexts : 0;
	store_unlock(s);
	return contexts;
}

uint64_t store_uid_contexts(struct store *s, uint32_t uid)
{
	return contexts_of(s, party_user(uid));
}

uint64_t store_gid_contexts(struct store *s, uint32_t gid)
{
	return contexts_of(s, party_group(gid));
}

uint64_t store_uid_bytes(struct store *s, uint32_t uid)
{
	return bytes_of(s, party_user(uid));
}

uint64_t store_gid_bytes(struct store *s, uint32_t gid)
{
	return bytes_of(s, party_group(gid));
}

// ---- charges ---------------------------------------------------------------------------------------------------------

static uint32_t charge_find(const struct charge *charge, party_id party)
{
	uint32_t i = 0;
	while (i < charge->count && charge->who[i].party != party)
		i++;
	return i;
}

bool charge_has(const struct charge *charge, party_id party)
{
	return charge_find(charge, party) < charge->count;
}

void charge_need(const struct charge *charge, const struct identity *owner, uint64_t bytes, struct need *need)
{
	need->user_bytes += charge_has(charge, party_user(owner->uid)) ? 0 : bytes;
	need->group_bytes += charge_has(charge, party_group(owner->gid)) ? 0 : bytes;
}

static void reference_one(struct store *s, struct charge *charge, party_id party)
{
	uint32_t i = charge_find(charge, party);
	if (i < charge->count) {
		charge->who[i].refs++;
		return;
	}
	charge->who[i].party = party;
	charge->who[i].refs = 1;
	charge->count++;
	add_one(s, party, charge->bytes);
}

static void release_one(struct store *s, struct charge *charge, party_id party)
{
	uint32_t i = charge_find(charge, party);
	assert(i < charge->count); // nobody releases what it was not charged for
	if (--charge->who[i].refs)
		return;
	sub_one(s, party, charge->bytes);
	charge->who[i] = charge->who[--charge->count];
}

int charge_reference(struct store *s, struct charge *charge, const struct identity *owner)
{
	if (charge->count + CHARGE_OWNER > charge->capacity) {
		uint32_t capacity = charge->capacity ? 2 * charge->capacity : CHARGE_OWNER;
		void *who = realloc(charge->who, capacity * sizeof *charge->who);
		if (!who)
			return MPIG_ENOMEM;
		charge->who = who;
		charge->capacity = capacity;
	}
	reference_one(s, charge, party_user(owner->uid));
	reference_one(s, charge, party_group(owner->gid));
	return 0;
}

void charge_release(struct store *s, struct charge *charge, const struct identity *owner)
{
	release_one(s, charge, party_user(owner->uid));
	release_one(s, charge, party_group(owner->gid));
}

void charge_grow(struct store *s, struct charge *charge, uint64_t bytes)
{
	charge->bytes += bytes;
	for (uint32_t i = 0; i < charge->count; i++)
		add_one(s, charge->who[i].party, bytes);
}

void charge_shrink(struct store *s, struct charge *charge, uint64_t bytes)
{
	assert(charge->bytes >= bytes);
	charge->bytes -= bytes;
	for (uint32_t i = 0; i < charge->count; i++)
		sub_one(s, charge->who[i].party, bytes);
}

void charge_fini(struct charge *charge)
{
	free(charge->who);
	*charge = (struct charge){0};
}
