#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "daemon/store/internal.h"

static struct account *account_find(const struct store *s, uint32_t uid)
{
	for (size_t i = 0; i < s->account_count; i++)
		if (s->account[i].uid == uid)
			return &s->account[i];
	return NULL;
}

int account_open(struct store *s, uint32_t uid)
{
	if (account_find(s, uid))
		return 0;
	if (s->account_count == s->account_capacity) {
		size_t capacity = s->account_capacity ? 2 * s->account_capacity : 8;
		struct account *account = realloc(s->account, capacity * sizeof *account);
		if (!account)
			return MPIG_ENOMEM;
		s->account = account;
		s->account_capacity = capacity;
	}
	s->account[s->account_count++] = (struct account){.uid = uid};
	return 0;
}

void account_add(struct store *s, uint32_t uid, uint64_t bytes)
{
	struct account *a = account_find(s, uid);
	assert(a);
	a->bytes += bytes;
}

void account_sub(struct store *s, uint32_t uid, uint64_t bytes)
{
	struct account *a = account_find(s, uid);
	assert(a && a->bytes >= bytes);
	a->bytes -= bytes;
}

void account_contexts(struct store *s, uint32_t uid, int by)
{
	struct account *a = account_find(s, uid);
	assert(a && (by > 0 || a->contexts));
	a->contexts += (uint32_t)by;
}

int quota_admit(const struct store *s, uint32_t uid, uint64_t bytes, uint32_t contexts, char *why)
{
	const struct account *a = account_find(s, uid);
	uint64_t held = a ? a->bytes : 0, limit = s->options.quota_bytes;
	uint64_t many = a ? a->contexts : 0, most = s->options.quota_contexts;
	if (most && contexts && many + contexts > most)
		return refuse(why, MPIG_EQUOTA, "uid %u has %" PRIu64 " contexts and may have %" PRIu64 ": drop some first", uid,
		              many, most);
	if (limit && (held > limit || bytes > limit - held))
		return refuse(why, MPIG_EQUOTA,
		              "uid %u holds %" PRIu64 " KiB of its quota of %" PRIu64 " KiB and needs %" PRIu64
		              " KiB more: drop contexts first",
		              uid, held >> 10, limit >> 10, (bytes + 1023) >> 10);
	return 0;
}

uint64_t store_uid_bytes(struct store *s, uint32_t uid)
{
	store_lock(s);
	const struct account *a = account_find(s, uid);
	uint64_t bytes = a ? a->bytes : 0;
	store_unlock(s);
	return bytes;
}

uint64_t store_uid_contexts(struct store *s, uint32_t uid)
{
	store_lock(s);
	const struct account *a = account_find(s, uid);
	uint64_t contexts = a ? a->contexts : 0;
	store_unlock(s);
	return contexts;
}

// ---- charges ---------------------------------------------------------------------------------------------------------

bool charge_has(const struct charge *charge, uint32_t uid)
{
	for (uint32_t i = 0; i < charge->count; i++)
		if (charge->who[i].uid == uid)
			return true;
	return false;
}

int charge_reference(struct store *s, struct charge *charge, uint32_t uid)
{
	for (uint32_t i = 0; i < charge->count; i++)
		if (charge->who[i].uid == uid) {
			charge->who[i].refs++;
			return 0;
		}
	if (charge->count == charge->capacity) {
		uint32_t capacity = charge->capacity ? 2 * charge->capacity : 1;
		void *who = realloc(charge->who, capacity * sizeof *charge->who);
		if (!who)
			return MPIG_ENOMEM;
		charge->who = who;
		charge->capacity = capacity;
	}
	charge->who[charge->count].uid = uid;
	charge->who[charge->count++].refs = 1;
	account_add(s, uid, charge->bytes);
	return 0;
}

void charge_release(struct store *s, struct charge *charge, uint32_t uid)
{
	uint32_t i = 0;
	while (i < charge->count && charge->who[i].uid != uid)
		i++;
	assert(i < charge->count); // a uid releases only what it was charged for
	if (--charge->who[i].refs)
		return;
	account_sub(s, uid, charge->bytes);
	charge->who[i] = charge->who[--charge->count];
}

void charge_grow(struct store *s, struct charge *charge, uint64_t bytes)
{
	charge->bytes += bytes;
	for (uint32_t i = 0; i < charge->count; i++)
		account_add(s, charge->who[i].uid, bytes);
}

void charge_shrink(struct store *s, struct charge *charge, uint64_t bytes)
{
	assert(charge->bytes >= bytes);
	charge->bytes -= bytes;
	for (uint32_t i = 0; i < charge->count; i++)
		account_sub(s, charge->who[i].uid, bytes);
}

void charge_fini(struct charge *charge)
{
	free(charge->who);
	*charge = (struct charge){0};
}
