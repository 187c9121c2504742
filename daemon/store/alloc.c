#include "daemon/store/alloc.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static uint32_t longest_ones(uint64_t x)
{
	uint32_t n = 0;
	for (; x; x &= x << 1)
		n++;
	return n;
}

static struct extent_run leaf_of(uint64_t used)
{
	if (!used)
		return (struct extent_run){64, 64, 64};
	return (struct extent_run){(uint32_t)__builtin_ctzll(used), (uint32_t)__builtin_clzll(used), longest_ones(~used)};
}

// half: granules under each of the two children.
static struct extent_run join(struct extent_run l, struct extent_run r, uint32_t half)
{
	uint32_t across = l.suffix + r.prefix, best = l.best > r.best ? l.best : r.best;
	return (struct extent_run){
		.prefix = l.prefix == half ? half + r.prefix : l.prefix,
		.suffix = r.suffix == half ? half + l.suffix : r.suffix,
		.best = across > best ? across : best,
	};
}

// Renews the tree above the words [a, b], level by level.
static void update(struct extent_map *map, uint32_t a, uint32_t b)
{
	for (uint32_t w = a; w <= b; w++)
		map->tree[map->leaves + w] = leaf_of(map->used[w]);
	uint32_t lo = map->leaves + a, hi = map->leaves + b, half = 64;
	while (lo > 1) {
		lo /= 2;
		hi /= 2;
		for (uint32_t i = lo; i <= hi; i++)
			map->tree[i] = join(map->tree[2 * i], map->tree[2 * i + 1], half);
		half *= 2;
	}
}

static uint64_t word_mask(uint32_t w, uint32_t first, uint32_t n)
{
	uint64_t lo = (uint64_t)w * 64, begin = first > lo ? first - lo : 0, end = (uint64_t)first + n - lo;
	uint64_t upto = end >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << end) - 1;
	return upto & (~UINT64_C(0) << begin);
}

int extent_map_init(struct extent_map *map, uint32_t granules)
{
	uint64_t words = ((uint64_t)granules + 63) / 64, leaves = 1;
	while (leaves < words)
		leaves *= 2;
	if (!granules || leaves > UINT32_MAX / 64 / 2)
		return -1;
	uint64_t *used = malloc(leaves * sizeof *used);
	struct extent_run *tree = malloc(2 * leaves * sizeof *tree);
	if (!used || !tree) {
		free(used);
		free(tree);
		return -1;
	}
	for (uint64_t w = 0; w < leaves; w++)
		used[w] = w * 64 >= granules ? ~UINT64_C(0) : ~word_mask((uint32_t)w, 0, granules);
	*map = (struct extent_map){
		.used = used, .tree = tree, .granules = granules, .leaves = (uint32_t)leaves, .free = granules};
	update(map, 0, (uint32_t)leaves - 1);
	return 0;
}

void extent_map_fini(struct extent_map *map)
{
	free(map->used);
	free(map->tree);
	*map = (struct extent_map){0};
}

static uint32_t first_fit(const struct extent_map *map, uint32_t n)
{
	const struct extent_run *t = map->tree;
	if (t[1].best < n)
		return EXTENT_NONE;
	uint32_t i = 1, begin = 0, size = map->leaves * 64; // granules under node i
	while (i < map->leaves) {
		size /= 2;
		if (t[2 * i].best >= n) {
			i = 2 * i;
		} else if (t[2 * i].suffix + t[2 * i + 1].prefix >= n) {
			return begin + size - t[2 * i].suffix;
		} else {
			i = 2 * i + 1;
			begin += size;
		}
	}
	uint64_t fits = ~map->used[begin / 64]; // bit b stays while granules b .. b + k are free
	for (uint32_t k = 1; k < n; k++)
		fits &= fits >> 1;
	return begin + (uint32_t)__builtin_ctzll(fits);
}

uint32_t extent_map_take(struct extent_map *map, uint32_t n)
{
	uint32_t first = n ? first_fit(map, n) : EXTENT_NONE;
	if (first == EXTENT_NONE)
		return EXTENT_NONE;
	uint32_t a = first / 64, b = (first + n - 1) / 64;
	for (uint32_t w = a; w <= b; w++)
		map->used[w] |= word_mask(w, first, n);
	map->free -= n;
	update(map, a, b);
	return first;
}

bool extent_map_claim(struct extent_map *map, uint32_t first, uint32_t n)
{
	if (!n || first >= map->granules || n > map->granules - first || !extent_map_all_free(map, first, n))
		return false;
	uint32_t a = first / 64, b = (first + n - 1) / 64;
	for (uint32_t w = a; w <= b; w++)
		map->used[w] |= word_mask(w, first, n);
	map->free -= n;
	update(map, a, b);
	return true;
}

// The first granule at `from` or later whose bit is `used`; `granules` if there is none.
static uint32_t next_granule(const struct extent_map *map, uint32_t from, bool used)
{
	for (uint32_t w = from / 64; from < map->granules && w <= (map->granules - 1) / 64; w++) {
		uint64_t bits = used ? map->used[w] : ~map->used[w];
		if (w == from / 64)
			bits &= ~UINT64_C(0) << (from % 64);
		if (bits) {
			uint32_t found = w * 64 + (uint32_t)__builtin_ctzll(bits);
			return found < map->granules ? found : map->granules;
		}
	}
	return map->granules;
}

uint32_t extent_map_free_run(const struct extent_map *map, uint32_t from, uint32_t *n)
{
	uint32_t first = next_granule(map, from, false);
	if (first >= map->granules)
		return EXTENT_NONE;
	*n = next_granule(map, first, true) - first;
	return first;
}

void extent_map_give(struct extent_map *map, uint32_t first, uint32_t n)
{
	assert(n && first < map->granules && n <= map->granules - first);
	uint32_t a = first / 64, b = (first + n - 1) / 64;
	for (uint32_t w = a; w <= b; w++) {
		uint64_t mask = word_mask(w, first, n);
		assert((map->used[w] & mask) == mask);
		map->used[w] &= ~mask;
	}
	map->free += n;
	update(map, a, b);
}

bool extent_map_all_used(const struct extent_map *map, uint32_t first, uint32_t n)
{
	for (uint32_t w = first / 64; n && w <= (first + n - 1) / 64; w++)
		if (~map->used[w] & word_mask(w, first, n))
			return false;
	return true;
}

bool extent_map_all_free(const struct extent_map *map, uint32_t first, uint32_t n)
{
	for (uint32_t w = first / 64; n && w <= (first + n - 1) / 64; w++)
		if (map->used[w] & word_mask(w, first, n))
			return false;
	return true;
}
