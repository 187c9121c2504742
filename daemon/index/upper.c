// The upper layer of a sealed segment: its codes once more in groups of sixteen rows that are alike, and for each group a signature of
// its centroid and how far its rows lie from that. README.md says what is made of it.
#include "daemon/index/upper.h"

#include <math.h>
#include <string.h>

enum {
	AXES = 64,    // principal axes that rows are compared along
	SAMPLE = 512, // rows that the axes are found from
	ROUNDS = 2,   // of subspace iteration
	PROBE = 64,   // rows that a direction to split along is found from
	STEPS = 2,    // of the power method for it
	CHUNK = 256,  // rows projected at a time
	AT_ONCE = SIG_MAX_HEADS,
	COORDINATE_MAX = 4095
};

struct upper upper_at(void *memory, uint32_t d_pad, uint32_t bits, uint32_t rows)
{
	struct upper u = {.rows = rows, .groups = (rows + SIG_GROUP - 1) / SIG_GROUP};
	size_t room = sig_upper_groups(rows);
	uint8_t *at = memory;
	u.summaries = at;
	at += room * (d_pad * SIG_UPPER_BITS / 8);
	u.codes = at;
	at += room * SIG_GROUP * (d_pad * bits / 8);
	u.factors = (uint16_t *)(void *)at;
	u.spreads = u.factors + room;
	u.row = u.spreads + room;
	u.code_factors = u.row + room * SIG_GROUP;
	return u;
}

// ---- the rows as their codes have them -------------------------------------------------------------------------------

struct source {
	const struct sig_run *run;
	uint32_t d_pad, bits, bytes; // bytes of a row
	float offset;                // of the levels
};

static const struct sig_run *run_of(const struct source *s, uint32_t *row)
{
	const struct sig_run *run = s->run;
	for (; *row >= run->rows; run++)
		*row -= run->rows;
	return run;
}

static void take_code(const struct source *s, const struct sig_run *run, uint32_t row, uint8_t *code)
{
	const uint8_t *group = run->codes + (size_t)(row / SIG_GROUP) * SIG_GROUP * s->bytes + row % SIG_GROUP * 4;
	for (uint32_t w = 0; w < s->bytes / 4; w++)
		memcpy(code + 4 * w, group + 64 * (size_t)w, 4);
}

// x[j] = g (code_j - offset), the row as it is estimated.
static void widen_code(const struct source *s, const uint8_t *restrict code, float g, float *restrict x)
{
	const uint8_t mask = (uint8_t)((1u << s->bits) - 1);
	for (uint32_t f = 0; f < 8 / s->bits; f++)
		for (uint32_t j = 0; j < s->bytes; j++)
			x[f * s->bytes + j] = g * ((float)(int32_t)(uint8_t)(code[j] >> s->bits * f & mask) - s->offset);
}

static void widen_row(const struct source *s, uint32_t row, float *x)
{
	uint8_t code[SIG_MAX_DIM / 2];
	const struct sig_run *run = run_of(s, &row);
	take_code(s, run, row, code);
	widen_code(s, code, f16_to_f32(run->factors[row]), x);
}

// ---- principal axes --------------------------------------------------------------------------------------------------

typedef float lanes __attribute__((vector_size(16)));
typedef int32_t whole __attribute__((vector_size(16)));

static lanes load(const float *x)
{
	lanes v;
	memcpy(&v, x, sizeof v);
	return v;
}

// n: a multiple of 8.
static float dot(const float *a, const float *b, uint32_t n)
{
	lanes even = {0}, odd = {0};
	for (uint32_t j = 0; j < n; j += 8) {
		even += load(a + j) * load(b + j);
		odd += load(a + j + 4) * load(b + j + 4);
	}
	even += odd;
	return (even[0] + even[2]) + (even[1] + even[3]);
}

static void add_scaled(float *restrict to, const float *restrict x, float by, uint32_t n)
{
	for (uint32_t j = 0; j < n; j++)
		to[j] += by * x[j];
}

static void centre(float *x, uint32_t n, uint32_t d)
{
	float mean[SIG_MAX_DIM] = {0};
	for (uint32_t i = 0; i < n; i++)
		add_scaled(mean, x + (size_t)i * d, 1, d);
	for (uint32_t i = 0; i < n; i++)
		add_scaled(x + (size_t)i * d, mean, -1 / (float)n, d);
}

// Gram and Schmidt; an axis that vanishes stays zero, and splits nothing.
static void orthonormalise(float *axis, uint32_t d)
{
	for (uint32_t a = 0; a < AXES; a++) {
		float *x = axis + (size_t)a * d, before = dot(x, x, d);
		for (uint32_t b = 0; b < a; b++)
			add_scaled(x, axis + (size_t)b * d, -dot(x, axis + (size_t)b * d, d), d);
		float left = dot(x, x, d);
		float scale = left > 1e-6f * before && isfinite(left) ? 1 / sqrtf(left) : 0;
		for (uint32_t j = 0; j < d; j++)
			x[j] = scale > 0 ? x[j] * scale : 0;
	}
}

// axis [AXES][d]: about the directions in which n rows x [n][d], which are centred, spread most. image: AXES x d.
static void find_axes(const float *x, uint32_t n, uint32_t d, float *axis, float *image)
{
	for (uint32_t a = 0; a < AXES; a++)
		memcpy(axis + (size_t)a * d, x + (size_t)(a * (uint64_t)n / AXES) * d, d * sizeof *axis);
	orthonormalise(axis, d);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		memset(image, 0, (size_t)AXES * d * sizeof *image);
		for (uint32_t i = 0; i < n; i++)
			for (uint32_t a = 0; a < AXES; a++)
				add_scaled(image + (size_t)a * d, x + (size_t)i * d,
				           dot(x + (size_t)i * d, axis + (size_t)a * d, d), d);
		memcpy(axis, image, (size_t)AXES * d * sizeof *axis);
		orthonormalise(axis, d);
	}
}

// Twice the largest coordinate of the sample.
static float largest_coordinate(const float *x, uint32_t n, uint32_t d, const float *axis)
{
	float most = 0;
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t a = 0; a < AXES; a++)
			most = fmaxf(most, fabsf(dot(x + (size_t)i * d, axis + (size_t)a * d, d)));
	return 2 * most;
}

static int16_t to_coordinate(float x, float per_unit)
{
	x *= per_unit;
	return (int16_t)(x > COORDINATE_MAX ? COORDINATE_MAX : x < -COORDINATE_MAX ? -COORDINATE_MAX : x);
}

// Coordinates of all rows along the axes, [row][AXES]: the scan's own kernel, with the axes for queries.
static void project(const struct kernels *k, const struct source *s, uint32_t rows, const float *axis, float most_seen,
                    int16_t *coordinate)
{
	int8_t q[AXES][SIG_MAX_DIM];
	struct sig_query query[AXES];
	float out[AT_ONCE * CHUNK];
	for (uint32_t a = 0; a < AXES; a++) {
		const float *x = axis + (size_t)a * s->d_pad;
		float most = 0;
		int32_t sum = 0;
		for (uint32_t j = 0; j < s->d_pad; j++)
			most = fmaxf(most, fabsf(x[j]));
		for (uint32_t j = 0; j < s->d_pad; j++) {
			q[a][j] = (int8_t)lrintf(most > 0 ? 127 * x[j] / most : 0);
			sum += q[a][j];
		}
		query[a] = (struct sig_query){.q = q[a], .factor = most / 127, .zero = s->offset * (float)sum};
	}
	const float per_unit = most_seen > 0 ? COORDINATE_MAX / most_seen : 0;
	uint32_t done = 0;
	for (const struct sig_run *run = s->run; done < rows; run++)
		for (uint32_t first = 0; first < run->rows && done < rows; first += CHUNK) {
			uint32_t n = run->rows - first < CHUNK ? run->rows - first : CHUNK;
			n = rows - done < n ? rows - done : n;
			for (uint32_t a = 0; a < AXES; a += AT_ONCE) {
				k->sig_estimate(run->codes + (size_t)first * s->bytes, run->factors + first, n, s->d_pad, s->bits,
				                query + a, AT_ONCE, out, CHUNK);
				for (uint32_t i = 0; i < n; i++)
					for (uint32_t b = 0; b < AT_ONCE; b++)
						coordinate[(size_t)(done + i) * AXES + a + b] =
							to_coordinate(out[b * CHUNK + i], per_unit);
			}
			done += n;
		}
}

// ---- order -----------------------------------------------------------------------------------------------------------

struct order {
	const int16_t *coordinate; // [row][AXES]
	uint16_t *row;
	int32_t *along;
};

// The direction in which rows [begin, begin + n) of the order spread most, about.
static void split_direction(const struct order *o, uint32_t begin, uint32_t n, int16_t *split)
{
	float x[PROBE * AXES], next[AXES], direction[AXES];
	uint32_t m = n < PROBE ? n : PROBE;
	memset(split, 0, AXES * sizeof *split);
	if (m < 2)
		return;
	for (uint32_t i = 0; i < m; i++) {
		const int16_t *from = o->coordinate + (size_t)o->row[begin + (uint32_t)((uint64_t)i * n / m)] * AXES;
		for (uint32_t a = 0; a < AXES; a++)
			x[i * AXES + a] = from[a];
	}
	centre(x, m, AXES);
	uint32_t far = 0;
	float most = -1;
	for (uint32_t i = 0; i < m; i++) {
		float size = dot(x + i * AXES, x + i * AXES, AXES);
		if (size > most) {
			most = size;
			far = i;
		}
	}
	memcpy(direction, x + far * AXES, AXES * sizeof *direction);
	for (uint32_t step = 0; step < STEPS && most > 0; step++) {
		memset(next, 0, sizeof next);
		for (uint32_t i = 0; i < m; i++)
			add_scaled(next, x + i * AXES, dot(x + i * AXES, direction, AXES), AXES);
		float size = dot(next, next, AXES), scale = size > 0 && isfinite(size) ? 1 / sqrtf(size) : 0;
		for (uint32_t j = 0; j < AXES; j++)
			direction[j] = next[j] * scale;
	}
	most = 0;
	for (uint32_t a = 0; a < AXES; a++)
		most = fmaxf(most, fabsf(direction[a]));
	for (uint32_t a = 0; a < AXES; a++)
		split[a] = to_coordinate(direction[a], most > 0 ? COORDINATE_MAX / most : 0);
}

// |a|, |b| <= COORDINATE_MAX: the sum is below 2^31.
static int32_t along(const int16_t *restrict a, const int16_t *restrict b)
{
	int32_t sum = 0;
	for (uint32_t j = 0; j < AXES; j++)
		sum += a[j] * b[j];
	return sum;
}

static void swap(struct order *o, uint32_t a, uint32_t b)
{
	int32_t along = o->along[a];
	uint16_t row = o->row[a];
	o->along[a] = o->along[b];
	o->row[a] = o->row[b];
	o->along[b] = along;
	o->row[b] = row;
}

// Rows [begin, end) so that none before `middle` lies further along than one from there on (Hoare's find).
static void divide(struct order *o, uint32_t begin, uint32_t end, uint32_t middle)
{
	int64_t low = begin, high = (int64_t)end - 1, at = middle;
	while (low < high) {
		int32_t pivot = o->along[at];
		int64_t i = low, j = high;
		do {
			while (o->along[i] < pivot)
				i++;
			while (pivot < o->along[j])
				j--;
			if (i <= j)
				swap(o, (uint32_t)i++, (uint32_t)j--);
		} while (i <= j);
		if (j < at)
			low = i;
		if (at < i)
			high = j;
	}
}

// Halves of whole groups until a group is left; ends with groups of sixteen but for the last.
static void bisect(struct order *o, uint32_t begin, uint32_t end)
{
	while (end - begin > SIG_GROUP) {
		uint32_t groups = (end - begin + SIG_GROUP - 1) / SIG_GROUP, middle = begin + (groups + 1) / 2 * SIG_GROUP;
		int16_t direction[AXES];
		split_direction(o, begin, end - begin, direction);
		for (uint32_t i = begin; i < end; i++)
			o->along[i] = along(o->coordinate + (size_t)o->row[i] * AXES, direction);
		divide(o, begin, end, middle);
		bisect(o, begin, middle);
		begin = middle;
	}
}

// ---- groups ----------------------------------------------------------------------------------------------------------

static void put_code(const struct upper *u, const struct source *s, uint32_t at, const uint8_t *code)
{
	uint8_t *group = u->codes + (size_t)(at / SIG_GROUP) * SIG_GROUP * s->bytes + at % SIG_GROUP * 4;
	for (uint32_t w = 0; w < s->bytes / 4; w++)
		memcpy(group + 64 * (size_t)w, code + 4 * w, 4);
}

static void fill_group(const struct upper *u, const struct source *s, uint32_t group)
{
	uint32_t first = group * SIG_GROUP, n = u->rows - first < SIG_GROUP ? u->rows - first : SIG_GROUP, d = s->d_pad;
	float mean[SIG_MAX_DIM] = {0}, x[SIG_MAX_DIM];
	double squares = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint8_t code[SIG_MAX_DIM / 2];
		uint32_t row = u->row[first + i];
		const struct sig_run *run = run_of(s, &row);
		take_code(s, run, row, code);
		put_code(u, s, first + i, code);
		u->code_factors[first + i] = run->factors[row];
		widen_code(s, code, f16_to_f32(run->factors[row]), x);
		add_scaled(mean, x, 1 / (float)n, d);
		squares += (double)dot(x, x, d);
	}
	double spread = (squares / n - (double)dot(mean, mean, d)) / d;
	u->spreads[group] = f32_to_f16((float)fmin(fmax(spread, 0), 65504));
	sig_encode_rotated(SIG_UPPER_BITS, mean, d, u->summaries, u->factors, group);
}

size_t upper_scratch_bytes(uint32_t d_pad, uint32_t rows)
{
	size_t sample = rows < SAMPLE ? rows : SAMPLE;
	return (sample + 2 * AXES) * d_pad * sizeof(float) + (size_t)rows * (AXES * sizeof(int16_t) + sizeof(int32_t));
}

void upper_build(const struct kernels *k, uint32_t d_pad, uint32_t bits, const struct sig_run *runs, uint32_t rows, void *memory,
                 void *scratch)
{
	struct source s = {.run = runs, .d_pad = d_pad, .bits = bits, .bytes = d_pad * bits / 8};
	s.offset = bits == 1 ? .5f : bits == 2 ? 1.5f : 7.5f;
	memset(memory, 0, sig_upper_bytes(d_pad, bits, rows));
	struct upper u = upper_at(memory, d_pad, bits, rows);
	uint32_t sample = rows < SAMPLE ? rows : SAMPLE;
	float *x = scratch, *axis = x + (size_t)sample * d_pad, *image = axis + (size_t)AXES * d_pad;
	int32_t *place = (int32_t *)(void *)(image + (size_t)AXES * d_pad);
	int16_t *coordinate = (int16_t *)(void *)(place + rows);
	for (uint32_t i = 0; i < sample; i++)
		widen_row(&s, (uint32_t)((uint64_t)i * rows / sample), x + (size_t)i * d_pad);
	centre(x, sample, d_pad);
	find_axes(x, sample, d_pad, axis, image);
	project(k, &s, rows, axis, largest_coordinate(x, sample, d_pad, axis), coordinate);
	struct order o = {coordinate, u.row, place};
	for (uint32_t i = 0; i < rows; i++)
		u.row[i] = (uint16_t)i;
	bisect(&o, 0, rows);
	for (uint32_t g = 0; g < u.groups; g++)
		fill_group(&u, &s, g);
}

static bool finite_halves(const uint16_t *h, uint32_t n)
{
	bool good = true;
	for (uint32_t i = 0; i < n; i++)
		good &= (h[i] & 0x7c00u) != 0x7c00u;
	return good;
}

bool upper_good(uint32_t d_pad, uint32_t bits, const void *memory, uint32_t rows)
{
	struct upper u = upper_at((void *)(uintptr_t)memory, d_pad, bits, rows);
	uint64_t seen[65536 / 64] = {0};
	for (uint32_t i = 0; i < rows; i++) {
		uint64_t bit = UINT64_C(1) << u.row[i] % 64;
		if (u.row[i] >= rows || seen[u.row[i] / 64] & bit)
			return false;
		seen[u.row[i] / 64] |= bit;
	}
	return finite_halves(u.factors, u.groups) && finite_halves(u.spreads, u.groups) && finite_halves(u.code_factors, rows);
}

// ---- a query against groups ------------------------------------------------------------------------------------------

void upper_weigh(float *restrict estimate, const float *restrict spread, uint32_t groups, float per_spread, float tau,
                 float *restrict most)
{
	const float add = UPPER_LOG_ROWS - tau;
	for (uint32_t i = 0; i < groups; i++) {
		float x = estimate[i] + (per_spread * spread[i] + add);
		x = x < 0 ? x : 0;
		estimate[i] = x;
		most[i] = x > most[i] ? x : most[i];
	}
}

void upper_draw(float *restrict log_p, const float *restrict noise, uint32_t groups, float tau, float *restrict nearest)
{
	const lanes none = (lanes){0} + INFINITY;
	uint32_t i = 0;
	for (; groups - i >= 4; i += 4) {
		lanes p = load(log_p + i), least = load(nearest + i);
		whole looked = p + load(noise + i) > 0;
		lanes x = (lanes)((looked & (whole)(p + tau)) | (~looked & (whole)none));
		whole below = x < least;
		least = (lanes)((below & (whole)x) | (~below & (whole)least));
		memcpy(log_p + i, &x, sizeof x);
		memcpy(nearest + i, &least, sizeof least);
	}
	for (; i < groups; i++) {
		log_p[i] = log_p[i] + noise[i] > 0 ? log_p[i] + tau : INFINITY;
		nearest[i] = fminf(nearest[i], log_p[i]);
	}
}
