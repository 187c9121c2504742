// The longest common token prefix. Every context keeps a chain of hashes in private memory, one per 256 tokens, each over all
// tokens so far. Two sequences agree up to link i exactly if their links i agree (64-bit hashes; what is found is compared
// token by token before it is believed), so each context costs a binary search and at most 256 tokens, whatever its length.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/store/internal.h"

static uint64_t link_hash(uint64_t before, const uint32_t tokens[CHAIN_TOKENS])
{
	return XXH3_64bits_withSeed(tokens, CHAIN_TOKENS * sizeof *tokens, before);
}

int chain_reserve(struct context *c, uint64_t tokens)
{
	uint64_t links = tokens / CHAIN_TOKENS, capacity = c->chain_capacity ? c->chain_capacity : 16;
	if (c->chain && links <= c->chain_capacity)
		return 0;
	while (capacity < links)
		capacity *= 2;
	uint64_t *chain = realloc(c->chain, capacity * sizeof *chain);
	if (!chain)
		return MPIG_ENOMEM;
	c->chain = chain;
	c->chain_capacity = capacity;
	return 0;
}

void chain_extend(struct context *c, uint64_t committed)
{
	uint32_t tokens[CHAIN_TOKENS];
	for (; (c->chain_count + 1) * CHAIN_TOKENS <= committed; c->chain_count++) {
		tokens_read(c, c->chain_count * CHAIN_TOKENS, CHAIN_TOKENS, tokens);
		c->chain[c->chain_count] = link_hash(c->chain_count ? c->chain[c->chain_count - 1] : 0, tokens);
	}
}

int chain_complete(struct context *c)
{
	uint64_t committed = context_committed(c);
	if (c->chain_count == committed / CHAIN_TOKENS)
		return 0;
	if (chain_reserve(c, committed))
		return MPIG_ENOMEM;
	chain_extend(c, committed);
	return 0;
}

struct query {
	const uint32_t *tokens;
	uint64_t count;
	const uint64_t *chain;
};

static uint64_t equal_tokens(const struct context *c, const uint32_t *tokens, uint64_t begin, uint64_t end)
{
	uint32_t held[CHAIN_TOKENS];
	while (begin < end) {
		uint64_t n = end - begin < CHAIN_TOKENS ? end - begin : CHAIN_TOKENS;
		tokens_read(c, begin, n, held);
		for (uint64_t i = 0; i < n; i++)
			if (held[i] != tokens[begin + i])
				return begin + i;
		begin += n;
	}
	return end;
}

static uint64_t common(const struct context *c, const struct query *q)
{
	uint64_t committed = context_committed(c), most = committed < q->count ? committed : q->count;
	uint64_t lo = 0, hi = most / CHAIN_TOKENS; // links below lo agree
	while (lo < hi) {
		uint64_t mid = lo + (hi - lo) / 2;
		if (c->chain[mid] == q->chain[mid])
			lo = mid + 1;
		else
			hi = mid;
	}
	uint64_t begin = lo * CHAIN_TOKENS, end = begin + CHAIN_TOKENS < most ? begin + CHAIN_TOKENS : most;
	return equal_tokens(c, q->tokens, begin, end);
}

// Longest first; of equals the one with the fewest tokens beyond the match, then the oldest.
static struct context *best_match(const struct store *s, const struct credentials *who, const uint8_t fingerprint[64],
                                  const struct query *q, uint64_t *matched)
{
	struct context *best = NULL;
	for (size_t i = 0; i < s->count; i++) {
		struct context *c = s->context[i];
		if (memcmp(c->fingerprint, fingerprint, sizeof c->fingerprint) || !access_check(&c->identity, who, ACCESS_READ) ||
		    c->damage || chain_complete(c))
			continue;
		uint64_t n = common(c, q);
		if (!best || n > *matched || (n == *matched && context_committed(c) < context_committed(best))) {
			best = c;
			*matched = n;
		}
	}
	if (best)
		*matched = equal_tokens(best, q->tokens, 0, *matched);
	return best;
}

int store_context_open_prefix(struct store *s, const struct credentials *who, const uint8_t fingerprint[64],
                              const uint32_t *tokens, uint64_t count, uint64_t min_tokens, struct context **context,
                              uint64_t *matched, char *why)
{
	if (count > MPIG_MAX_TOKENS)
		return refuse(why, MPIG_EINVAL, "tokens: %" PRIu64 " ids, must be at most %" PRIu64, count, MPIG_MAX_TOKENS);
	uint64_t links = count / CHAIN_TOKENS;
	uint64_t *chain = malloc((links ? links : 1) * sizeof *chain);
	if (!chain)
		return refuse(why, MPIG_ENOMEM, "the daemon has no memory to look for %" PRIu64 " tokens", count);
	for (uint64_t i = 0; i < links; i++)
		chain[i] = link_hash(i ? chain[i - 1] : 0, tokens + i * CHAIN_TOKENS);
	struct query q = {tokens, count, chain};
	uint64_t n = 0;
	store_lock(s);
	struct context *c = best_match(s, who, fingerprint, &q, &n);
	int status = c && n >= (min_tokens ? min_tokens : 1) ? 0
	                                                     : refuse(why, MPIG_ENOENT,
	                                                              "no readable context of this fingerprint shares %" PRIu64
	                                                              " tokens or more (the best shares %" PRIu64 ")",
	                                                              min_tokens ? min_tokens : 1, n);
	if (!status) {
		context_ref(c);
		*context = c;
		*matched = n;
	}
	store_unlock(s);
	free(chain);
	return status;
}
