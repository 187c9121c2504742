// The kernel tables this machine can run, plain C first: what is tested is tested on all of them.
#ifndef MPIG_TESTS_ISAS_H
#define MPIG_TESTS_ISAS_H

#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "daemon/kernels/kernels.h"

enum { ISAS_MAX = 5 };

static inline uint32_t isas(struct kernels table[ISAS_MAX])
{
	const uint32_t steps[] = {CPU_AVX2, CPU_AVX2 | CPU_AVX512, CPU_AVX2 | CPU_AVX512 | CPU_AVX512_VNNI, UINT32_MAX};
	uint32_t have = cpu_features(), last = 0, count = 1;
	kernels_init_c(&table[0]);
	for (uint32_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		uint32_t features = have & steps[i];
		if (features == last)
			continue;
		kernels_init(&table[count++], features, NULL, 0);
		last = features;
	}
	return count;
}

static inline void *need(void *p)
{
	ck_assert_ptr_nonnull(p);
	return p;
}

static inline float *floats(size_t n)
{
	return need(calloc(n + 1, sizeof(float)));
}

// One suite, one case, a minute for every test.
static inline int run_tests(const char *name, const TTest *const *tests, size_t count)
{
	Suite *suite = suite_create(name);
	TCase *tcase = tcase_create(name);
	tcase_set_timeout(tcase, 60);
	for (size_t i = 0; i < count; i++)
		tcase_add_test(tcase, tests[i]);
	suite_add_tcase(suite, tcase);
	SRunner *runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	int failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
#define RUN_TESTS(name, ...)                                                                                                     \
	run_tests(name, (const TTest *const[]){__VA_ARGS__}, sizeof((const TTest *const[]){__VA_ARGS__}) / sizeof(TTest *))

#endif
