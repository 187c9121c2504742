// Signature scan by AMX (TILE, INT8): up to sixteen queries against sixteen rows at a time.
//
//   C [heads][16 rows] += A [heads][64 query bytes] * B [16 words][16 rows x 4 code bytes]
//
// A group's interleaved words are B's layout already; only its fields have to be brought down, one B row for each. The queries' tiles
// stay loaded for a whole call. Exact sums, so any order.
#include "daemon/kernels/scan_avx512.h"

// gcc 12's tile instructions do not say that they read and write memory.
#define BARRIER() __asm__ volatile("" ::: "memory")

#define MAX_TILES 4u // of 64 dimensions; they are tmm0 to tmm3
#define FIELDS_A 4   // two groups in flight: fields and sums of each
#define SUMS_A 5
#define FIELDS_B 6
#define SUMS_B 7

struct tile_config {
	uint8_t palette, start_row, reserved[14];
	uint16_t bytes[16]; // of a row
	uint8_t rows[16];
};

static void tiles_begin(const struct sig_query *queries, uint32_t heads, uint32_t d_pad)
{
	_Alignas(64) int8_t q[SIG_MAX_HEADS][256];
	struct tile_config config = {.palette = 1};
	for (uint32_t t = 0; t < 8; t++) {
		config.bytes[t] = 64;
		config.rows[t] = t == FIELDS_A || t == FIELDS_B ? 16 : (uint8_t)heads;
	}
	for (uint32_t h = 0; h < heads; h++)
		memcpy(q[h], queries[h].q, d_pad);
	BARRIER();
	_tile_loadconfig(&config);
	_tile_loadd(0, q[0], sizeof q[0]);
	if (d_pad > 64)
		_tile_loadd(1, q[0] + 64, sizeof q[0]);
	if (d_pad > 128) {
		_tile_loadd(2, q[0] + 128, sizeof q[0]);
		_tile_loadd(3, q[0] + 192, sizeof q[0]);
	}
	BARRIER();
}

INLINE void unpack_bits(const uint8_t *codes, uint32_t words, uint32_t bits, size_t ahead, uint8_t *fields)
{
	const __m512i mask = _mm512_set1_epi8((char)((1u << bits) - 1));
	for (uint32_t w = 0; w < words; w++) {
		__m512i word = _mm512_loadu_si512(codes + 64 * (size_t)w);
		__builtin_prefetch(codes + ahead + 64 * (size_t)w);
		EACH (f, 8 / bits) {
			__m512i field = _mm512_and_si512(_mm512_srli_epi16(word, bits * f), mask);
			_mm512_store_si512(fields + 64 * (size_t)(f * words + w), field);
		}
	}
}

// Every field of a group's words, in the order of the query's words.
INLINE void unpack(const uint8_t *codes, uint32_t words, uint32_t bits, size_t ahead, uint8_t *fields)
{
	if (bits == 1)
		unpack_bits(codes, words, 1, ahead, fields);
	else if (bits == 2)
		unpack_bits(codes, words, 2, ahead, fields);
	else
		unpack_bits(codes, words, 4, ahead, fields);
}

#define MULTIPLY(sums, fields, from, tiles)                                                                                      \
	do {                                                                                                                     \
		_tile_zero(sums);                                                                                                \
		_tile_loadd(fields, from, 64);                                                                                   \
		_tile_dpbsud(sums, 0, fields);                                                                                   \
		if ((tiles) > 1) {                                                                                               \
			_tile_loadd(fields, (from) + 1024, 64);                                                                  \
			_tile_dpbsud(sums, 1, fields);                                                                           \
		}                                                                                                                \
		if ((tiles) > 2) {                                                                                               \
			_tile_loadd(fields, (from) + 2048, 64);                                                                  \
			_tile_dpbsud(sums, 2, fields);                                                                           \
			_tile_loadd(fields, (from) + 3072, 64);                                                                  \
			_tile_dpbsud(sums, 3, fields);                                                                           \
		}                                                                                                                \
	} while (0)

static void block_sums(const uint8_t *codes, uint32_t rows, uint32_t d_pad, uint32_t bits, const struct sig_query *queries,
                       uint32_t heads, size_t ahead, struct scan_sums *sums)
{
	(void)queries; // in their tiles
	(void)heads;
	_Alignas(64) uint8_t fields[2][MAX_TILES * 1024];
	const uint32_t words = d_pad * bits / 32, tiles = d_pad / 64;
	const size_t group_bytes = 64 * (size_t)words;
	for (uint32_t row = 0; row < rows; row += 2 * SIG_GROUP, codes += 2 * group_bytes) {
		const bool two = row + SIG_GROUP < rows;
		unpack(codes, words, bits, ahead, fields[0]);
		if (two)
			unpack(codes + group_bytes, words, bits, ahead, fields[1]);
		BARRIER();
		MULTIPLY(SUMS_A, FIELDS_A, fields[0], tiles);
		if (two)
			MULTIPLY(SUMS_B, FIELDS_B, fields[1], tiles);
		_tile_stored(SUMS_A, &sums->at[0][row], sizeof sums->at[0]);
		if (two)
			_tile_stored(SUMS_B, &sums->at[0][row + SIG_GROUP], sizeof sums->at[0]);
		BARRIER();
	}
}

// Below four heads, and in short runs, what it takes to set up and to feed tiles is more than they save (README.md).
static bool worthwhile(uint32_t rows, uint32_t heads)
{
	return heads >= 4 && rows * heads >= 1024;
}

static void sig_estimate_amx(const uint8_t *codes, const uint16_t *factors, uint32_t n, uint32_t d_pad, uint32_t bits,
                             const struct sig_query *queries, uint32_t heads, float *out, size_t ld)
{
	if (!worthwhile(n, heads)) {
		sig_estimate_avx512vnni(codes, factors, n, d_pad, bits, queries, heads, out, ld);
		return;
	}
	tiles_begin(queries, heads, d_pad);
	estimate_avx512(block_sums, codes, factors, n, d_pad, bits, queries, heads, out, ld);
	_tile_release();
}

static void sig_select_amx(const uint8_t *codes, const uint16_t *factors, uint32_t begin, uint32_t end, uint32_t d_pad,
                           uint32_t bits, const struct sig_query *queries, uint32_t heads, const float *noise,
                           struct sig_hits *hits, const uint8_t *rows, uint32_t stride, uint32_t row_bytes)
{
	if (!worthwhile(end - begin, heads)) {
		sig_select_avx512vnni(codes, factors, begin, end, d_pad, bits, queries, heads, noise, hits, rows, stride,
		                      row_bytes);
		return;
	}
	tiles_begin(queries, heads, d_pad);
	select_avx512(block_sums, codes, factors, begin, end, d_pad, bits, queries, heads, noise, hits, rows, stride, row_bytes);
	_tile_release();
}

void kernels_init_amx(struct kernels *k)
{
	k->isa = "avx512+vnni+amx";
	k->sig_estimate = sig_estimate_amx;
	k->sig_select = sig_select_amx;
}
