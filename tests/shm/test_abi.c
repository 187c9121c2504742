// The records as another compiler, language or GPU kernel must see them, and the copies of enumerations kept together.
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "shm/abi.h"
#include "shm/control.h"
#include "shm/stats.h"
#include "shm/status.h"
#include "tests/lib/public_enums.h"
#include "tests/lib/suite.h"

const char *mpig_strerror(int status); // magicpig.h, which is not to be seen here

struct field {
	const char *name;
	size_t offset, size, want_offset, want_size;
};
// clang-format off
#define F(type, field, offset, size) \
	{#type "." #field, offsetof(struct type, field), sizeof(((struct type *)0)->field), offset, size}

static const struct field fields[] = {
	F(mpig_sqe, op, 0, 1), F(mpig_sqe, flags, 1, 1), F(mpig_sqe, layer, 2, 2), F(mpig_sqe, handle, 4, 4),
	F(mpig_sqe, user_data, 8, 8), F(mpig_sqe, slot, 16, 4), F(mpig_sqe, count, 20, 4), F(mpig_sqe, begin, 24, 8),
	F(mpig_sqe, end, 32, 8), F(mpig_sqe, seed, 40, 8), F(mpig_sqe, budget, 48, 4), F(mpig_sqe, proposal, 52, 1),
	F(mpig_sqe, dtype, 53, 1), F(mpig_sqe, reserved0, 54, 2), F(mpig_sqe, reserved1, 56, 8),

	F(mpig_cqe, user_data, 0, 8), F(mpig_cqe, status, 8, 4), F(mpig_cqe, slot, 12, 4), F(mpig_cqe, committed, 16, 8),
	F(mpig_cqe, rows_read, 24, 8), F(mpig_cqe, bytes_read, 32, 8), F(mpig_cqe, service_ns, 40, 8),
	F(mpig_cqe, signature_version, 48, 4), F(mpig_cqe, units, 52, 4), F(mpig_cqe, sequence, 56, 8),

	F(mpig_slot_header, causal_base, 0, 8), F(mpig_slot_header, present, 8, 4),
	F(mpig_slot_header, signature_version, 12, 4),
	F(mpig_slot_header, error_target, 16, 4), F(mpig_slot_header, budget_floor, 20, 4),
	F(mpig_slot_header, budget_cap, 24, 4),
	F(mpig_slot_header, query_count, 28, 4), F(mpig_slot_header, query_position, 32, 8),
	F(mpig_slot_header, delta, 40, 4), F(mpig_slot_header, reserved, 44, 84),

	F(mpig_queue_header, magic, 0, 4), F(mpig_queue_header, abi_version, 4, 4), F(mpig_queue_header, features, 8, 8),
	F(mpig_queue_header, region_bytes, 16, 8), F(mpig_queue_header, entries, 24, 4), F(mpig_queue_header, slot_count, 28, 4),
	F(mpig_queue_header, slot_bytes, 32, 8), F(mpig_queue_header, sq_offset, 40, 8), F(mpig_queue_header, cq_offset, 48, 8),
	F(mpig_queue_header, slots_offset, 56, 8), F(mpig_queue_header, epoch, 64, 8), F(mpig_queue_header, reserved0, 72, 56),
	F(mpig_queue_header, sq_tail, 128, 4), F(mpig_queue_header, reserved1, 132, 124),
	F(mpig_queue_header, cq_head, 256, 4),
	F(mpig_queue_header, cq_waiting, 260, 4), F(mpig_queue_header, reserved2, 264, 120),
	F(mpig_queue_header, sq_head, 384, 4),
	F(mpig_queue_header, sq_flags, 388, 4), F(mpig_queue_header, reserved3, 392, 120), F(mpig_queue_header, cq_tail, 512, 4),
	F(mpig_queue_header, cq_brief, 516, 4), F(mpig_queue_header, reserved4, 520, 120), F(mpig_queue_header, awake_until, 640, 8),
	F(mpig_queue_header, sq_silent, 648, 4), F(mpig_queue_header, reserved5, 652, 116),
	F(mpig_queue_header, reserved6, 768, 3328),

	F(mpig_control_header, magic, 0, 4), F(mpig_control_header, version, 4, 2), F(mpig_control_header, op, 6, 2),
	F(mpig_control_header, size, 8, 4), F(mpig_control_header, tag, 12, 4), F(mpig_control_header, status, 16, 4),
	F(mpig_control_header, reserved, 20, 4),
};
// clang-format on

START_TEST(fields_lie_where_they_are_drawn)
{
	const struct field *f = &fields[_i];
	ck_assert_msg(f->offset == f->want_offset && f->size == f->want_size, "%s at %zu size %zu, want %zu size %zu", f->name,
	              f->offset, f->size, f->want_offset, f->want_size);
}
END_TEST

START_TEST(records_have_their_sizes)
{
	ck_assert_uint_eq(sizeof(struct mpig_sqe), 64);
	ck_assert_uint_eq(sizeof(struct mpig_cqe), 64);
	ck_assert_uint_eq(sizeof(struct mpig_slot_header), 128);
	ck_assert_uint_eq(sizeof(struct mpig_queue_header), 4096);
	ck_assert_uint_eq(sizeof(struct mpig_control_header), 24);
	ck_assert_uint_eq(sizeof(struct mpig_wire_layer), 64);
	ck_assert_uint_eq(sizeof(struct mpig_wire_context) % 8, 0);
	ck_assert_uint_eq(sizeof(struct mpig_stats) % 64, 0);
	ck_assert_uint_eq(sizeof(struct mpig_stats_worker) % 64, 0);
}
END_TEST

// The numbers themselves: a renumbering would compile everywhere and break every client that is already built.
START_TEST(enumerators_keep_their_numbers)
{
	ck_assert_int_eq(MPIG_OP_NOP, 0);
	ck_assert_int_eq(MPIG_OP_ATTEND, 1);
	ck_assert_int_eq(MPIG_OP_APPEND, 2);
	ck_assert_int_eq(MPIG_OP_COMMIT, 3);
	ck_assert_int_eq(MPIG_OP_TRUNCATE, 4);
	ck_assert_int_eq(MPIG_OP_READ, 5);
	ck_assert_int_eq(MPIG_SQE_END_RELATIVE, 1);
	ck_assert_int_eq(MPIG_SQE_SEED_SEQUENCE, 2);
	ck_assert_int_eq(MPIG_SQE_CAUSAL, 4);
	ck_assert_int_eq(MPIG_SQE_SEAL, 8);
	ck_assert_int_eq(MPIG_SQE_FLAGS, 15);
	ck_assert_int_eq(MPIG_HAS_WINDOW_LSE, 1);
	ck_assert_int_eq(MPIG_HAS_SIGNATURE, 2);
	ck_assert_int_eq(MPIG_HAS_QUERIES, 4);
	ck_assert_int_eq(MPIG_HAS_WINDOW_OUT, 8);
	ck_assert_int_eq(MPIG_PRESENT_FLAGS, 15);
	ck_assert_int_eq(MPIG_SQ_NEED_WAKEUP, 1);
	ck_assert_int_eq(MPIG_SQ_CLOSED, 2);
	ck_assert_uint_eq(MPIG_QUEUE_MAGIC, 0x5147504d);
	ck_assert_uint_eq(MPIG_CONTROL_MAGIC, 0x4347504d);
}
END_TEST

static void same_enums(const struct public_enum *copy, const struct public_enum *ours, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		ck_assert_msg(copy[i].name != NULL, "magicpig.h lacks %s", ours[i].name);
		ck_assert_str_eq(copy[i].name, ours[i].name);
		ck_assert_msg(copy[i].value == ours[i].value, "%s is %d in magicpig.h, %d in shm/", copy[i].name, copy[i].value,
		              ours[i].value);
	}
	ck_assert_msg(copy[count].name == NULL, "shm/ lacks %s", copy[count].name);
}

START_TEST(public_statuses_are_the_same)
{
	static const struct public_enum ours[] = {
#define X(name, value, text) {"MPIG_" #name, MPIG_##name},
		MPIG_STATUS_LIST(X)
#undef X
	};
	same_enums(public_statuses, ours, sizeof(ours) / sizeof(ours[0]));
}
END_TEST

// clang-format off
#define E(name) {#name, name}
// clang-format on
START_TEST(public_element_types_proposals_and_kinds_are_the_same)
{
	static const struct public_enum dtypes[] = {E(MPIG_F32), E(MPIG_BF16), E(MPIG_F16), E(MPIG_I8)};
	static const struct public_enum proposals[] = {
		E(MPIG_PROPOSAL_DEFAULT),        E(MPIG_PROPOSAL_DENSE),         E(MPIG_PROPOSAL_SIGNATURE),
		E(MPIG_PROPOSAL_PAPER),          E(MPIG_PROPOSAL_TOPK),          E(MPIG_PROPOSAL_UNIFORM),
		E(MPIG_PROPOSAL_TOPK_ESTIMATED), E(MPIG_PROPOSAL_HEAVY_UNIFORM), E(MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED),
		E(MPIG_PROPOSAL_WINDOW),         E(MPIG_PROPOSAL_CROSSPOLYTOPE)};
	static const struct public_enum hashes[] = {E(MPIG_HASH_SIMHASH), E(MPIG_HASH_CROSSPOLYTOPE)};
	static const struct public_enum kinds[] = {E(MPIG_LAYER_GLOBAL), E(MPIG_LAYER_SLIDING), E(MPIG_LAYER_CHUNKED)};
	ck_assert_uint_eq(sizeof(dtypes) / sizeof(dtypes[0]), MPIG_DTYPE_COUNT);
	ck_assert_uint_eq(sizeof(proposals) / sizeof(proposals[0]), MPIG_PROPOSAL_COUNT);
	ck_assert_uint_eq(sizeof(kinds) / sizeof(kinds[0]), MPIG_LAYER_KIND_COUNT);
	same_enums(public_dtypes, dtypes, MPIG_DTYPE_COUNT);
	same_enums(public_proposals, proposals, MPIG_PROPOSAL_COUNT);
	same_enums(public_layer_kinds, kinds, MPIG_LAYER_KIND_COUNT);
	same_enums(public_table_hashes, hashes, MPIG_HASH_COUNT);
}
END_TEST

START_TEST(every_status_has_a_name_and_a_text)
{
	static const struct {
		int value;
		const char *name, *text;
	} all[] = {
#define X(name, value, text) {value, "MPIG_" #name, text},
		MPIG_STATUS_LIST(X)
#undef X
	};
	int count = (int)(sizeof(all) / sizeof(all[0]));
	for (int i = 0; i < count; i++) {
		ck_assert_int_eq(all[i].value, -i); // dense: a new one goes to the end
		ck_assert_str_eq(mpig_status_name(all[i].value), all[i].name);
		ck_assert_str_eq(mpig_status_text(all[i].value), all[i].text);
		ck_assert_str_eq(mpig_strerror(all[i].value), all[i].text);
	}
	static const int unknown[] = {1, 1000, 0x7fffffff, -1000, -0x7fffffff - 1};
	for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		ck_assert_str_eq(mpig_status_text(unknown[i]), "unknown status");
		ck_assert_str_eq(mpig_status_name(unknown[i]), "MPIG_UNKNOWN");
	}
	ck_assert_str_eq(mpig_status_text(-count), "unknown status");
}
END_TEST

// Offsets of the payload's parts for one shape of each operation, worked out by hand.
START_TEST(payloads_are_laid_out_as_drawn)
{
	static const struct mpig_layer_shape shape = {.query_heads = 9, .kv_heads = 3, .d_k = 80, .d_v = 64};
	struct mpig_payload_layout l = mpig_attend_layout(&shape, 2, MPIG_BF16, MPIG_HAS_SIGNATURE | MPIG_HAS_WINDOW_LSE);
	ck_assert_uint_eq(l.q, 128);
	ck_assert_uint_eq(l.signature, 128 + 2880);        // 18 heads * 80 * 2 bytes
	ck_assert_uint_eq(l.signature_scale, 3008 + 2304); // 18 * 128 int8
	ck_assert_uint_eq(l.window_lse, 5312 + 128);       // 18 * 4, up to 64
	ck_assert_uint_eq(l.out, 5440 + 128);
	ck_assert_uint_eq(l.lse, 5568 + 4608); // 18 * 64 * 4
	ck_assert_uint_eq(l.error_v, 10176 + 128);
	ck_assert_uint_eq(l.error_a, 10304 + 128);
	ck_assert_uint_eq(l.rows, 10432 + 128);
	ck_assert_uint_eq(l.bytes, 10560 + 128);
	l = mpig_attend_layout(&shape, 1, MPIG_F32, 0);
	ck_assert_uint_eq(l.signature, 0);
	ck_assert_uint_eq(l.window_lse, 0);
	ck_assert_uint_eq(l.out, 128 + 2880); // 9 * 80 * 4
	l = mpig_append_layout(&shape, 5, MPIG_F16, 7);
	ck_assert_uint_eq(l.k, 128);
	ck_assert_uint_eq(l.v, 128 + 2432);        // 15 * 80 * 2 = 2400
	ck_assert_uint_eq(l.queries, 2560 + 1920); // 15 * 64 * 2
	ck_assert_uint_eq(l.bytes, 4480 + 10112);  // 7 * 9 * 80 * 2 = 10080
	ck_assert_uint_eq(mpig_append_layout(&shape, 5, MPIG_F16, 0).queries, 0);
	ck_assert_uint_eq(mpig_commit_layout(17).tokens, 128);
	ck_assert_uint_eq(mpig_commit_layout(17).bytes, 256);
	ck_assert_uint_eq(mpig_read_layout(&shape, 1).v, 128 + 960);
	ck_assert_uint_eq(mpig_read_layout(&shape, 1).bytes, 1088 + 768);
}
END_TEST

START_TEST(the_largest_payload_does_not_overflow)
{
	static const struct mpig_layer_shape shape = {MPIG_MAX_HEADS, MPIG_MAX_HEADS, MPIG_MAX_HEAD_DIM, MPIG_MAX_HEAD_DIM};
	struct mpig_payload_layout l = mpig_attend_layout(&shape, MPIG_MAX_QUERY_TOKENS, MPIG_F32, MPIG_PRESENT_FLAGS);
	ck_assert_uint_gt(l.bytes, UINT64_C(4096) * 256 * (256 * 9));
	ck_assert_uint_gt(mpig_append_layout(&shape, UINT32_MAX, MPIG_F32, UINT32_MAX).bytes,
	                  UINT64_C(3) * UINT32_MAX * 256 * 256 * 4 - 1);
	ck_assert_uint_gt(mpig_commit_layout(UINT32_MAX).bytes, UINT64_C(4) * UINT32_MAX);
}
END_TEST

START_TEST(padded_dimensions)
{
	static const uint32_t dims[][2] = {{1, 64},   {64, 64},   {65, 128},  {80, 128},
	                                   {96, 128}, {128, 128}, {129, 256}, {256, 256}};
	for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
		ck_assert_uint_eq(mpig_padded_dim(dims[i][0]), dims[i][1]);
	ck_assert_uint_eq(mpig_dtype_bytes(MPIG_F32), 4);
	ck_assert_uint_eq(mpig_dtype_bytes(MPIG_BF16), 2);
	ck_assert_uint_eq(mpig_dtype_bytes(MPIG_F16), 2);
	ck_assert_uint_eq(mpig_dtype_bytes(MPIG_I8), 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("shm/abi");
	TCase *records = tcase_create("records"), *enums = tcase_create("enumerations"), *payloads = tcase_create("payloads");
	tcase_add_loop_test(records, fields_lie_where_they_are_drawn, 0, (int)(sizeof(fields) / sizeof(fields[0])));
	tcase_add_test(records, records_have_their_sizes);
	suite_add_tcase(suite, records);
	tcase_add_test(enums, enumerators_keep_their_numbers);
	tcase_add_test(enums, public_statuses_are_the_same);
	tcase_add_test(enums, public_element_types_proposals_and_kinds_are_the_same);
	tcase_add_test(enums, every_status_has_a_name_and_a_text);
	suite_add_tcase(suite, enums);
	tcase_add_test(payloads, payloads_are_laid_out_as_drawn);
	tcase_add_test(payloads, the_largest_payload_does_not_overflow);
	tcase_add_test(payloads, padded_dimensions);
	suite_add_tcase(suite, payloads);
	return suite_run(suite);
}
