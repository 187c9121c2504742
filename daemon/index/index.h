// Indexes over keys: one file per proposal's index. Pure functions on arrays: no pool, no lock, no clock.
#ifndef MPIG_INDEX_H
#define MPIG_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/rng.h"
#include "daemon/kernels/kernels.h"

// ---- random numbers --------------------------------------------------------------------------------------------------
// -log U with U = (j + .5)/M, j a fixed shuffle of 0..M-1, M = 2^20. A run of rows reads NOISE_PAD + consecutive entries from an
// offset that is uniform in [0, M); the table repeats its first NOISE_WRAP entries at the end so that no run wraps.
// Every U is therefore uniform over the M strata, and pi = P(estimate + noise > tau) is exact to 1/M.
#define NOISE_BITS 20u
#define NOISE_WRAP 8192u
const float *noise_table(void); // built on first use (thread-safe), never freed; NULL if out of memory
// Offset for one run: a hash of everything that must make runs independent, nothing that depends on the worker.
uint32_t noise_offset(uint64_t seed, uint64_t position, uint32_t layer, uint32_t kv_head, uint64_t first_row);

// ---- signature: balanced rotated codes (README.md) -------------------------------------------------------------------
#define SIG_MAX_DIM 256u // d_k and d_pad; d_pad is 64, 128 or 256
// Parameters of one strip: mu [d_k], balance a [d_k] (x_j = (k_j - mu_j) * a_j, q_j / a_j), rotation signs [3][d_pad].
struct sig_params {
	uint32_t d_k, d_pad, bits;
	const float *mu, *balance;
	const float *signs;
};
// Balance from key spread and query size: a_j = sqrt((rms_q_j + .3 mean rms_q) / (std_k_j + .05 mean std_k)), then one common
// factor so that the mean of x_j^2 over the keys is 1. queries may be NULL (count 0): rms_q is taken flat.
// mu, balance [d_k] are written. keys: n rows of d_k fp32 (skip the sinks: pass them out). n >= 1.
void sig_fit(const struct kernels *k, const float *keys, size_t n, const float *queries, size_t query_count, uint32_t d_k,
             float *mu, float *balance);
void sig_signs(uint64_t seed, uint32_t layer, uint32_t kv_head, uint32_t d_pad, float *signs); // [3][d_pad] of +-1
// Bytes of codes of `rows` rows (whole groups of 16).
size_t sig_code_bytes(uint32_t d_pad, uint32_t bits, uint32_t rows);
// Encodes one key into row `row` of a code array and its factor: g = |x|^2 / <level, x>. scratch: d_pad floats.
void sig_encode(const struct kernels *k, const struct sig_params *p, const float *key, uint8_t *codes, uint16_t *factors,
                uint32_t row, float *scratch);
// Keys [n][d_k] into rows `row` to row + n - 1; the same codes, whole groups at a time where the machine can.
void sig_encode_rows(const struct kernels *k, const struct sig_params *p, const float *keys, uint32_t n, uint8_t *codes,
                     uint16_t *factors, uint32_t row);
// Of bf16 keys, `stride` bytes apart.
void sig_encode_bf16(const struct kernels *k, const struct sig_params *p, const void *keys, size_t stride, uint32_t n,
                     uint8_t *codes, uint16_t *factors, uint32_t row);
// The last step of it: x [d_pad] is balanced and rotated already.
void sig_encode_rotated(uint32_t bits, const float *x, uint32_t d_pad, uint8_t *codes, uint16_t *factors, uint32_t row);
// Standard deviation of an estimate's error, over g |q'| layer scale, for keys and rotations as the README assumes: at 1, 2 and 4 bits.
float sig_noise(uint32_t bits);
// The width (1, 2 or 4 bits) at which answers of the same error are cheapest (README.md), from what was seen at another.
struct sig_use {
	uint32_t d_pad, bits; // of the codes that were used
	uint32_t heads;       // query heads that share a scan
	uint32_t row_bytes;   // of K and V
	double rows;          // that are scanned
	double drawn;         // rows that one query head's answer drew (not certain ones)
	double noise;         // deviation of estimated from true logits
};
double sig_cost(const struct sig_use *use, uint32_t bits); // of one answer of the group, in bytes of a scan
uint32_t sig_best_bits(const struct sig_use *use); // a wider one only if it is cheaper; 0 if a number of use is not finite
// The same before there are answers, measured: how far estimates at each width are from true logits, and how many rows an answer
// without noise would draw.
struct sig_sample {
	struct sig_params params; // bits are ignored
	const float *keys;        // [n + near][d_k]: n evenly spread over the rows, then those that a client attends itself
	uint32_t n, near;
	double rows; // that the first n stand for
	const float *queries;
	uint32_t query_count; // >= 1
	float scale, softcap;
	uint32_t heads, row_bytes;
	double eps, floor_rows, cap_rows; // rows by error,
	double budget_rows;               // or, if eps is 0, so many
};
bool sig_width_costs(const struct kernels *k, const struct sig_sample *sample,
                     double cost[3]); // at 1, 2, 4 bits; false without memory
// Widths of n strips that an answer reads one by one, from their costs (one that is not finite: not known, 2 bits): the cheapest of each, and
// if their rows are more than `limit` bytes in the mean (0: no limit), narrower where that costs least for the bytes it saves. 1 bit
// is the least there is.
void sig_choose_widths(const double (*cost)[3], uint32_t n, uint32_t d_pad, uint32_t limit, uint8_t *bits);
// Query side: q [d_k] fp32 -> out [d_pad] int8 and its scale (max |q'| / 127, round to nearest even), and q.mu.
// This is the reference for the GPU kernel: same operations, same order.
void sig_encode_query(const struct kernels *k, const struct sig_params *p, const float *q, int8_t *out, float *scale, float *q_mu,
                      float *scratch);

// What a scan needs of a query in its signature. factor: layer scale * the signature's scale; bias: layer scale * q.mu.
struct sig_query sig_query_of(const struct sig_params *p, const int8_t *signature, float factor, float bias);
// q.mu alone, for queries that came with a signature: in double and four sums (j mod 4), so that it is the same number.
float sig_query_mu(const float *q, const float *mu, uint32_t d_k);

// ---- threshold -------------------------------------------------------------------------------------------------------
// tau with repeat * sum_i min(1, exp(s_i - tau)) = budget rows, from n pilot estimates each standing for `repeat` rows. w is
// scratch of n floats. budget >= all rows, n = 0, only -inf, or any NaN or +inf among the estimates: -inf (every row whose
// estimate is finite is certain). budget <= 0 or NaN: +inf (no row).
float tau_for_budget(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double budget, float *w);
// The largest tau whose relative variance (e^tau T - Q) / Z^2 <= eps^2 (to .001 in tau, never above), clamped so that the
// expected rows lie in [floor, cap] (a floor above the cap is the cap). exact_lse: LSE of what the client attends exactly (-inf
// or NaN: none). Pilot rows that are certain count once in Z. Where Z is not monotone in tau, some tau at which the variance
// crosses eps^2. eps <= 0 or NaN: the cap. Unusable estimates as above.
float tau_for_error(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double eps, float exact_lse,
                    double floor_rows, double cap_rows, float *w);
// The largest tau with e^tau <= share Z, where Z is the mass by the same count as above: a row that would hold more than `share` of it is
// certain. The variance of the mass then is at most share Z^2, and a row more would lower it by the same in every head for which `share` is
// the same. Clamps, exact_lse and unusable estimates as above; share <= 0 or NaN: the cap.
// *variance, if not NULL: what relative_variance says of the result with variance_lse, for a few sums more instead of all the exponentials again.
float tau_for_share(const struct kernels *k, const float *estimates, uint32_t n, double repeat, double share, float exact_lse,
                    double floor_rows, double cap_rows, float *w, float variance_lse, double *variance);

// What the sampling at `tau` adds to the mass, by the same closed form: variance over Z^2. 0 where every row is certain or the
// estimates are unusable.
double relative_variance(const struct kernels *k, const float *estimates, uint32_t n, double repeat, float exact_lse, float tau,
                         float *w);
// The rows of a floor given as a share: share * rows up to BUDGET_LINEAR_ROWS, beyond that share * sqrt(BUDGET_LINEAR_ROWS * rows).
#define BUDGET_LINEAR_ROWS 98304u
double floor_rows(double share, uint64_t rows);

// ---- selection -------------------------------------------------------------------------------------------------------
// The k largest of n: x[i] > value, or x[i] == value and i < end, so that among equals the first are taken and there are exactly
// k (all if k >= n). A NaN is never taken. O(n).
struct cut {
	float value;
	uint64_t end;
};
struct cut cut_largest(const float *x, uint64_t n, uint64_t k);

// ---- hash tables: MagicPIG's rule (arXiv 2410.16179) over a locality-sensitive hash ----------------------------------
// One segment of one strip: L tables, each the row ids (u16, ascending inside a bucket) sorted by bucket, and 2^K + 1 starts
// (u32). A row is chosen iff it shares the query's bucket in at least two of the L tables. What is hashed is x = (k - mu) * a, or k - mu
// without a balance; a query is hashed as q / a, or as it is.
struct table_params {
	uint32_t hash; // enum mpig_table_hash; cross-polytope: K = log2(2 d_pad)
	uint32_t d_k, d_pad, K, L;
	const float *mu;      // [d_k]
	const float *balance; // [d_k] or NULL
	const float *vectors; // of the hash: table_vectors
};
// Random numbers of L hashes: SimHash [L * K][d_k] Gaussian directions, cross-polytope [L][3][d_pad] signs of rotations.
size_t table_vector_count(const struct table_params *p);
void table_vectors(uint64_t seed, const struct table_params *p, float *vectors);
size_t table_bytes(uint32_t K, uint32_t L, uint32_t rows); // ids, starts, norms: everything table_build writes
// Builds into `table` (64-byte aligned, table_bytes). keys: rows x d_k fp32, rows <= 65,536. scratch: rows * L u16.
// Also stores |x| per row (fp32), for the cosine.
void table_build(const struct kernels *k, const struct table_params *p, const float *keys, uint32_t rows, void *table,
                 uint16_t *scratch);
// Buckets of n queries [n][d_k]: ids [n][L].
void table_hash(const struct kernels *k, const struct table_params *p, const float *q, uint32_t n, uint16_t *ids);
// Marks the rows of [begin, end) in >= 2 of the query's L buckets: bit i % 64 of twice[i / 64]. once, twice: ceil(rows / 64) words, zero
// on entry; `once` is zero on return as well.
void table_lookup(const struct table_params *p, const void *table, uint32_t rows, const uint16_t *ids, uint32_t begin,
                  uint32_t end, uint64_t *once, uint64_t *twice);
// Of bytes from elsewhere: every row id is below `rows`, every run inside its table, every norm a finite number.
bool table_good(const void *table, uint32_t K, uint32_t L, uint32_t rows);
const float *table_norms(const void *table, uint32_t K, uint32_t L, uint32_t rows);

// log(u + 1e-4) with u = 1 - (1-P)^L - L P (1-P)^(L-1), from the probability P that one table puts both in a bucket.
double log_pi_of_collision(double P, uint32_t L);
// P of two vectors at an angle: (1 - angle/pi)^K, or from crosspolytope_log_p.
double table_collision(uint32_t hash, uint32_t d_pad, uint32_t K, double angle);
// log P at angles i pi / CROSSPOLYTOPE_STEPS, for d_pad 64, 128, 256.
#define CROSSPOLYTOPE_STEPS 128u
extern const float crosspolytope_log_p[3][CROSSPOLYTOPE_STEPS + 1];
// log pi by cosine (clamped to [-1, 1]; NaN is 0). Where u > 1e-4: |error| <= 1e-4 for SimHash, 1e-3 for cross-polytope, whose tabulated p
// is itself known to 1 % where it is .002.
struct table_pi {
	float node[4097];
};
void table_pi_init(struct table_pi *t, const struct table_params *p);
float table_pi_get(const struct table_pi *t, float cosine);

// The hashes themselves, for table_build and table_hash: n vectors x [n][d_k], of which vector r goes into bucket
// ids[t * table_step + r * vector_step] of table t.
struct table_hasher {
	void (*keys)(const struct kernels *k, const struct table_params *p, const float *x, uint32_t n, uint16_t *ids,
	             size_t table_step, size_t vector_step);
	void (*queries)(const struct kernels *k, const struct table_params *p, const float *x, uint32_t n, uint16_t *ids,
	                size_t table_step, size_t vector_step);
	void (*vectors)(struct rng *rng, const struct table_params *p, float *vectors);
	size_t (*vector_count)(const struct table_params *p);
};
extern const struct table_hasher simhash, crosspolytope;

#endif
