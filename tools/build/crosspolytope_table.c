// Makes daemon/index/crosspolytope_table.c: the probability that two unit vectors at an angle share a cross-polytope bucket (index and
// sign of the coordinate of largest size), over rotations. It has no usable closed form at these dimensions, so it is counted. A
// uniform rotation of a fixed pair is the same as a fixed frame and a random pair: x uniform, z uniform orthogonal to it, y = x cos + z sin.
// `make crosspolytope-table` runs it; the same seed gives the same file on every machine.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/base/rng.h"
#include "daemon/index/index.h"

enum { PAIRS = 4000000, SEED = 20, MAX_DIM = 256, NODES = CROSSPOLYTOPE_STEPS + 1 };

static uint64_t hits[NODES];

static void count_pair(const float *x, const float *z, uint32_t d, const float *cosine, const float *sine)
{
	uint32_t top = 0;
	for (uint32_t i = 1; i < d; i++)
		top = fabsf(x[i]) > fabsf(x[top]) ? i : top;
	float side = x[top] < 0 ? -1 : 1;
	for (uint32_t node = 0; node < NODES; node++)
		for (int turn = -1; turn <= 1; turn += 2) { // both senses are pairs at this angle
			float c = cosine[node], s = (float)turn * sine[node], most = 0;
			float own = side * (c * x[top] + s * z[top]);
			if (own <= 0)
				continue;
			for (uint32_t i = 0; i < d; i++) {
				float y = fabsf(c * x[i] + s * z[i]);
				most = y > most ? y : most;
			}
			hits[node] += own >= most;
		}
}

static void count(uint32_t d)
{
	struct rng rng = {rng_hash(SEED, d)};
	float x[MAX_DIM], z[MAX_DIM], cosine[NODES], sine[NODES];
	memset(hits, 0, sizeof(hits));
	for (uint32_t i = 0; i < NODES; i++) {
		cosine[i] = (float)cos(i * M_PI / CROSSPOLYTOPE_STEPS);
		sine[i] = (float)sin(i * M_PI / CROSSPOLYTOPE_STEPS);
	}
	for (uint32_t pair = 0; pair < PAIRS; pair++) {
		double xx = 0, xz = 0, zz = 0;
		rng_gaussian(&rng, x, d);
		rng_gaussian(&rng, z, d);
		for (uint32_t i = 0; i < d; i++) {
			xx += (double)x[i] * (double)x[i];
			xz += (double)x[i] * (double)z[i];
			zz += (double)z[i] * (double)z[i];
		}
		double along = xz / xx, scale = sqrt(xx / (zz - xz * along));
		for (uint32_t i = 0; i < d; i++)
			z[i] = (float)(((double)z[i] - along * (double)x[i]) * scale);
		count_pair(x, z, d, cosine, sine);
		if (pair % 100000 == 0)
			fprintf(stderr, "\rd = %3u: %2u %%", d, pair / (PAIRS / 100));
	}
	fprintf(stderr, "\rd = %3u: done\n", d);
}

int main(void)
{
	printf("// Made by tools/build/crosspolytope_table.c (%d pairs in both senses, seed %d): `make crosspolytope-table`.\n",
	       PAIRS, SEED);
	puts("#include \"daemon/index/index.h\"\n\n// clang-format off");
	printf("const float crosspolytope_log_p[3][CROSSPOLYTOPE_STEPS + 1] = {\n");
	for (uint32_t d = 64; d <= MAX_DIM; d *= 2) {
		count(d);
		printf("\t{ // d_pad = %u", d);
		for (uint32_t i = 0; i < NODES; i++) {
			double p = hits[i] ? (double)hits[i] / (2. * PAIRS) : .25 / PAIRS;
			printf("%s%#.6gf,", i % 12 ? " " : "\n\t ", log(p) == 0 ? 0. : log(p) + 0.);
		}
		puts("\n\t},");
	}
	puts("};");
	return 0;
}
