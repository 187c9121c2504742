// In which order an answer is written: the last element of a head's output comes last (shm/abi.h), for whoever looks at it meanwhile. It lies at the beginning of a
// page that must not be written, so that the test sees the slot as it is just before.
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/lib/engine_fixture.h"
#include "tests/lib/suite.h"

enum { D = 256, QUERY_HEADS = 8, KV_HEADS = 2, ROWS = 2048, PAGE = 4096 };

static struct fixture f;
static struct mpig_payload_layout layout;
static uint8_t *page, *seen, *slot; // seen: the slot as it was when `page` was to be written
static int faults;

static void page_is_written(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	faults++;
	if (info->si_addr == page && faults == 1)
		memcpy(seen, f.slot, layout.bytes);
	else
		faults = 100;
	mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

static void setup(void)
{
	struct mpig_layer_shape shape = {QUERY_HEADS, KV_HEADS, D, D};
	struct sigaction action = {.sa_sigaction = page_is_written, .sa_flags = SA_SIGINFO};
	fixture_start(&f, UINT64_C(64) << 20, UINT32_MAX);
	layout = mpig_attend_layout(&shape, 1, MPIG_F32, 0);
	slot = f.slot;
	f.slot += PAGE - (layout.out + D * 4 - 4) % PAGE;
	page = f.slot + layout.out + D * 4 - 4;
	ck_assert_uint_gt(layout.lse, layout.out + D * 4 - 4 + PAGE); // only outputs lie in it
	ck_assert_ptr_nonnull(seen = calloc(1, layout.bytes));
	ck_assert_int_eq(sigaction(SIGSEGV, &action, NULL), 0);
	faults = 0;
}

static void teardown(void)
{
	signal(SIGSEGV, SIG_DFL);
	f.slot = slot;
	free(seen);
	fixture_stop(&f);
}

static uint32_t word_seen(uint64_t at)
{
	uint32_t word;
	memcpy(&word, seen + at, sizeof(word));
	return word;
}

// _i: each way of choosing rows that needs no tables.
START_TEST(the_last_element_comes_last)
{
	static const uint8_t proposals[] = {MPIG_PROPOSAL_DENSE,
	                                    MPIG_PROPOSAL_SIGNATURE,
	                                    MPIG_PROPOSAL_TOPK,
	                                    MPIG_PROPOSAL_UNIFORM,
	                                    MPIG_PROPOSAL_HEAVY_UNIFORM,
	                                    MPIG_PROPOSAL_WINDOW,
	                                    0};
	const bool verified = !proposals[_i];
	struct mpig_wire_layer layer = fixture_layer(QUERY_HEADS, KV_HEADS, D, MPIG_BF16);
	layer.signature_bits = 2;
	const size_t count = (size_t)ROWS * KV_HEADS * D;
	float *k = malloc(count * 4), *v = malloc(count * 4), q[QUERY_HEADS * D];
	fill_normal(k, count, 1, 1);
	fill_normal(v, count, 2, 1);
	fill_normal(q, QUERY_HEADS * D, 3, 1);
	struct context *c = fixture_context(&f, "x", &layer, 1, 7);
	ck_assert_int_eq(fixture_append(&f, c, 0, 0, ROWS, k, v, NULL, 0).status, 0);
	ck_assert_int_eq(fixture_commit(&f, c, 0, ROWS, true).status, 0);
	const struct mpig_sqe e = {.op = MPIG_OP_ATTEND,
	                           .count = 1,
	                           .flags = MPIG_SQE_END_RELATIVE,
	                           .budget = verified ? 0 : .1f,
	                           .proposal = verified ? MPIG_PROPOSAL_SIGNATURE : proposals[_i]};
	const struct mpig_slot_header header = {.error_target = verified ? .1f : 0, .delta = verified ? .1f : 0};
	memcpy(f.slot + layout.q, q, sizeof(q));
	memset(f.slot + layout.out, 0xee, layout.bytes - layout.out);
	ck_assert_int_eq(mprotect(page, PAGE, PROT_READ), 0);
	const struct engine_result result = fixture_run(&f, c, &e, &header);
	ck_assert_msg(result.status == 0, "%s", result.why);
	ck_assert_int_eq(faults, 1);
	ck_assert_uint_eq(word_seen(layout.out + D * 4 - 4), 0xeeeeeeee);
	for (uint64_t at = 0; at < D * 4 - 4; at += 4)
		ck_assert_uint_ne(word_seen(layout.out + at), 0xeeeeeeee);
	ck_assert_uint_ne(word_seen(layout.lse), 0xeeeeeeee);
	ck_assert_uint_ne(word_seen(layout.error_v), 0xeeeeeeee);
	ck_assert_uint_ne(word_seen(layout.error_a), 0xeeeeeeee);
	ck_assert_uint_ne(word_seen(layout.rows), 0xeeeeeeee);
	ck_assert_mem_eq(seen + layout.out, f.slot + layout.out, D * 4 - 4);
	ck_assert_mem_ne(page, seen + layout.out + D * 4 - 4, 4);
	context_unref(c);
	free(k);
	free(v);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("attend");
	TCase *t = tcase_create("order");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, the_last_element_comes_last, 0, 7);
	suite_add_tcase(suite, t);
	return suite_run(suite);
}
