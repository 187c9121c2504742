// kill -9 at every point: a child works on a pool and dies just before or after a change of metadata or a system call; the parent
// reads the file by the format alone. What was committed is there, whole; what was not, is not; every record is valid and no
// byte has two owners.
#include <fcntl.h>
#include <sys/stat.h>

#include "tests/lib/figures.h"
#include "tests/lib/suite.h"
#include "tests/store/crash.h"

// ---- the parent ------------------------------------------------------------------------------------------------------

static void check_context(struct walk *w, const struct walk_context *c, void *arg)
{
	int *found = arg, i = 0;
	while (i < SLOTS && strcmp(report->slot[i].name, c->record->name))
		i++;
	must(i < SLOTS);
	const struct told *t = &report->slot[i];
	must(t->existed || t->exists);
	found[i]++;
	uint64_t committed = c->record->committed;
	must(committed == t->committed || committed == t->will_be);
	for (uint64_t at = 0; at < committed; at += at % 5 + 1) {
		must(*(const uint32_t *)walk_find(w, c, at, UINT32_MAX) == (uint32_t)t->tags[at]);
		for (uint32_t s = 0; s < c->strips; s++)
			must(row_is(walk_find(w, c, at, s), (uint32_t)walk_stride(&c->layer[c->strip_layer[s]]), t->tags[at], s));
	}
}

static void examine(void)
{
	char path[96];
	struct stat st;
	snprintf(path, sizeof path, "%s/node0.pool", f.dir);
	int fd = open(path, O_RDONLY);
	must(fd >= 0 && fstat(fd, &st) == 0);
	unsigned char *base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	must(base != MAP_FAILED);
	struct walk w;
	int found[SLOTS] = {0};
	walk_pool(&w, base, (uint64_t)st.st_size, check_context, found);
	for (int i = 0; i < SLOTS; i++)
		must(found[i] <= 1 && (found[i] || !report->slot[i].existed || !report->slot[i].exists));
	must(w.reached <= (uint64_t)st.st_blocks * 512); // all that is reachable is backed by memory
	walk_free(&w);
	munmap(base, (size_t)st.st_size);
	close(fd);
}

START_TEST(killed_at_any_point)
{
	crash_open();
	uint64_t seed = 1000 + (uint64_t)_i, k = 1 + (uint64_t)_i, runs = 0;
	int finished = 0;
	uint64_t stride = getenv("MPIG_LONG") ? 1 : 41; // odd: kills before and after alternate
	for (; !finished; k += stride, runs++) {
		fixture_open(&f, 64 << 20, 0, 0); // inherited by the child, so that the dead leave nothing behind
		finished = run(seed, k);
		examine();
		fixture_close(&f);
	}
	ck_assert_uint_gt(runs, 15);
	figures_add("crash.store", (double)runs - 1);
	ck_assert_uint_gt(report->points.publications, 300);
	ck_assert_uint_gt(report->points.calls, 100);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("crash");
	TCase *t = tcase_create("crash");
	tcase_set_timeout(t, getenv("MPIG_LONG") ? 1800 : 120);
	tcase_add_loop_test(t, killed_at_any_point, 0, 6);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
