// Profiles: whose contexts go by them and from when on, that they outlive the daemon, and what becomes of a file that is not one.
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "config/profile.h"
#include "tests/lib/client.h"
#include "tests/lib/figures.h"
#include "tests/lib/points.h"

#define STRANGER 65534u
enum { TOKENS = 1000, HEADS = 4 };

static struct test_daemon *d;
static struct model_data data;
static struct test_client me;
static uint8_t fingerprint[64];

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(HEADS, 2, 64);
	model_data_make(&data, &layer, 2, TOKENS, 7);
	d = test_daemon_start("[daemon]\nsocket_mode = 0666\n[pool]\nkeep = yes\n");
	ck_assert_int_eq(chmod(d->dir, 0755), 0);
	test_client_open(&me, d);
}

static void teardown(void)
{
	test_client_close(&me);
	test_daemon_free(d);
	model_data_free(&data);
}

// Layer 0 samples so much of the rows, layer 1 is dense. Without a profile so short a range is answered densely, as is every layer.
static const char *text_of(float budget, int bits)
{
	static struct profile p;
	static char text[PROFILE_TEXT_BYTES];
	p = (struct profile){.count = 2};
	profile_hex(fingerprint, p.fingerprint);
	p.layer[0] = (struct profile_layer){.number = 0,
	                                    .budget = budget,
	                                    .signature_bits = (uint32_t)bits,
	                                    .paper_k = bits ? 9 : 0,
	                                    .paper_l = bits ? 120 : 0};
	p.layer[1] = (struct profile_layer){.number = 1, .proposal = PROFILE_DENSE};
	text[profile_format(&p, text)] = '\0';
	return text;
}

static mpig_context *make(struct test_client *s, const char *name)
{
	mpig_context *x = test_client_create(s, name, &data);
	struct mpig_context_info info = MPIG_INIT(info);
	ck_assert_status(test_client_fill(s, x, &data, 0, TOKENS, MPIG_COMMIT_SEAL), MPIG_OK);
	ck_assert_status(mpig_context_info(s->client, name, &info), MPIG_OK);
	memcpy(fingerprint, info.fingerprint, sizeof fingerprint);
	return x;
}

// Rows that a head attends; ask.size = 0: a request that names nothing.
static uint32_t rows(struct test_client *s, mpig_context *x, int layer, struct mpig_attend ask)
{
	uint32_t attended[HEADS], sum = 0;
	struct mpig_result answer = {.size = sizeof answer, .rows = attended};
	ask.size = sizeof ask;
	ask.layer = layer;
	ask.q = data.k; // any will do
	ask.seed = 3;
	ck_assert_status(mpig_attend(s->queue, x, &ask, &answer), MPIG_OK);
	for (int h = 0; h < HEADS; h++)
		sum += attended[h];
	return sum / HEADS;
}
static const struct mpig_attend nothing;

static int whose(struct test_client *s, const char *name)
{
	struct mpig_context_info info = MPIG_INIT(info);
	ck_assert_status(mpig_context_info(s->client, name, &info), MPIG_OK);
	return info.profile;
}

static mpig_context *again(struct test_client *s, const char *name, mpig_context *x)
{
	mpig_context_close(x);
	ck_assert_status(test_client_find(s, name, MPIG_READ, &x), MPIG_OK);
	return x;
}

START_TEST(it_holds_from_the_next_time_a_context_is_opened)
{
	mpig_context *x = make(&me, "book"), *fork;
	char text[PROFILE_TEXT_BYTES + 1];
	uint32_t uid = 0;
	ck_assert_status(mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, sizeof text, &uid), MPIG_ENOENT);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_NONE);
	ck_assert_uint_eq(rows(&me, x, 0, nothing), TOKENS);
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_OWNER);
	ck_assert_uint_eq(rows(&me, x, 0, nothing), TOKENS); // whoever has it open goes on as before
	ck_assert_status(mpig_context_fork(x, "fork", 500, &fork), MPIG_OK);
	ck_assert_uint_lt(rows(&me, fork, 0, nothing), 100);
	x = again(&me, "book", x);
	ck_assert_uint_lt(rows(&me, x, 0, nothing), 150);
	ck_assert_uint_gt(rows(&me, x, 0, nothing), 10);
	ck_assert_uint_eq(rows(&me, x, 1, nothing), TOKENS);
	// Requests that name something get that.
	ck_assert_uint_eq(rows(&me, x, 0, (struct mpig_attend){.proposal = MPIG_PROPOSAL_DENSE}), TOKENS);
	ck_assert_uint_gt(rows(&me, x, 0, (struct mpig_attend){.budget = .5f}), 350);
	ck_assert_uint_eq(rows(&me, x, 0, (struct mpig_attend){.error_target = .05f}), TOKENS);
	ck_assert_uint_lt(rows(&me, x, 1, (struct mpig_attend){.budget = .05f}), 150);
	// What was set is what is told, whatever the buffer.
	int n = mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, sizeof text, &uid);
	ck_assert_int_eq(n, (int)strlen(text_of(.05f, 0)));
	ck_assert_str_eq(text, text_of(.05f, 0));
	ck_assert_uint_eq(uid, geteuid());
	ck_assert_int_eq(mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, 6, NULL), n);
	ck_assert_str_eq(text, "[prof");
	ck_assert_int_eq(mpig_profile_get(me.client, fingerprint, UINT32_MAX, NULL, 0, NULL), n);
	ck_assert_status(mpig_profile_clear(me.client, fingerprint, UINT32_MAX), MPIG_OK);
	ck_assert_status(mpig_profile_clear(me.client, fingerprint, UINT32_MAX), MPIG_ENOENT);
	ck_assert_uint_lt(rows(&me, x, 0, nothing), 150);
	x = again(&me, "book", x);
	ck_assert_uint_eq(rows(&me, x, 0, nothing), TOKENS);
}
END_TEST

START_TEST(new_contexts_take_its_width_where_they_leave_it_open)
{
	make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 4)), MPIG_OK);
	struct mpig_layer layers[2] = {data.layer, data.layer}, told[2];
	layers[0].signature_bits = layers[1].signature_bits = MPIG_BITS_AUTO; // layer 1 has none in the profile
	struct mpig_spec spec = test_client_spec(layers, 2);
	mpig_context *x;
	ck_assert_status(mpig_context_create(me.client, "open", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "open", told, 2), 2);
	ck_assert_int_eq(told[0].signature_bits, 4);
	ck_assert_int_eq(told[1].signature_bits, MPIG_BITS_AUTO);
	layers[0].signature_bits = 1;
	ck_assert_status(mpig_context_create(me.client, "named", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "named", told, 2), 2);
	ck_assert_int_eq(told[0].signature_bits, 1);
	spec.fingerprint = "another";
	spec.fingerprint_bytes = 7;
	layers[0].signature_bits = MPIG_BITS_AUTO;
	ck_assert_status(mpig_context_create(me.client, "other", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "other", told, 2), 2);
	ck_assert_int_eq(told[0].signature_bits, MPIG_BITS_AUTO);
}
END_TEST

START_TEST(new_contexts_take_its_tables_where_they_leave_them_open)
{
	make(&me, "book");
	struct mpig_layer layers[2] = {data.layer, data.layer}, told[2];
	layers[0].paper_l = layers[1].paper_l = MPIG_TABLES_AUTO;
	layers[1].table_hash = MPIG_HASH_CROSSPOLYTOPE;
	struct mpig_spec spec = test_client_spec(layers, 2);
	mpig_context *x;
	ck_assert_status(mpig_context_create(me.client, "published", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "published", told, 2), 2);
	ck_assert_int_eq(told[0].paper_k, 10);
	ck_assert_int_eq(told[0].paper_l, 150);
	ck_assert_int_eq(told[1].paper_l, 28); // d_k 64
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 2)), MPIG_OK);
	ck_assert_status(mpig_context_create(me.client, "tuned", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "tuned", told, 2), 2);
	ck_assert_int_eq(told[0].paper_k, 9);
	ck_assert_int_eq(told[0].paper_l, 120);
	ck_assert_int_eq(told[1].paper_l, 28); // layer 1 has none in the profile
	layers[0].paper_k = 8;
	layers[0].paper_l = 75;
	ck_assert_status(mpig_context_create(me.client, "named", &spec, &x), MPIG_OK);
	ck_assert_int_eq(mpig_context_layers(me.client, "named", told, 2), 2);
	ck_assert_int_eq(told[0].paper_k, 8);
	ck_assert_int_eq(told[0].paper_l, 75);
	layers[0].paper_l = MPIG_TABLES_AUTO; // with a K there is nothing left open
	ck_assert_status(mpig_context_create(me.client, "both", &spec, &x), MPIG_EINVAL);
}
END_TEST

START_TEST(it_outlives_the_daemon)
{
	mpig_context *x = make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	test_daemon_kill(d);
	test_daemon_again(d);
	// The library opens its contexts again by itself: that is the next time.
	struct mpig_attend ask = {.size = sizeof ask, .q = data.k};
	struct mpig_result answer = {.size = sizeof answer};
	while (mpig_attend(me.queue, x, &ask, &answer) == MPIG_ERETRY)
		;
	ck_assert_uint_lt(rows(&me, x, 0, nothing), 150);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_OWNER);
	ck_assert_status(mpig_profile_clear(me.client, fingerprint, UINT32_MAX), MPIG_OK);
	test_daemon_kill(d);
	test_daemon_again(d);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_NONE);
}
END_TEST

// ---- killed ----------------------------------------------------------------------------------------------------------
static char points_file[TEST_DAEMON_PATH];

static uint64_t points_passed(void)
{
	struct points now = {0};
	int fd = open(points_file, O_RDONLY);
	ck_assert(fd >= 0 && read(fd, &now, sizeof now) == (ssize_t)sizeof now);
	close(fd);
	return now.passed;
}

// A daemon that is killed at its point `kill_at` (0: none) is given one profile and then another. How many of the two it answered; *before, *after: the
// points that it had passed then.
static int set_two(uint64_t kill_at, uint64_t *before, uint64_t *after)
{
	struct mpig_connect_options options = {
		.size = sizeof options, .socket_path = d->socket, .reconnect_ms = -1, .timeout_ms = 5000};
	mpig_client *client = NULL;
	char number[24];
	int answered = 0;
	snprintf(number, sizeof number, "%lu", (unsigned long)kill_at);
	setenv("MPIG_KILL_AT", number, 1);
	if (!test_daemon_survives_start(d) || mpig_connect(&options, &client) != MPIG_OK)
		return 0;
	*before = points_passed();
	while (answered < 2 && mpig_profile_set(client, fingerprint, UINT32_MAX, text_of(answered ? .2f : .1f, 0)) == MPIG_OK)
		answered++;
	*after = points_passed();
	mpig_disconnect(client);
	return answered;
}

// What a daemon that was killed had begun to write, the next one has removed.
static void nothing_unfinished(void)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s.profiles", d->dir, strrchr(d->dir, '/') + 1);
	DIR *list = opendir(path);
	ck_assert_msg(list || errno == ENOENT, "%s", path);
	for (struct dirent *e; list && (e = readdir(list));)
		ck_assert_msg(!strstr(e->d_name, ".new"), "%s is left", e->d_name);
	if (list)
		closedir(list);
}

static void found_after(int answered)
{
	static char found[PROFILE_TEXT_BYTES + 1], first[PROFILE_TEXT_BYTES];
	struct test_client s;
	if (d->pid)
		test_daemon_kill(d);
	setenv("MPIG_KILL_AT", "0", 1);
	test_daemon_again(d);
	test_client_open(&s, d);
	int n = mpig_profile_get(s.client, fingerprint, UINT32_MAX, found, sizeof found, NULL);
	strcpy(first, text_of(.1f, 0));
	bool old = n > 0 && strcmp(found, first) == 0, fresh = n > 0 && strcmp(found, text_of(.2f, 0)) == 0;
	ck_assert_msg(answered == 2   ? fresh
	              : answered == 1 ? old || fresh
	                              : old || n == MPIG_ENOENT,
	              "%d were answered; found: %d, %s", answered, n, n > 0 ? found : "");
	ck_assert(!test_daemon_logged(d, "is not used"));
	nothing_unfinished();
	ck_assert(n == MPIG_ENOENT || mpig_profile_clear(s.client, fingerprint, UINT32_MAX) == MPIG_OK);
	test_client_close(&s);
	test_daemon_kill(d);
}

START_TEST(killed_at_any_point_there_is_the_old_one_or_the_new_one)
{
	uint64_t before = 0, after = 0, other;
	int cut_off = 0;
	setenv("MAGICPIGD", getenv("MAGICPIGD_POINTS") ? getenv("MAGICPIGD_POINTS") : "build/tests/magicpigd", 1);
	d = test_daemon_new("[pool]\nsize = 16M\n[workers]\ncount = 1\n");
	snprintf(points_file, sizeof points_file, "%s/points", d->dir);
	setenv("MPIG_POINTS", points_file, 1);
	fingerprint[0] = 0xab;
	ck_assert_int_eq(set_two(0, &before, &after), 2);
	found_after(2);
	for (uint64_t at = before + 1; at <= after; at++) {
		int answered = set_two(at, &other, &other);
		cut_off += answered < 2;
		found_after(answered);
	}
	printf("profiles: killed at %lu points, in %d of them before both were set\n", (unsigned long)(after - before), cut_off);
	figures_add("crash.profiles", (double)(after - before));
	ck_assert_int_ge(cut_off, 8); // each of the two opens a directory and a file, writes, and renames
	test_daemon_free(d);
}
END_TEST

// ---- files that are none ---------------------------------------------------------------------------------------------
static void profile_path(char path[512])
{
	char hex[PROFILE_HEX_BYTES];
	profile_hex(fingerprint, hex);
	snprintf(path, 512, "%s/%s.profiles/%s.%u.profile", d->dir, strrchr(d->dir, '/') + 1, hex, geteuid());
}

static void rewrite(void (*change)(char *text))
{
	char path[512], text[8192] = "";
	profile_path(path);
	FILE *f = fopen(path, "r+");
	ck_assert_msg(f != NULL, "%s", path);
	ck_assert_uint_gt(fread(text, 1, sizeof text - 1, f), 0);
	rewind(f);
	change(text);
	ck_assert_int_eq(ftruncate(fileno(f), 0), 0);
	fputs(text, f);
	fclose(f);
}

static void flip(char *text)
{
	char *at = strstr(text, "budget = 0.05");
	ck_assert_ptr_nonnull(at);
	at[11] = '1'; // still a profile
}

static void cut(char *text)
{
	text[strlen(text) / 2] = '\0';
}

static void empty(char *text)
{
	text[0] = '\0';
}

START_TEST(a_damaged_file_is_told_of_and_not_used)
{
	static void (*const changes[])(char *) = {flip, cut, empty};
	mpig_context *x = make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	test_daemon_kill(d);
	rewrite(changes[_i]);
	test_daemon_again(d);
	ck_assert(test_daemon_logged(
		d, "it does not have its checksum: it was damaged or edited; remove it, or run magicpigctl tune again"));
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_NONE);
	x = again(&me, "book", x);
	ck_assert_uint_eq(rows(&me, x, 0, nothing), TOKENS);
	// Another one takes its place.
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	test_daemon_kill(d);
	test_daemon_again(d);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_OWNER);
}
END_TEST

START_TEST(what_is_no_file_or_no_profile_is_left_alone)
{
	char path[512], dir[512], other[700];
	make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	profile_path(path);
	snprintf(dir, sizeof dir, "%s", path);
	*strrchr(dir, '/') = '\0';
	test_daemon_kill(d);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(mkfifo(path, 0600), 0); // to open it must not wait for a writer
	snprintf(other, sizeof other, "%s/abcd.7.profile", dir);
	ck_assert_int_eq(mkdir(other, 0700), 0);
	snprintf(other, sizeof other, "%s/ef01.7.profile", dir);
	ck_assert_int_eq(symlink("/etc/passwd", other), 0);
	snprintf(other, sizeof other, "%s/ef02.07.profile", dir);
	ck_assert_int_eq(symlink("/etc/passwd", other), 0); // nobody's: a uid is not written so
	test_daemon_again(d);
	ck_assert_int_eq(whose(&me, "book"), MPIG_PROFILE_NONE);
	ck_assert(test_daemon_logged(d, "abcd.7.profile is not used: "));
	ck_assert(test_daemon_logged(d, "ef01.7.profile is not used: Too many levels of symbolic links"));
	ck_assert(!test_daemon_logged(d, "ef02"));
}
END_TEST

START_TEST(a_profile_that_cannot_be_kept_is_refused)
{
	char path[512];
	make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	profile_path(path);
	ck_assert_int_eq(unlink(path), 0);
	*strrchr(path, '/') = '\0';
	ck_assert_int_eq(rmdir(path), 0);
	ck_assert_int_eq(symlink("/nowhere", path), 0);
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.5f, 0)), MPIG_EIO);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(me.client), "(daemon.profiles)"));
	// The one that was there holds on.
	char text[PROFILE_TEXT_BYTES + 1];
	ck_assert_int_gt(mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, sizeof text, NULL), 0);
	ck_assert_str_eq(text, text_of(.05f, 0));
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.5f, 0)), MPIG_OK);
}
END_TEST

START_TEST(there_is_a_limit)
{
	make(&me, "book");
	for (int i = 0; i < 64; i++) {
		memset(fingerprint, 0, sizeof fingerprint);
		fingerprint[0] = (uint8_t)(i + 1);
		ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	}
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.1f, 0)), MPIG_OK); // in the place of one
	fingerprint[0] = 65;
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_ELIMIT);
	ck_assert_status(mpig_profile_set(me.client, fingerprint, MPIG_PROFILE_ALL, text_of(.05f, 0)), MPIG_OK); // counted apart
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, ""), MPIG_EINVAL);
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, NULL), MPIG_EINVAL);
	ck_assert_status(mpig_profile_set(me.client, NULL, UINT32_MAX, "x"), MPIG_EINVAL);
	memset(fingerprint, 0, sizeof fingerprint);
	ck_assert_status(mpig_profile_get(me.client, fingerprint, UINT32_MAX, NULL, 0, NULL), MPIG_EINVAL);
}
END_TEST

// ---- of others -------------------------------------------------------------------------------------------------------
// As another user: makes a context of the same model, and tells the rows of each opening that a byte on `ask` brings about.
static void be_another(int ask, int answer)
{
	struct test_client s;
	mpig_context *x;
	char byte;
	if (setgroups(0, NULL) || setresgid(STRANGER, STRANGER, STRANGER) || setresuid(STRANGER, STRANGER, STRANGER))
		_exit(99);
	test_client_open(&s, d);
	x = make(&s, "theirs");
	if (mpig_profile_get(s.client, fingerprint, 0, NULL, 0, NULL) != MPIG_EACCES ||
	    mpig_profile_set(s.client, fingerprint, MPIG_PROFILE_ALL, text_of(.5f, 0)) != MPIG_EACCES ||
	    mpig_profile_clear(s.client, fingerprint, 0) != MPIG_EACCES)
		_exit(98);
	while (read(ask, &byte, 1) == 1) {
		if (byte == 's' && mpig_profile_set(s.client, fingerprint, UINT32_MAX, text_of(.5f, 0)) != MPIG_OK)
			_exit(97);
		x = again(&s, "theirs", x);
		uint32_t told[2] = {rows(&s, x, 0, nothing), (uint32_t)whose(&s, "theirs")};
		if (write(answer, told, sizeof told) != sizeof told)
			_exit(96);
	}
	test_client_close(&s);
	_exit(0);
}

START_TEST(each_user_has_their_own)
{
	int ask[2], answer[2], status;
	uint32_t told[2];
	if (geteuid() != 0) {
		printf("profiles: skipped, needs root to become another user\n");
		return;
	}
	mpig_context *x = make(&me, "book");
	ck_assert_int_eq(pipe(ask), 0);
	ck_assert_int_eq(pipe(answer), 0);
	fflush(NULL);
	pid_t child = fork();
	if (child == 0) {
		close(ask[1]);
		be_another(ask[0], answer[1]);
	}
	close(answer[1]);
#define OTHER(what)                                                                                                              \
	ck_assert_int_eq(write(ask[1], what, 1), 1);                                                                             \
	ck_assert_int_eq(read(answer[0], told, sizeof told), sizeof told)
	// Ours does not touch theirs.
	ck_assert_status(mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.05f, 0)), MPIG_OK);
	OTHER("o");
	ck_assert_uint_eq(told[0], TOKENS);
	ck_assert_uint_eq(told[1], MPIG_PROFILE_NONE);
	// That of all is for who has none.
	ck_assert_status(mpig_profile_set(me.client, fingerprint, MPIG_PROFILE_ALL, text_of(.2f, 0)), MPIG_OK);
	OTHER("o");
	ck_assert(told[0] > 130 && told[0] < 300);
	ck_assert_uint_eq(told[1], MPIG_PROFILE_COMMON);
	x = again(&me, "book", x);
	ck_assert_uint_lt(rows(&me, x, 0, nothing), 150);
	// Theirs holds for their contexts, whoever opens them, and for nobody else's.
	OTHER("s");
	ck_assert(told[0] > 350 && told[0] < 700);
	ck_assert_uint_eq(told[1], MPIG_PROFILE_OWNER);
	mpig_context *theirs;
	ck_assert_status(test_client_find(&me, "theirs", MPIG_READ, &theirs), MPIG_OK);
	ck_assert_uint_eq(rows(&me, theirs, 0, nothing), told[0]);
	x = again(&me, "book", x);
	ck_assert_uint_lt(rows(&me, x, 0, nothing), 150);
	// An administrator looks after those of others.
	ck_assert_int_gt(mpig_profile_get(me.client, fingerprint, STRANGER, NULL, 0, NULL), 0);
	ck_assert_status(mpig_profile_clear(me.client, fingerprint, STRANGER), MPIG_OK);
	OTHER("o");
	ck_assert_uint_eq(told[1], MPIG_PROFILE_COMMON);
	close(ask[1]);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other user: %#x", status);
}
END_TEST

// The uid that stands for all users, as a user's own (nfsnobody of old): it gives no right to the profile of all.
static int be_the_one_who_is_all(void)
{
	struct test_client s;
	uint32_t whose = 0;
	if (setgroups(0, NULL) || setresgid(STRANGER, STRANGER, STRANGER) ||
	    setresuid(MPIG_PROFILE_ALL, MPIG_PROFILE_ALL, MPIG_PROFILE_ALL))
		return 99;
	test_client_open(&s, d);
	if (mpig_profile_set(s.client, fingerprint, MPIG_PROFILE_ALL, text_of(.5f, 0)) != MPIG_EACCES ||
	    mpig_profile_clear(s.client, fingerprint, MPIG_PROFILE_ALL) != MPIG_EACCES)
		return 1;
	if (mpig_profile_set(s.client, fingerprint, UINT32_MAX, text_of(.5f, 0)) != MPIG_ENOTSUP ||
	    mpig_profile_clear(s.client, fingerprint, UINT32_MAX) != MPIG_ENOTSUP)
		return 2;
	if (mpig_profile_get(s.client, fingerprint, UINT32_MAX, NULL, 0, &whose) <= 0 || whose != MPIG_PROFILE_ALL)
		return 3;
	test_client_close(&s);
	return 0;
}

START_TEST(the_uid_of_all_is_nobodys_right)
{
	int status;
	char text[PROFILE_TEXT_BYTES + 1];
	if (geteuid() != 0) {
		printf("profiles: skipped, needs root to become another user\n");
		return;
	}
	make(&me, "book");
	ck_assert_status(mpig_profile_set(me.client, fingerprint, MPIG_PROFILE_ALL, text_of(.2f, 0)), MPIG_OK);
	fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(be_the_one_who_is_all());
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other user: %#x", status);
	ck_assert_int_gt(mpig_profile_get(me.client, fingerprint, MPIG_PROFILE_ALL, text, sizeof text, NULL), 0);
	ck_assert_str_eq(text, text_of(.2f, 0));
}
END_TEST

// ---- answers that come when the disk has it --------------------------------------------------------------------------
static struct {
	struct mpig_ctl_profile head;
	char text[PROFILE_TEXT_BYTES];
} request;

static int send_set(int socket, float share)
{
	const char *text = text_of(share, 0);
	size_t bytes = sizeof request.head + strlen(text);
	memset(&request, 0, sizeof request);
	wire_header(&request.head.h, MPIG_CTL_PROFILE, bytes);
	request.head.action = MPIG_PROFILE_SET;
	request.head.uid = UINT32_MAX;
	request.head.length = (uint32_t)strlen(text);
	memcpy(request.head.fingerprint, fingerprint, sizeof fingerprint);
	memcpy(request.text, text, strlen(text));
	return wire_send(socket, &request, bytes, -1);
}

START_TEST(a_client_that_does_not_wait_for_its_answer)
{
	char text[PROFILE_TEXT_BYTES + 1], last[PROFILE_TEXT_BYTES + 1];
	make(&me, "book");
	for (int i = 1; i <= 50; i++) {
		int socket = wire_connect(d);
		ck_assert_int_eq(wire_hello(socket), MPIG_OK);
		ck_assert_int_eq(send_set(socket, (float)i / 1000), 0);
		close(socket);
		strcpy(last, text_of((float)i / 1000, 0));
		// One that was sent is done, whoever has gone, unless the one before was being written.
		int n;
		do
			n = mpig_profile_set(me.client, fingerprint, UINT32_MAX, text_of(.5f + (float)i / 1000, 0));
		while (n == MPIG_EAGAIN);
		ck_assert_status(n, MPIG_OK);
	}
	ck_assert_int_gt(mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, sizeof text, NULL), 0);
	ck_assert_str_eq(text, text_of(.5f + 50.f / 1000, 0));
	ck_assert_int_ne(strcmp(text, last), 0);
}
END_TEST

START_TEST(each_request_gets_one_answer)
{
	static char reply[MPIG_CONTROL_MAX_BYTES];
	const struct mpig_control_header *h = (const void *)reply;
	char text[PROFILE_TEXT_BYTES + 1];
	int fds[2], socket = wire_connect(d), done = 0, refused = 0, pings = 0;
	struct mpig_control_header ping;
	make(&me, "book");
	ck_assert_int_eq(wire_hello(socket), MPIG_OK);
	for (int i = 1; i <= 8; i++)
		ck_assert_int_eq(send_set(socket, (float)i / 1000), 0);
	wire_header(&ping, MPIG_CTL_PING, sizeof ping);
	ck_assert_int_eq(wire_send(socket, &ping, sizeof ping, -1), 0);
	for (int i = 0; i < 9; i++) {
		ck_assert_int_gt(wire_receive(socket, reply, sizeof reply, fds), 0);
		pings += h->op == MPIG_CTL_PING;
		done += h->op == MPIG_CTL_PROFILE && h->status == MPIG_OK;
		refused += h->op == MPIG_CTL_PROFILE && h->status == MPIG_EAGAIN;
	}
	ck_assert_int_eq(pings, 1);
	ck_assert_int_eq(done + refused, 8);
	ck_assert_int_ge(done, 1);
	ck_assert_int_gt(mpig_profile_get(me.client, fingerprint, UINT32_MAX, text, sizeof text, NULL), 0);
	if (done == 1)
		ck_assert_str_eq(text, text_of(.001f, 0));
	close(socket);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/profiles");
	TCase *t = tcase_create("profiles");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, it_holds_from_the_next_time_a_context_is_opened);
	tcase_add_test(t, new_contexts_take_its_width_where_they_leave_it_open);
	tcase_add_test(t, new_contexts_take_its_tables_where_they_leave_them_open);
	tcase_add_test(t, it_outlives_the_daemon);
	tcase_add_loop_test(t, a_damaged_file_is_told_of_and_not_used, 0, 3);
	tcase_add_test(t, what_is_no_file_or_no_profile_is_left_alone);
	tcase_add_test(t, a_profile_that_cannot_be_kept_is_refused);
	tcase_add_test(t, there_is_a_limit);
	tcase_add_test(t, a_client_that_does_not_wait_for_its_answer);
	tcase_add_test(t, each_request_gets_one_answer);
	tcase_add_test(t, each_user_has_their_own);
	tcase_add_test(t, the_uid_of_all_is_nobodys_right);
	suite_add_tcase(suite, t);
	TCase *killed = tcase_create("killed");
	tcase_set_timeout(killed, 240);
	tcase_add_test(killed, killed_at_any_point_there_is_the_old_one_or_the_new_one);
	suite_add_tcase(suite, killed);
	return suite_run(suite);
}
