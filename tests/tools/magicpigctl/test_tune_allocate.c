// Time dealt out to layers, held against all assignments where these can be counted.
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "tests/lib/suite.h"
#include "tools/magicpigctl/tune_allocate.c"

enum { LAYERS = 4, WAYS = 5, ALL = WAYS * WAYS * WAYS * WAYS };

static uint64_t state;

static double uniform(void)
{
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (double)(state >> 11) / (double)(UINT64_C(1) << 53);
}

static void any_points(struct tune_point *points, bool holes)
{
	for (int i = 0; i < LAYERS * WAYS; i++) {
		points[i] = (struct tune_point){.ms = .1 + uniform(), .error2 = uniform() * uniform()};
		if (holes && i % WAYS && uniform() < .3)
			points[i].error2 = INFINITY;
	}
}

// Errors that fall ever slower with time, as budgets do.
static void convex_points(struct tune_point *points)
{
	for (int l = 0; l < LAYERS; l++) {
		double scale = exp(4 * uniform()), unit = .5 + uniform();
		for (int w = 0; w < WAYS; w++)
			points[l * WAYS + w] =
				(struct tune_point){.ms = unit * (w + 1), .error2 = scale * (1. / (w + 1) - 1. / WAYS)};
	}
}

// The least time for the error (or error for the time) of all assignments; infinite: none reaches it.
static double best(const struct tune_point *points, const struct tune_goal *goal)
{
	double least = INFINITY;
	for (int n = 0; n < ALL; n++) {
		int choice[LAYERS], rest = n;
		for (int l = 0; l < LAYERS; l++, rest /= WAYS)
			choice[l] = rest % WAYS;
		struct tune_total total = tune_total(points, LAYERS, WAYS, choice);
		if (goal->error2 > 0 ? total.error2 <= goal->error2 : total.ms <= goal->ms)
			least = fmin(least, goal->error2 > 0 ? total.ms : total.error2);
	}
	return least;
}

START_TEST(the_goal_is_reached_where_it_can_be)
{
	struct tune_point points[LAYERS * WAYS];
	int choice[LAYERS];
	state = (uint64_t)_i;
	any_points(points, _i % 2);
	for (int k = 1; k <= 20; k++) {
		struct tune_goal error = {.error2 = k / 40.}, time = {.ms = k / 5.};
		struct tune_total total;
		bool had = tune_allocate(points, LAYERS, WAYS, &error, choice);
		total = tune_total(points, LAYERS, WAYS, choice);
		ck_assert(!had || total.error2 <= error.error2);
		// Where some assignment reaches it, so does the one at which every layer errs least.
		ck_assert(had == isfinite(best(points, &error)));
		had = tune_allocate(points, LAYERS, WAYS, &time, choice);
		total = tune_total(points, LAYERS, WAYS, choice);
		ck_assert(!had || total.ms <= time.ms);
		ck_assert(had == isfinite(best(points, &time)));
		for (int l = 0; l < LAYERS; l++)
			ck_assert(isfinite(points[l * WAYS + choice[l]].error2));
	}
}
END_TEST

// Equal slopes are the best there is, up to one step of one layer.
START_TEST(it_is_the_best_up_to_a_step)
{
	struct tune_point points[LAYERS * WAYS];
	int choice[LAYERS];
	state = 1000 + (uint64_t)_i;
	convex_points(points);
	double step = 0, exact = 0;
	for (int l = 0; l < LAYERS; l++) {
		step = fmax(step, points[l * WAYS].ms);
		exact += points[l * WAYS].error2 / LAYERS;
	}
	for (int k = 1; k < 20; k++) {
		struct tune_goal goal = {.error2 = exact * k / 20};
		ck_assert(tune_allocate(points, LAYERS, WAYS, &goal, choice));
		ck_assert_double_le(tune_total(points, LAYERS, WAYS, choice).ms, best(points, &goal) + step + 1e-9);
	}
}
END_TEST

START_TEST(layers_that_need_more_get_more)
{
	// Both cost the same; the second layer errs ten times as much. A time for five steps in all.
	struct tune_point points[2 * 4];
	int choice[2];
	for (int w = 0; w < 4; w++) {
		points[w] = (struct tune_point){.ms = w + 1, .error2 = .01 / (w + 1)};
		points[4 + w] = (struct tune_point){.ms = w + 1, .error2 = .1 / (w + 1)};
	}
	ck_assert(tune_allocate(points, 2, 4, &(struct tune_goal){.ms = 5}, choice));
	ck_assert_int_eq(choice[0], 0);
	ck_assert_int_eq(choice[1], 3);
	ck_assert(tune_allocate(points, 2, 4, &(struct tune_goal){.error2 = .0301}, choice));
	ck_assert_int_eq(choice[0], 0);
	ck_assert_int_eq(choice[1], 1);
}
END_TEST

START_TEST(what_cannot_be_had_comes_as_near_as_can_be)
{
	struct tune_point points[4] = {{1, .5}, {2, .25}, {1, .5}, {3, .1}};
	int choice[2];
	ck_assert(!tune_allocate(points, 2, 2, &(struct tune_goal){.error2 = .01}, choice));
	ck_assert(choice[0] == 1 && choice[1] == 1);
	ck_assert(!tune_allocate(points, 2, 2, &(struct tune_goal){.ms = 1.5}, choice));
	ck_assert(choice[0] == 0 && choice[1] == 0);
	// Both: the least time for the error is 5, which is too long.
	ck_assert(!tune_allocate(points, 2, 2, &(struct tune_goal){.error2 = .18, .ms = 4}, choice));
	ck_assert(choice[0] == 1 && choice[1] == 1);
	ck_assert(tune_allocate(points, 2, 2, &(struct tune_goal){.error2 = .18, .ms = 5}, choice));
	// One way only.
	ck_assert(tune_allocate(points, 2, 1, &(struct tune_goal){.error2 = .5}, choice));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/magicpigctl/tune_allocate");
	TCase *t = tcase_create("allocate");
	tcase_add_loop_test(t, the_goal_is_reached_where_it_can_be, 0, 40);
	tcase_add_loop_test(t, it_is_the_best_up_to_a_step, 0, 40);
	tcase_add_test(t, layers_that_need_more_get_more);
	tcase_add_test(t, what_cannot_be_had_comes_as_near_as_can_be);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
