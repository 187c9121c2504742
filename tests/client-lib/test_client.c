// Connection and control: what the library says and does when the daemon is absent, other, slow, gone or new.
#include "tests/client-lib/fixture.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

START_TEST(nobody_there)
{
	mpig_client *c = (mpig_client *)1;
	struct mpig_connect_options o = {.size = sizeof(o), .socket_path = "/tmp/mpig-no-such-dir/x.sock"};
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_ENODAEMON);
	ck_assert_ptr_eq(c, (mpig_client *)1); // outputs only on success
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "/tmp/mpig-no-such-dir/x.sock"));
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "MAGICPIG_SOCKET"));
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "magicpigd"));
	fixture_kill(); // leaves the socket file
	o.socket_path = fixture_path;
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_ENODAEMON);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "nobody listens"));
}
END_TEST

START_TEST(socket_from_the_environment)
{
	mpig_client *c;
	setenv("MAGICPIG_SOCKET", fixture_path, 1);
	ck_assert_int_eq(mpig_connect(NULL, &c), MPIG_OK);
	ck_assert_int_eq(mpig_ping(c), MPIG_OK);
	ck_assert_str_eq(mpig_last_error(c), "");
	mpig_disconnect(c);
}
END_TEST

START_TEST(no_permission)
{
	mpig_client *c;
	struct mpig_connect_options o = {.size = sizeof(o), .socket_path = fixture_path};
	if (geteuid() == 0) { // root passes every mode; another uid does not
		ck_assert_int_eq(chmod(fixture_dir, 0700), 0);
		ck_assert_int_eq(setresuid(65534, 65534, 65534), 0);
	} else {
		ck_assert_int_eq(chmod(fixture_path, 0), 0);
	}
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_EACCES);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "permission"));
}
END_TEST

START_TEST(bad_connect_options)
{
	mpig_client *c;
	struct mpig_connect_options o = {.size = 0};
	char path[200];
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_EINVAL);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "MPIG_INIT"));
	memset(path, 'a', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	o = (struct mpig_connect_options){.size = sizeof(o), .socket_path = path};
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_EINVAL);
	struct {
		struct mpig_connect_options known;
		uint64_t of_a_newer_header;
	} newer = {.known = {.size = sizeof(newer), .socket_path = fixture_path}};
	newer.of_a_newer_header = 1;
	ck_assert_int_eq(mpig_connect(&newer.known, &c), MPIG_ENOTSUP);
	newer.of_a_newer_header = 0;
	ck_assert_int_eq(mpig_connect(&newer.known, &c), MPIG_OK);
	mpig_disconnect(c);
}
END_TEST

START_TEST(other_versions)
{
	mpig_client *c;
	struct mpig_connect_options o = {.size = sizeof(o), .socket_path = fixture_path};
	fixture_fake->abi_version = 77;
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_EVERSION);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "77")); // both versions
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "has 1"));
	fixture_fake->control_version = 9;
	ck_assert_int_eq(mpig_connect(&o, &c), MPIG_EVERSION);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(NULL), "control version 9"));
}
END_TEST

START_TEST(mute_and_garbled_daemons)
{
	mpig_client *c = fixture_connect(60, 1000);
	atomic_store(&fixture_fake->mute, true);
	ck_assert_int_eq(mpig_ping(c), MPIG_ETIMEDOUT);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "60 ms"));
	atomic_store(&fixture_fake->mute, false);
	ck_assert_int_eq(mpig_ping(c), MPIG_OK); // a late answer would be told by its tag
	atomic_store(&fixture_fake->garble, true);
	ck_assert_int_eq(mpig_ping(c), MPIG_EPROTO);
	atomic_store(&fixture_fake->garble, false);
	ck_assert_int_eq(mpig_ping(c), MPIG_OK); // on a new connection
	mpig_disconnect(c);
}
END_TEST

// An answer that comes after its caller gave up must not be taken for the next one's.
START_TEST(late_answers_are_skipped)
{
	mpig_client *c = fixture_connect(60, 1000);
	pthread_mutex_lock(&fixture_fake->lock); // the daemon stands still
	ck_assert_int_eq(mpig_ping(c), MPIG_ETIMEDOUT);
	mpig_queue *q = NULL;
	ck_assert_int_eq(mpig_queue_create(c, NULL, &q), MPIG_ETIMEDOUT);
	pthread_mutex_unlock(&fixture_fake->lock);
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_int_eq(mpig_daemon_status(c, &status), MPIG_OK);
	ck_assert_uint_eq(status.workers, 5);
	ck_assert_uint_eq(status.epoch, 100);
	ck_assert_str_eq(status.version, "fake");
	ck_assert_int_eq(mpig_ping(c), MPIG_OK);
	ck_assert_uint_eq(atomic_load(&fixture_fake->regions), 1);
	ck_assert_uint_eq(atomic_load(&fixture_fake->destroyed), 1); // the queue nobody waited for was given back
	mpig_disconnect(c);
}
END_TEST

START_TEST(configuration_text)
{
	mpig_client *c = fixture_connect(0, 0);
	char text[64], little[8];
	ck_assert_int_eq(mpig_daemon_config(c, text, sizeof(text)), 20);
	ck_assert_str_eq(text, "server.workers = 5\n\n");
	ck_assert_int_eq(mpig_daemon_config(c, little, sizeof(little)), 20);
	ck_assert_str_eq(little, "server.");
	ck_assert_int_eq(mpig_daemon_config(c, NULL, 0), 20);
	mpig_disconnect(c);
}
END_TEST

START_TEST(specs_name_field_and_limit)
{
	static const struct {
		struct mpig_layer layer;
		const char *field;
	} cases[] = {
		{{.query_heads = 0, .kv_heads = 1, .d_k = 64}, "layers[1].query_heads = 0"},
		{{.query_heads = 300, .kv_heads = 1, .d_k = 64}, "query_heads = 300: must be 1..256"},
		{{.query_heads = 6, .kv_heads = 4, .d_k = 64}, "kv_heads = 4: must divide"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 100}, "d_k = 100: must be 64, 80, 96, 128 or 256"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .d_v = 1}, "d_v = 1"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .signature_bits = 3}, "signature_bits = 3"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .paper_k = 10}, "paper_l = 0"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .paper_k = 17, .paper_l = 10}, "paper_k = 17: must be 1..16"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .default_budget = 1.5f}, "default_budget = 1.5"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .default_proposal = MPIG_PROPOSAL_PAPER}, "PAPER needs"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .default_proposal = MPIG_PROPOSAL_CROSSPOLYTOPE},
	         "CROSSPOLYTOPE needs"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .table_hash = MPIG_HASH_CROSSPOLYTOPE}, "need tables"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .table_hash = MPIG_HASH_CROSSPOLYTOPE, .paper_k = 8, .paper_l = 28},
	         "must be 0"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .table_hash = 2, .paper_k = 8, .paper_l = 28}, "table_hash = 2"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .table_balance = 1}, "need tables"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .table_balance = 2, .paper_k = 8, .paper_l = 28},
	         "table_balance = 2"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .default_proposal = MPIG_PROPOSAL_TOPK_ESTIMATED},
	         "estimates need"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .default_proposal = MPIG_PROPOSAL_HEAVY_UNIFORM_ESTIMATED},
	         "estimates need"},
		{{.query_heads = 4, .kv_heads = 2, .d_k = 64, .row_dtype = 9}, "row_dtype = 9"},
		{{.kind = 5}, "kind = 5"},
	};
	mpig_client *c = fixture_connect(0, 0);
	unsigned before = atomic_load(&fixture_fake->control_count);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mpig_layer layers[2] = {fixture_layers[0], cases[i].layer};
		struct mpig_spec spec = {.size = sizeof(spec), .layer_count = 2, .layers = layers};
		mpig_context *x = NULL;
		ck_assert_int_eq(mpig_context_create(c, "x", &spec, &x), MPIG_EINVAL);
		ck_assert_ptr_null(x);
		ck_assert_msg(strstr(mpig_last_error(c), cases[i].field) != NULL, "case %zu: '%s'", i, mpig_last_error(c));
	}
	mpig_context *x;
	char name[200];
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	ck_assert_int_eq(mpig_context_create(c, name, &fixture_spec, &x), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_create(c, "a/b", &fixture_spec, &x), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_create(c, "", &fixture_spec, &x), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_create(c, "bell\a", &fixture_spec, &x), MPIG_EINVAL);
	ck_assert_uint_eq(atomic_load(&fixture_fake->control_count), before); // the daemon was not bothered
	mpig_disconnect(c);
}
END_TEST

START_TEST(contexts_by_name_and_prefix)
{
	mpig_client *writer = fixture_connect(0, 0), *reader = fixture_connect(0, 0);
	mpig_context *x = fixture_create(writer, "book"), *again, *y;
	ck_assert_int_eq(mpig_context_create(writer, "book", &fixture_spec, &again), MPIG_EEXIST);
	ck_assert_str_eq(mpig_last_error(writer), "that name is taken: open it, or choose another"); // the daemon's own words
	mpig_queue *q = fixture_queue(writer, 0, 0, 0);
	ck_assert_int_eq(fixture_append(q, x, 0, 300), MPIG_OK);
	ck_assert_int_eq(fixture_commit(q, x, 0, 300, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(x), 300);

	struct mpig_open_options o = {.size = sizeof(o), .mode = MPIG_WRITE};
	ck_assert_int_eq(mpig_context_open(reader, "book", &o, &y), MPIG_EBUSY);
	ck_assert_int_eq(mpig_context_open(reader, "other", NULL, &y), MPIG_ENOENT);
	ck_assert_int_eq(mpig_context_open(reader, "book", NULL, &y), MPIG_OK);
	ck_assert_str_eq(mpig_context_name(y), "book");
	ck_assert_uint_eq(mpig_context_committed(y), 300);
	mpig_context_close(y);

	uint32_t *tokens = fixture_tokens(400);
	uint64_t matched = 0;
	tokens[250] ^= 1;
	ck_assert_int_eq(mpig_context_open_prefix(reader, tokens, 400, NULL, &y, &matched), MPIG_EINVAL); // no fingerprint
	o = (struct mpig_open_options){.size = sizeof(o), .fingerprint = "a model", .fingerprint_bytes = 7, .min_tokens = 251};
	ck_assert_int_eq(mpig_context_open_prefix(reader, tokens, 400, &o, &y, &matched), MPIG_ENOENT);
	o.min_tokens = 0;
	o.fingerprint = "another"; // same length, other bytes
	ck_assert_int_eq(mpig_context_open_prefix(reader, tokens, 400, &o, &y, &matched), MPIG_ENOENT);
	o.fingerprint = "a model";
	ck_assert_int_eq(mpig_context_open_prefix(reader, tokens, 400, &o, &y, &matched), MPIG_OK);
	ck_assert_uint_eq(matched, 250);
	ck_assert_str_eq(mpig_context_name(y), "book");
	o.fork_name = "branch";
	ck_assert_int_eq(mpig_context_open_prefix(reader, tokens, 400, &o, &again, NULL), MPIG_OK);
	ck_assert_str_eq(mpig_context_name(again), "branch");
	ck_assert_uint_eq(mpig_context_committed(again), 250);
	ck_assert_int_eq(mpig_context_fork(y, "twig", 100, &again), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(again), 100);
	free(tokens);

	struct mpig_context_info info = MPIG_INIT(struct mpig_context_info);
	ck_assert_int_eq(mpig_context_info(reader, "twig", &info), MPIG_OK);
	ck_assert_uint_eq(info.committed, 100);
	ck_assert_uint_eq(info.size, sizeof(info));
	struct mpig_layer layers[2];
	ck_assert_int_eq(mpig_context_layers(reader, "twig", layers, 2), 3);
	ck_assert_int_eq(layers[0].default_proposal, MPIG_PROPOSAL_SIGNATURE);
	ck_assert_int_eq(layers[0].d_v, 64);
	ck_assert_int_eq(layers[1].kind, MPIG_LAYER_SLIDING);
	ck_assert_int_eq(layers[1].window, 512);
	ck_assert_int_eq(mpig_context_drop(reader, "twig"), MPIG_OK);
	ck_assert_int_eq(mpig_context_drop(reader, "twig"), MPIG_ENOENT);
	ck_assert_int_eq(mpig_context_chmod(reader, "book", 0777, UINT32_MAX, UINT32_MAX), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_chmod(reader, "book", 0640, UINT32_MAX, UINT32_MAX), MPIG_OK);
	mpig_disconnect(writer);
	mpig_disconnect(reader);
}
END_TEST

// A daemon that takes no number is not given one, and others no more than they and this library know.
START_TEST(lists_are_as_long_as_both_take)
{
	static const struct {
		unsigned offered, asked;
	} daemons[] = {{0, 0}, {1000, 160}, {100, 100}, {0, 0}};
	struct mpig_context_info info = {.size = sizeof(info)};
	mpig_client *c = NULL;
	for (size_t i = 0; i < sizeof(daemons) / sizeof(daemons[0]); i++) {
		if (i) { // goes over to another daemon of another version
			fixture_kill();
			fixture_start(200 + i);
		}
		atomic_store(&fixture_fake->list_page, daemons[i].offered);
		atomic_store(&fixture_fake->list_asked, 9999);
		c = c ? c : fixture_connect(0, 0);
		uint64_t cursor = 0;
		ck_assert_int_eq(mpig_context_list(c, &cursor, &info, 1), 0);
		ck_assert_uint_eq(atomic_load(&fixture_fake->list_asked), daemons[i].asked);
	}
	mpig_disconnect(c);
}
END_TEST

// Pages of the daemon (3 here) and of the caller need not agree; records of an older header are smaller.
START_TEST(lists_in_pages)
{
	mpig_client *c = fixture_connect(0, 0);
	char name[16];
	for (int i = 0; i < 7; i++) {
		snprintf(name, sizeof(name), "c%d", i);
		fixture_create(c, name);
	}
	for (int max = 1; max <= 8; max++) {
		struct mpig_context_info infos[8];
		uint64_t cursor = 0;
		int seen = 0, n;
		infos[0].size = sizeof(infos[0]);
		while ((n = mpig_context_list(c, &cursor, infos, max)) > 0)
			for (int i = 0; i < n; i++, seen++) {
				snprintf(name, sizeof(name), "c%d", seen);
				ck_assert_str_eq(infos[i].name, name);
			}
		ck_assert_int_eq(n, 0);
		ck_assert_int_eq(seen, 7);
	}
	struct { // the first two fields only
		size_t size;
		char name[128];
	} old[4] = {{.size = sizeof(old[0])}};
	uint64_t cursor = 0;
	ck_assert_int_eq(mpig_context_list(c, &cursor, (struct mpig_context_info *)(void *)old, 3), 3);
	ck_assert_str_eq(old[2].name, "c2");
	ck_assert_uint_eq(old[3].size, 0);
	mpig_disconnect(c);
}
END_TEST

START_TEST(heads_come_in_pages)
{
	fixture_fake->heads = 7; // three of their pages
	struct mpig_head heads[8] = {{.size = sizeof(heads[0])}};
	mpig_client *c = fixture_connect(0, 0);
	for (int max = 0; max <= 8; max++) {
		memset(heads + 1, 0xee, sizeof(heads) - sizeof(heads[0]));
		ck_assert_int_eq(mpig_context_heads(c, "any", max ? heads : NULL, max), 7);
		for (int i = 0; i < max && i < 7; i++) {
			ck_assert_uint_eq(heads[i].size, sizeof(heads[0]));
			ck_assert_int_eq(heads[i].layer, i / 2);
			ck_assert_int_eq(heads[i].kv_head, i % 2);
			ck_assert_uint_eq(heads[i].samples, (unsigned)i);
			ck_assert_uint_eq(heads[i].best_bits, 4);
			ck_assert_float_eq(heads[i].noise, (float)i / 4);
		}
		if (max < 8)
			ck_assert_int_eq(heads[max ? max : 1].layer, (int)0xeeeeeeee); // not one too many
	}
	ck_assert_int_eq(mpig_context_heads(c, "any", NULL, 1), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_heads(c, "any", heads, -1), MPIG_EINVAL);
	ck_assert_int_eq(mpig_context_heads(c, "", heads, 8), MPIG_EINVAL);
	heads[0].size = 4;
	ck_assert_int_eq(mpig_context_heads(c, "any", heads, 8), MPIG_EINVAL);
	heads[0].size = sizeof(heads[0]);
	fixture_fake->heads_more = 1; // says one more than it sends
	ck_assert_int_eq(mpig_context_heads(c, "any", heads, 8), MPIG_EPROTO);
	fixture_fake->heads_more = 0, fixture_fake->heads_shift = 1;
	ck_assert_int_eq(mpig_context_heads(c, "any", heads, 8), MPIG_EPROTO);
	fixture_fake->heads_shift = 0, fixture_fake->heads = MPIG_MAX_LAYERS * MPIG_MAX_HEADS + 1;
	ck_assert_int_eq(mpig_context_heads(c, "any", heads, 8), MPIG_EPROTO);
	mpig_disconnect(c);
}
END_TEST

START_TEST(daemon_gone_for_good)
{
	mpig_client *never = fixture_connect(0, -1), *a_while = fixture_connect(0, 50);
	fixture_kill();
	ck_assert_int_eq(mpig_ping(never), MPIG_ENODAEMON);
	ck_assert_int_eq(mpig_ping(a_while), MPIG_ENODAEMON);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(a_while), "nobody listens"));
	mpig_queue *q;
	ck_assert_int_eq(mpig_queue_create(a_while, NULL, &q), MPIG_ENODAEMON);
	mpig_disconnect(never);
	mpig_disconnect(a_while);
}
END_TEST

START_TEST(restart_reopens_contexts)
{
	mpig_client *c = fixture_connect(0, 3000);
	mpig_context *kept = fixture_create(c, "kept"), *lost = fixture_create(c, "lost"),
		     *replaced = fixture_create(c, "replaced");
	mpig_queue *q = fixture_queue(c, 8, 4, 65536);
	ck_assert_int_eq(fixture_append(q, kept, 0, 50), MPIG_OK);
	ck_assert_int_eq(fixture_commit(q, kept, 0, 50, 0), MPIG_OK);
	fixture_kill();
	for (int i = 0; i < FAKE_MAX; i++) { // the new daemon has lost one and has another of the same name
		struct fake_context *x = &fixture_store->contexts[i];
		if (x->live && !strcmp(x->name, "lost"))
			x->live = false;
		if (x->live && !strcmp(x->name, "replaced"))
			x->id = 1000;
	}
	fixture_start(101);
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	ck_assert_int_eq(mpig_daemon_status(c, &status), MPIG_OK);
	ck_assert_uint_eq(status.epoch, 101);
	ck_assert_int_eq(fixture_append(q, kept, 50, 10), MPIG_OK); // handle and lease are as before
	ck_assert_int_eq(fixture_commit(q, kept, 50, 10, 0), MPIG_OK);
	ck_assert_uint_eq(mpig_context_committed(kept), 60);
	ck_assert_uint_eq(atomic_load(&fixture_fake->adoptions), 1); // in the old region
	ck_assert_int_eq(fixture_append(q, lost, 0, 1), MPIG_ELOST);
	ck_assert_int_eq(fixture_append(q, replaced, 0, 1), MPIG_ELOST);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "'replaced'"));
	mpig_disconnect(c);
}
END_TEST

// What a new daemon could not open for a reason that passes is tried again, by every call that names it; other reasons stay.
START_TEST(what_a_full_daemon_refused_is_tried_again)
{
	static const int passing[] = {MPIG_ENOMEM, MPIG_ELIMIT, MPIG_EBUSY, MPIG_EAGAIN};
	mpig_client *c = fixture_connect(0, 100);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 8, 4, 65536);
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	uint64_t epoch = 101;
	ck_assert_int_eq(fixture_append(q, x, 0, 20), MPIG_OK);
	ck_assert_int_eq(fixture_commit(q, x, 0, 20, 0), MPIG_OK);
	for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++) {
		uint64_t end = mpig_context_committed(x);
		ck_assert_int_eq(fixture_append(q, x, end, 5), MPIG_OK);
		fixture_kill();
		fixture_start(epoch++);
		atomic_store(&fixture_fake->refuse_open, passing[i]);
		ck_assert_int_eq(mpig_daemon_status(c, &status), MPIG_OK); // the rest of the connection serves
		ck_assert_int_eq(mpig_nop(q), MPIG_OK);
		ck_assert_int_eq(fixture_append(q, x, end, 1), passing[i]);
		ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "'book'"));
		ck_assert_ptr_nonnull(strstr(mpig_last_error(c), "the fake daemon is full"));
		ck_assert_int_eq(fixture_append(q, x, end, 1), passing[i]);
		atomic_store(&fixture_fake->refuse_open, 0);
		ck_assert_int_eq(fixture_append(q, x, end, 5), passing[i] == MPIG_EBUSY ? MPIG_ELEASE : MPIG_OK);
		if (passing[i] == MPIG_EBUSY) { // the lease seemed to be another's: open it again to write
			mpig_context_close(x);
			struct mpig_open_options o = {.size = sizeof(o), .mode = MPIG_WRITE};
			ck_assert_int_eq(mpig_context_open(c, "book", &o, &x), MPIG_OK);
			continue;
		}
		ck_assert_int_eq(fixture_commit(q, x, end, 5, 0), MPIG_ERETRY); // of the rows that went with the daemon
		ck_assert_int_eq(fixture_append(q, x, end, 5), MPIG_OK);
		ck_assert_int_eq(fixture_commit(q, x, end, 5, 0), MPIG_OK);
	}
	fixture_kill();
	fixture_start(epoch++);
	atomic_store(&fixture_fake->refuse_open, MPIG_EACCES);
	ck_assert_int_eq(mpig_daemon_status(c, &status), MPIG_OK);
	atomic_store(&fixture_fake->refuse_open, 0);
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_EACCES);
	mpig_disconnect(c);
}
END_TEST

// Another daemon that is full no more, one that does not answer, and one that lost the context meanwhile.
START_TEST(trying_again_meets_another_daemon)
{
	mpig_client *c = fixture_connect(50, 2000);
	mpig_context *x = fixture_create(c, "book"), *gone = fixture_create(c, "gone");
	mpig_queue *q = fixture_queue(c, 8, 4, 65536);
	fixture_kill();
	fixture_start(101);
	atomic_store(&fixture_fake->refuse_open, MPIG_ENOMEM);
	ck_assert_int_eq(mpig_ping(c), MPIG_OK);
	fixture_kill();
	fixture_start(102);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK); // connects, and opens both
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_OK);
	fixture_kill();
	fixture_start(103);
	atomic_store(&fixture_fake->refuse_open, MPIG_ENOMEM);
	ck_assert_int_eq(mpig_nop(q), MPIG_ERETRY);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	atomic_store(&fixture_fake->mute, true);
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_ETIMEDOUT);
	atomic_store(&fixture_fake->mute, false);
	atomic_store(&fixture_fake->refuse_open, 0);
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_OK);
	for (int i = 0; i < FAKE_MAX; i++)
		if (!strcmp(fixture_store->contexts[i].name, "gone"))
			fixture_store->contexts[i].live = false;
	ck_assert_int_eq(fixture_append(q, gone, 0, 1), MPIG_ELOST);
	ck_assert_int_eq(fixture_append(q, gone, 0, 1), MPIG_ELOST);
	mpig_disconnect(c);
}
END_TEST

START_TEST(lease_taken_meanwhile)
{
	mpig_client *c = fixture_connect(0, 200);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 8, 4, 65536);
	fixture_kill();
	fixture_start(101);
	mpig_client *other = fixture_connect(0, 0);
	struct mpig_open_options o = {.size = sizeof(o), .mode = MPIG_WRITE};
	mpig_context *y;
	ck_assert_int_eq(mpig_context_open(other, "book", &o, &y), MPIG_OK);
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_ERETRY); // went to the dead daemon's ring
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_ELEASE);
	mpig_disconnect(c);
	mpig_disconnect(other);
}
END_TEST

static int child_verdict(mpig_client *c, mpig_queue *q, mpig_context *x)
{
	struct mpig_completion done;
	struct mpig_daemon_status status = MPIG_INIT(struct mpig_daemon_status);
	mpig_context *y;
	mpig_queue *p;
	float row[128] = {0};
	int ok = mpig_ping(c) == MPIG_EFORK && mpig_nop(q) == MPIG_EFORK && mpig_poll(q, &done, 1) == MPIG_EFORK &&
	         mpig_submit_nop(q, 0) == MPIG_EFORK && mpig_wait(q, 1, 0) == MPIG_EFORK &&
	         mpig_truncate(q, x, 0) == MPIG_EFORK && mpig_append(q, x, 0, 0, 1, MPIG_F32, row, row, NULL, 0) == MPIG_EFORK &&
	         mpig_commit(q, x, 0, 0, NULL, 0) == MPIG_EFORK && mpig_read(q, x, 0, 0, 1, row, row) == MPIG_EFORK &&
	         mpig_daemon_status(c, &status) == MPIG_EFORK && mpig_context_open(c, "book", NULL, &y) == MPIG_EFORK &&
	         mpig_context_fork(x, "z", 0, &y) == MPIG_EFORK && mpig_context_drop(c, "book") == MPIG_EFORK &&
	         mpig_queue_create(c, NULL, &p) == MPIG_EFORK && strcmp(mpig_last_error(c), mpig_strerror(MPIG_EFORK)) == 0;
	mpig_context_close(x);
	mpig_queue_destroy(q);
	mpig_disconnect(c);
	return ok ? 0 : 1;
}

START_TEST(forked_children)
{
	mpig_client *c = fixture_connect(0, 0);
	mpig_context *x = fixture_create(c, "book");
	mpig_queue *q = fixture_queue(c, 8, 4, 65536);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK);
	pid_t child = fork();
	if (child == 0)
		_exit(child_verdict(c, q, x));
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	ck_assert_int_eq(mpig_nop(q), MPIG_OK); // the parent's is unharmed
	ck_assert_int_eq(fixture_append(q, x, 0, 1), MPIG_OK);
	mpig_disconnect(c);
}
END_TEST

// A child that only sleeps holds a copy of the socket: disconnecting is seen by the daemon all the same.
START_TEST(disconnect_reaches_the_daemon_past_a_child)
{
	mpig_client *c = fixture_connect(0, 0), *other = fixture_connect(0, 0);
	fixture_create(c, "book");
	pid_t child = fork();
	if (child == 0) {
		pause();
		_exit(0);
	}
	mpig_disconnect(c);
	struct mpig_open_options o = {.size = sizeof(o), .mode = MPIG_WRITE};
	mpig_context *y;
	int rc = MPIG_EBUSY;
	for (int i = 0; i < 2000 && rc == MPIG_EBUSY; i++) {
		rc = mpig_context_open(other, "book", &o, &y);
		usleep(1000);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	ck_assert_int_eq(rc, MPIG_OK);
	mpig_disconnect(other);
}
END_TEST

static void add_tests(TCase *t)
{
	tcase_add_test(t, nobody_there);
	tcase_add_test(t, socket_from_the_environment);
	tcase_add_test(t, no_permission);
	tcase_add_test(t, bad_connect_options);
	tcase_add_test(t, other_versions);
	tcase_add_test(t, mute_and_garbled_daemons);
	tcase_add_test(t, late_answers_are_skipped);
	tcase_add_test(t, configuration_text);
	tcase_add_test(t, specs_name_field_and_limit);
	tcase_add_test(t, contexts_by_name_and_prefix);
	tcase_add_test(t, lists_are_as_long_as_both_take);
	tcase_add_test(t, lists_in_pages);
	tcase_add_test(t, heads_come_in_pages);
	tcase_add_test(t, daemon_gone_for_good);
	tcase_add_test(t, restart_reopens_contexts);
	tcase_add_test(t, what_a_full_daemon_refused_is_tried_again);
	tcase_add_test(t, trying_again_meets_another_daemon);
	tcase_add_test(t, lease_taken_meanwhile);
	tcase_add_test(t, forked_children);
	tcase_add_test(t, disconnect_reaches_the_daemon_past_a_child);
}

int main(void)
{
	return fixture_run("client", add_tests);
}
