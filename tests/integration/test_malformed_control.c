// The control socket spoken wrongly: broken framing, nonzero reserved bytes, descriptors where none belong, and a deterministic
// fuzz. Whatever is said, the daemon answers with an error or closes that connection, and serves the others.
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "shm/region.h"
#include "shm/status.h"
#include "tests/lib/client.h"
#include "tests/lib/model.h"

static struct test_daemon *d;
static struct model_data data;
static struct test_client witness; // a well-behaved client that must not notice
static mpig_context *witness_context;

static void setup(void)
{
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 1000, 7);
	// Of queues that were left a descriptor is kept for that long.
	d = test_daemon_start("[limits]\nclients_per_uid = 256\nregion_keep = 100ms\n");
	test_client_open(&witness, d);
	witness_context = test_client_create(&witness, "witness", &data);
	ck_assert_status(test_client_fill(&witness, witness_context, &data, 0, 1000, MPIG_COMMIT_SEAL), MPIG_OK);
}

static void assert_unharmed(void)
{
	test_daemon_assert_alive(d);
	ck_assert_status(mpig_ping(witness.client), MPIG_OK);
	test_client_assert_dense(&witness, witness_context, &data, 0, 1000);
}

static void teardown(void)
{
	assert_unharmed();
	test_client_close(&witness);
	test_daemon_stop(d);
	model_data_free(&data);
}

static union {
	struct mpig_control_header h;
	uint8_t bytes[MPIG_CONTROL_MAX_BYTES];
} reply;

static int greeted(void)
{
	int socket = wire_connect(d);
	ck_assert_int_eq(wire_hello(socket), MPIG_OK);
	return socket;
}

static int call(int socket, const void *request, size_t bytes)
{
	return wire_call(socket, request, bytes, &reply, sizeof(reply));
}

// Sends, and asserts that it is refused: an error reply or the end of the connection.
static void assert_refused(const void *request, size_t bytes, const char *what)
{
	int socket = greeted();
	int status = call(socket, request, bytes);
	ck_assert_msg(status < 0, "%s: accepted (%d)", what, status);
	if (status != MPIG_ENODAEMON)
		ck_assert_uint_le(reply.h.size, sizeof(reply));
	close(socket);
}

START_TEST(a_broken_header_is_refused)
{
	struct mpig_control_header good, bad;
	wire_header(&good, MPIG_CTL_PING, sizeof(good));
	int socket = greeted();
	ck_assert_int_eq(call(socket, &good, sizeof(good)), MPIG_OK);
	ck_assert_uint_eq(reply.h.tag, good.tag);
	close(socket);
	bad = good, bad.magic ^= 1, assert_refused(&bad, sizeof(bad), "magic");
	bad = good, bad.version++, assert_refused(&bad, sizeof(bad), "version");
	bad = good, bad.op = 0, assert_refused(&bad, sizeof(bad), "operation 0");
	bad = good, bad.op = MPIG_CTL_COUNT, assert_refused(&bad, sizeof(bad), "operation beyond the last");
	bad = good, bad.op = 0xffff, assert_refused(&bad, sizeof(bad), "operation 65535");
	bad = good, bad.size++, assert_refused(&bad, sizeof(bad), "size too large");
	bad = good, bad.size--, assert_refused(&bad, sizeof(bad), "size too small");
	bad = good, bad.size = UINT32_MAX, assert_refused(&bad, sizeof(bad), "size 2^32-1");
	bad = good, bad.status = 1, assert_refused(&bad, sizeof(bad), "status in a request");
	bad = good, bad.reserved = 1, assert_refused(&bad, sizeof(bad), "reserved");
	for (size_t bytes = 1; bytes < sizeof(good); bytes++)
		assert_refused(&good, bytes, "short datagram");
}
END_TEST

START_TEST(an_empty_or_huge_datagram_is_refused)
{
	uint8_t *huge = calloc(1, 2 * MPIG_CONTROL_MAX_BYTES);
	ck_assert_ptr_nonnull(huge);
	for (size_t bytes = MPIG_CONTROL_MAX_BYTES - 1; bytes <= 2 * MPIG_CONTROL_MAX_BYTES;
	     bytes += MPIG_CONTROL_MAX_BYTES / 2) {
		struct mpig_control_header h;
		wire_header(&h, MPIG_CTL_PING, bytes);
		memcpy(huge, &h, sizeof(h));
		assert_refused(huge, bytes, "huge datagram");
	}
	free(huge);
	int socket = greeted();
	wire_send(socket, "", 0, -1); // an empty datagram reads like an end of file
	close(socket);
}
END_TEST

START_TEST(hello_must_match)
{
	struct mpig_ctl_hello hello = {.abi_version = MPIG_ABI_VERSION + 1};
	int socket = wire_connect(d);
	wire_header(&hello.h, MPIG_CTL_HELLO, sizeof(hello));
	ck_assert_int_eq(call(socket, &hello, sizeof(hello)), MPIG_EVERSION);
	ck_assert_uint_gt(((struct mpig_ctl_error *)(void *)reply.bytes)->text[0], 0);
	close(socket);
}
END_TEST

// Every operation with its right size and each byte that is reserved, or at least unknown, set in turn.
START_TEST(reserved_bytes_must_be_zero)
{
	struct mpig_ctl_hello hello = {.abi_version = MPIG_ABI_VERSION};
	wire_header(&hello.h, MPIG_CTL_HELLO, sizeof(hello));
	for (size_t i = 0; i < sizeof(hello.reserved); i += 9) {
		hello.reserved[i] = 1;
		int socket = wire_connect(d);
		ck_assert_int_lt(call(socket, &hello, sizeof(hello)), 0);
		close(socket);
		hello.reserved[i] = 0;
	}
	struct mpig_ctl_queue_create queue = {.entries = 8, .slot_count = 8, .slot_bytes = 4096};
	for (size_t i = 0; i < sizeof(queue.reserved); i += 5) {
		wire_header(&queue.h, MPIG_CTL_QUEUE_CREATE, sizeof(queue));
		queue.reserved[i] = 1;
		assert_refused(&queue, sizeof(queue), "queue reserved byte");
		queue.reserved[i] = 0;
	}
	struct {
		struct mpig_ctl_create create;
		struct mpig_wire_layer layer;
	} c = {.create = {.name = "fuzz", .layer_count = 1},
	       .layer = {.row_dtype = MPIG_BF16, .query_heads = 2, .kv_heads = 1, .d_k = 64, .d_v = 64}};
	wire_header(&c.create.h, MPIG_CTL_CREATE, sizeof(c));
	for (size_t i = 0; i < sizeof(c.create.reserved); i += 5) {
		c.create.reserved[i] = 1;
		assert_refused(&c, sizeof(c), "create reserved byte");
		c.create.reserved[i] = 0;
	}
	for (size_t i = 0; i < sizeof(c.layer.reserved); i += 5) {
		c.layer.reserved[i] = 1;
		assert_refused(&c, sizeof(c), "layer reserved byte");
		c.layer.reserved[i] = 0;
	}
	c.create.flags = 1u << 31;
	assert_refused(&c, sizeof(c), "create flags");
	c.create.flags = 0;
	c.create.layer_count = 2; // the message holds one
	assert_refused(&c, sizeof(c), "layers missing");
	c.create.layer_count = UINT32_MAX;
	assert_refused(&c, sizeof(c), "layer count 2^32-1");
	c.create.layer_count = 1;
	memset(c.create.name, 'n', sizeof(c.create.name));
	assert_refused(&c, sizeof(c), "a name without end");
	memset(c.create.name, 0, sizeof(c.create.name));
	c.create.name[0] = 'f';
	c.create.handle = MPIG_MAX_HANDLES;
	assert_refused(&c, sizeof(c), "a handle beyond the last");
	c.create.handle = 0;
	int socket = greeted();
	ck_assert_int_eq(call(socket, &c, sizeof(c)), MPIG_OK); // as a control of the above: this one is right
	close(socket);
	struct mpig_ctl_open open = {.name = "witness"};
	wire_header(&open.h, MPIG_CTL_OPEN, sizeof(open));
	for (size_t i = 0; i < sizeof(open.reserved); i += 5) {
		open.reserved[i] = 1;
		assert_refused(&open, sizeof(open), "open reserved byte");
		open.reserved[i] = 0;
	}
	open.flags = MPIG_OPEN_FLAGS + 1;
	assert_refused(&open, sizeof(open), "open flags");
}
END_TEST

START_TEST(administrators_operations_are_asked_for_properly)
{
	struct mpig_ctl_clients clients = {0};
	struct mpig_ctl_kill kill = {.id = UINT64_MAX};
	struct mpig_ctl_quota quota = {.uid = UINT32_MAX};
	struct mpig_ctl_drain drain = {.action = MPIG_DRAIN_LOOK};
	wire_header(&clients.h, MPIG_CTL_CLIENTS, sizeof(clients));
	wire_header(&kill.h, MPIG_CTL_KILL, sizeof(kill));
	wire_header(&quota.h, MPIG_CTL_QUOTA, sizeof(quota));
	wire_header(&drain.h, MPIG_CTL_DRAIN, sizeof(drain));
	int socket = greeted();
	ck_assert_int_eq(call(socket, &clients, sizeof(clients)), MPIG_OK);
	ck_assert_int_eq(call(socket, &kill, sizeof(kill)), MPIG_ENOENT);
	ck_assert_int_eq(call(socket, &quota, sizeof(quota)), MPIG_OK);
	ck_assert_int_eq(call(socket, &drain, sizeof(drain)), MPIG_OK);
	close(socket);
	clients.more = 1, assert_refused(&clients, sizeof(clients), "clients: more"), clients.more = 0;
	quota.bytes = 1, assert_refused(&quota, sizeof(quota), "quota: bytes"), quota.bytes = 0;
	quota.group = 2, assert_refused(&quota, sizeof(quota), "quota: group"), quota.group = 0;
	quota.requests_limit = 1, assert_refused(&quota, sizeof(quota), "quota: requests_limit"), quota.requests_limit = 0;
	drain.action = MPIG_DRAIN_ACTIONS, assert_refused(&drain, sizeof(drain), "drain: action"), drain.action = 0;
	drain.queues = 1, assert_refused(&drain, sizeof(drain), "drain: queues"), drain.queues = 0;
	for (size_t i = 0; i < 32; i += 31) {
		clients.reserved[i] = kill.reserved[i] = quota.reserved[i] = drain.reserved[i] = 1;
		assert_refused(&clients, sizeof(clients), "clients: reserved byte");
		assert_refused(&kill, sizeof(kill), "kill: reserved byte");
		assert_refused(&quota, sizeof(quota), "quota: reserved byte");
		assert_refused(&drain, sizeof(drain), "drain: reserved byte");
		clients.reserved[i] = kill.reserved[i] = quota.reserved[i] = drain.reserved[i] = 0;
	}
}
END_TEST

START_TEST(recording_is_asked_for_properly)
{
	const struct mpig_ctl_trace good = {.name = "witness", .action = MPIG_TRACE_START, .ring_bytes = 1 << 20};
	struct mpig_ctl_trace bad = good;
	int socket = greeted();
	wire_header(&bad.h, MPIG_CTL_TRACE, sizeof(bad));
	ck_assert_int_eq(call(socket, &bad, sizeof(bad)), MPIG_OK);
	uint32_t number = ((struct mpig_ctl_trace *)(void *)reply.bytes)->number;
	bad = (struct mpig_ctl_trace){.name = "witness", .action = MPIG_TRACE_STOP, .number = number + 1};
	wire_header(&bad.h, MPIG_CTL_TRACE, sizeof(bad));
	ck_assert_int_eq(call(socket, &bad, sizeof(bad)), MPIG_EINVAL);
	int other = greeted(); // cannot stop what is not its own
	bad.number = number;
	ck_assert_int_eq(call(other, &bad, sizeof(bad)), MPIG_EINVAL);
	close(other);
	ck_assert_int_eq(call(socket, &bad, sizeof(bad)), MPIG_OK);
	ck_assert_int_eq(call(socket, &bad, sizeof(bad)), MPIG_EINVAL);
	bad.number = 0;
	ck_assert_int_eq(call(socket, &bad, sizeof(bad)), MPIG_EINVAL);
	close(socket);
	wire_header((struct mpig_control_header *)&bad.h, MPIG_CTL_TRACE, sizeof(bad));
	struct mpig_control_header h = bad.h;
#define REFUSED(change, what) bad = good, bad.h = h, change, assert_refused(&bad, sizeof(bad), "trace: " what)
	REFUSED(bad.action = 0, "no action");
	REFUSED(bad.action = 3, "action");
	REFUSED(bad.number = 1, "number to start");
	REFUSED(bad.ring_bytes = 0, "no ring");
	REFUSED(bad.ring_bytes = 4096, "a small ring");
	REFUSED(bad.ring_bytes += 64, "a ring of no whole pages");
	REFUSED(bad.ring_bytes = UINT64_C(1) << 40, "a large ring");
	REFUSED(bad.region_bytes = 1, "region_bytes");
	REFUSED(bad.context_id = 1, "context_id");
	REFUSED(bad.began_ns = 1, "began_ns");
	REFUSED((bad.action = MPIG_TRACE_STOP, bad.number = 1), "a ring to stop");
	REFUSED(memset(bad.name, 'w', sizeof(bad.name)), "name without an end");
	REFUSED(bad.name[0] = 'x', "nobody's name");
	for (size_t i = 0; i < sizeof(bad.reserved); i++)
		REFUSED(bad.reserved[i] = 1, "reserved");
#undef REFUSED
}
END_TEST

static int ask_heads(struct mpig_ctl_heads heads)
{
	int socket = greeted();
	wire_header(&heads.h, MPIG_CTL_HEADS, sizeof(heads));
	int status = call(socket, &heads, sizeof(heads));
	close(socket);
	return status;
}

START_TEST(heads_are_asked_for_properly)
{
	const struct mpig_ctl_heads good = {.name = "witness"}, *page = (const void *)reply.bytes;
	const struct mpig_wire_head *head = (const void *)(page + 1);
	struct mpig_ctl_heads bad;
	ck_assert_int_eq(ask_heads(good), MPIG_OK);
	ck_assert_uint_eq(page->count, 2);
	ck_assert_uint_eq(page->total, 2);
	ck_assert_uint_eq(head[1].kv_head, 1);
	bad = good, bad.first = 1;
	ck_assert_int_eq(ask_heads(bad), MPIG_OK);
	ck_assert_uint_eq(page->count, 1);
	ck_assert_uint_eq(head[0].kv_head, 1);
	bad = good, bad.first = UINT32_MAX;
	ck_assert_int_eq(ask_heads(bad), MPIG_OK);
	ck_assert_uint_eq(page->count, 0);
	ck_assert_uint_eq(page->total, 2);
	bad = good, bad.name[0] = 'x';
	ck_assert_int_eq(ask_heads(bad), MPIG_ENOENT);
	bad = good, memset(bad.name, 'w', sizeof(bad.name));
	ck_assert_int_eq(ask_heads(bad), MPIG_EPROTO);
	bad = good, bad.count = 1;
	ck_assert_int_eq(ask_heads(bad), MPIG_EPROTO);
	bad = good, bad.total = 1;
	ck_assert_int_eq(ask_heads(bad), MPIG_EPROTO);
	bad = good, bad.reserved0 = 1;
	ck_assert_int_eq(ask_heads(bad), MPIG_EPROTO);
	bad = good, bad.reserved[31] = 1;
	ck_assert_int_eq(ask_heads(bad), MPIG_EPROTO);
}
END_TEST

// Contexts in one answer to a request for `count`, or a status.
static int listed(struct mpig_ctl_list ask)
{
	const struct mpig_ctl_list *page = (const void *)reply.bytes;
	int socket = greeted();
	wire_header(&ask.h, MPIG_CTL_LIST, sizeof(ask));
	int status = call(socket, &ask, sizeof(ask));
	close(socket);
	if (status != MPIG_OK)
		return status;
	ck_assert_uint_eq(page->h.size, sizeof(*page) + page->count * sizeof(struct mpig_wire_context));
	return (int)page->count;
}

// As many as are asked for: a client of a version that took fewer, and did not say so, gets no more than it took.
START_TEST(lists_are_asked_for_properly)
{
	enum { MORE = 199 };
	const struct mpig_ctl_list *page = (const void *)reply.bytes;
	char name[16];
	mpig_context *fork;
	for (int i = 0; i < MORE; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		ck_assert_status(mpig_context_fork(witness_context, name, 10, &fork), MPIG_OK);
		mpig_context_close(fork);
	}
	struct mpig_ctl_list ask = {0};
	ck_assert_int_eq(listed(ask), 64);
	ask.cursor = page->cursor;
	ck_assert_int_eq(listed(ask), 64);
	ask.count = 160;
	ask.cursor = page->cursor;
	ck_assert_int_eq(listed(ask), MORE + 1 - 128);
	ck_assert_uint_eq(page->cursor, 0);
	ask.cursor = 0;
	ck_assert_int_eq(listed(ask), 160);
	ask.count = 7;
	ck_assert_int_eq(listed(ask), 7);
	ask.count = 161;
	ck_assert_int_eq(listed(ask), MPIG_EPROTO);
	ask.count = UINT32_MAX;
	ck_assert_int_eq(listed(ask), MPIG_EPROTO);
	ask.count = 0, ask.reserved = 1;
	ck_assert_int_eq(listed(ask), MPIG_EPROTO);
	struct mpig_ctl_hello hello = {.abi_version = MPIG_ABI_VERSION};
	int socket = wire_connect(d);
	wire_header(&hello.h, MPIG_CTL_HELLO, sizeof(hello));
	ck_assert_int_eq(call(socket, &hello, sizeof(hello)), MPIG_OK);
	ck_assert_uint_eq(((const struct mpig_ctl_hello *)(const void *)reply.bytes)->list_page, 160);
	close(socket);
}
END_TEST

static int ask_profile(struct mpig_ctl_profile ask, const char *text, size_t bytes)
{
	struct {
		struct mpig_ctl_profile ask;
		char text[256];
	} message = {.ask = ask};
	int socket = greeted();
	memcpy(message.text, text, bytes);
	wire_header(&message.ask.h, MPIG_CTL_PROFILE, sizeof(ask) + bytes);
	int status = call(socket, &message, sizeof(ask) + bytes);
	close(socket);
	return status;
}

START_TEST(profiles_are_asked_for_properly)
{
	static const char text[] = "[profile]\nversion = 1\nfingerprint = ab\n[layer 0]\nproposal = dense\n[end]\nlayers = 1\n";
	const uint32_t length = sizeof(text) - 1;
	const struct mpig_ctl_profile *page = (const void *)reply.bytes;
	const struct mpig_ctl_profile get = {.fingerprint = {(char)0xab}, .uid = UINT32_MAX};
	struct mpig_ctl_profile set = get, bad;
	set.action = MPIG_PROFILE_SET;
	set.length = length;
	ck_assert_int_eq(ask_profile(get, "", 0), MPIG_ENOENT);
	ck_assert_int_eq(ask_profile(set, text, length), MPIG_OK);
	ck_assert_int_eq(ask_profile(get, "", 0), MPIG_OK);
	ck_assert_uint_eq(page->length, length);
	ck_assert_mem_eq(page + 1, text, length);
	bad = get, bad.action = MPIG_PROFILE_NEXT, bad.fingerprint[0] = 0, bad.uid = 0;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_OK); // the first
	ck_assert_mem_eq(page->fingerprint, set.fingerprint, sizeof set.fingerprint);
	ck_assert_uint_eq(page->length, length);
	bad = *page, bad.length = 0;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_ENOENT); // and the last
	bad.length = length;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EPROTO);
	bad = set, bad.length = length - 1;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EPROTO);
	bad.length = length + 1;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EPROTO);
	bad.length = UINT32_MAX - sizeof(bad) + length + 1;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EPROTO);
	bad = set, bad.length = 0;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_EPROTO);
	bad = get, bad.length = length;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EPROTO);
	bad = set, bad.fingerprint[1] = 1;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EINVAL); // not the one that the text names
	bad = set, bad.fingerprint[0] = 0;
	ck_assert_int_eq(ask_profile(bad, text, length), MPIG_EINVAL);
	bad = set, bad.length = length - 4; // cut off
	ck_assert_int_eq(ask_profile(bad, text, length - 4), MPIG_EINVAL);
	ck_assert_int_eq(ask_profile(set, "\0\0\0", 3), MPIG_EPROTO);
	bad = set, bad.length = 3;
	ck_assert_int_eq(ask_profile(bad, "\0\0\0", 3), MPIG_EINVAL);
	bad = get, bad.action = MPIG_PROFILE_ACTIONS;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_EPROTO);
	bad = get, bad.reserved0 = 1;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_EPROTO);
	bad = get, bad.reserved[31] = 1;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_EPROTO);
	ck_assert_int_eq(ask_profile(get, "", 0), MPIG_OK); // none of this has changed it
	bad = get, bad.action = MPIG_PROFILE_CLEAR;
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_OK);
	ck_assert_int_eq(ask_profile(bad, "", 0), MPIG_ENOENT);
}
END_TEST

static int ask_queries(struct mpig_ctl_queries ask)
{
	int socket = greeted();
	wire_header(&ask.h, MPIG_CTL_QUERIES, sizeof(ask));
	int status = call(socket, &ask, sizeof(ask));
	close(socket);
	return status;
}

START_TEST(queries_are_asked_for_properly)
{
	const struct mpig_ctl_queries good = {.name = "witness"}, *page = (const void *)reply.bytes;
	struct mpig_ctl_queries bad;
	ck_assert_int_eq(ask_queries(good), MPIG_OK);
	ck_assert_uint_eq(page->d_k, 64);
	ck_assert_uint_le(page->count, MPIG_QUERIES_PAGE);
	bad = good, bad.layer = UINT32_MAX;
	ck_assert_int_eq(ask_queries(bad), MPIG_EINVAL);
	bad = good, bad.kv_head = 2;
	ck_assert_int_eq(ask_queries(bad), MPIG_EINVAL);
	bad = good, bad.name[0] = 'x';
	ck_assert_int_eq(ask_queries(bad), MPIG_ENOENT);
	bad = good, memset(bad.name, 'w', sizeof(bad.name));
	ck_assert_int_eq(ask_queries(bad), MPIG_EPROTO);
	for (size_t i = offsetof(struct mpig_ctl_queries, count); i < sizeof(bad); i += 3) {
		bad = good, ((uint8_t *)&bad)[i] = 1;
		ck_assert_int_eq(ask_queries(bad), MPIG_EPROTO);
	}
}
END_TEST

static int ask_signature(struct mpig_ctl_signature ask)
{
	int socket = greeted();
	wire_header(&ask.h, MPIG_CTL_SIGNATURE, sizeof(ask));
	int status = call(socket, &ask, sizeof(ask));
	close(socket);
	return status;
}

START_TEST(signatures_are_asked_for_properly)
{
	const struct mpig_ctl_signature good = {.name = "witness"}, *page = (const void *)reply.bytes;
	struct mpig_ctl_signature bad;
	ck_assert_int_eq(ask_signature(good), MPIG_OK);
	ck_assert_uint_eq(page->kv_heads, 2);
	ck_assert_uint_eq(page->count, page->version ? 2 : 0);
	bad = good, bad.first = UINT32_MAX;
	ck_assert_int_eq(ask_signature(bad), MPIG_OK);
	ck_assert_uint_eq(page->count, 0);
	bad = good, bad.layer = UINT32_MAX;
	ck_assert_int_eq(ask_signature(bad), MPIG_EINVAL);
	bad = good, bad.name[0] = 'x';
	ck_assert_int_eq(ask_signature(bad), MPIG_ENOENT);
	bad = good, memset(bad.name, 'w', sizeof(bad.name));
	ck_assert_int_eq(ask_signature(bad), MPIG_EPROTO);
	for (size_t i = offsetof(struct mpig_ctl_signature, count); i < sizeof(bad); i += 3) {
		bad = good, ((uint8_t *)&bad)[i] = 1;
		ck_assert_int_eq(ask_signature(bad), MPIG_EPROTO);
	}
}
END_TEST

START_TEST(queue_sizes_are_checked)
{
	static const struct {
		uint32_t entries, slots;
		uint64_t slot_bytes;
	} cases[] = {{0, 8, 4096},
	             {3, 8, 4096},
	             {8192, 8, 4096},
	             {8, 0, 4096},
	             {8, 8, 0},
	             {8, 8, 100},
	             {8, UINT32_MAX, UINT64_MAX},
	             {8, 1, UINT64_C(1) << 40},
	             {8, UINT32_MAX, 4096},
	             {UINT32_MAX, 1, 4096}};
	int socket = greeted();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mpig_ctl_queue_create q = {
			.entries = cases[i].entries, .slot_count = cases[i].slots, .slot_bytes = cases[i].slot_bytes};
		wire_header(&q.h, MPIG_CTL_QUEUE_CREATE, sizeof(q));
		int status = call(socket, &q, sizeof(q));
		ck_assert_msg(status == MPIG_EINVAL || status == MPIG_ELIMIT || status == MPIG_EQUOTA || status == MPIG_ENOMEM,
		              "case %zu: %d", i, status);
		ck_assert_uint_gt(((struct mpig_ctl_error *)(void *)reply.bytes)->text[0], 0);
	}
	struct wire_queue good;
	wire_queue_open(socket, 8, 8, 4096, &good);
	wire_queue_close(&good);
	close(socket);
}
END_TEST

// ---- descriptors -------------------------------------------------------------------------------------------------------
static unsigned daemon_descriptors(void)
{
	char path[64];
	unsigned count = 0;
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	DIR *dir = opendir(path);
	ck_assert_ptr_nonnull(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

// The daemon closes descriptors in its own time: waits up to 5 s for the count to come down.
static void assert_descriptors(unsigned expected)
{
	struct timespec step = {0, 10000000};
	for (int tries = 0; tries < 500 && daemon_descriptors() > expected; tries++)
		nanosleep(&step, NULL);
	ck_assert_uint_le(daemon_descriptors(), expected);
}

static int adopt(int fd)
{
	struct mpig_ctl_queue_create q = {.entries = 8, .slot_count = 8, .slot_bytes = 4096, .adopt = 1};
	int socket = greeted(), fds[2];
	wire_header(&q.h, MPIG_CTL_QUEUE_CREATE, sizeof(q));
	int status = MPIG_ENODAEMON;
	if (wire_send(socket, &q, sizeof(q), fd) == 0 && wire_receive(socket, &reply, sizeof(reply), fds) > 0) {
		status = reply.h.status;
		if (fds[0] >= 0)
			close(fds[0]);
		if (fds[1] >= 0)
			close(fds[1]);
	}
	close(socket);
	return status;
}

START_TEST(foreign_regions_are_not_adopted)
{
	struct mpig_queue_header h;
	uint64_t bytes;
	ck_assert_int_eq(mpig_queue_geometry(8, 8, 4096, &h), MPIG_OK);
	bytes = h.region_bytes;
	unsigned before = daemon_descriptors();
	int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), file = open(d->config, O_RDWR),
	    event = eventfd(0, 0);
	int short_one, read_only_seals = memfd_create("write", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ck_assert_int_eq(ftruncate(unsealed, (off_t)bytes), 0);
	ck_assert_int_eq(ftruncate(read_only_seals, (off_t)bytes), 0);
	ck_assert_int_eq(fcntl(read_only_seals, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | F_SEAL_WRITE), 0);
	ck_assert_int_eq(mpig_region_create("short", bytes - 4096, &short_one), MPIG_OK);
	ck_assert_int_lt(adopt(unsealed), 0);
	ck_assert_int_lt(adopt(file), 0);
	ck_assert_int_lt(adopt(event), 0);
	ck_assert_int_lt(adopt(short_one), 0);
	ck_assert_int_lt(adopt(read_only_seals), 0);
	ck_assert_int_lt(adopt(-1), 0); // says so, but brings none
	int right;
	ck_assert_int_eq(mpig_region_create("right", bytes, &right), MPIG_OK);
	ck_assert_int_eq(adopt(right), MPIG_OK);
	close(unsealed), close(file), close(event), close(short_one), close(read_only_seals), close(right);
	assert_descriptors(before);
}
END_TEST

START_TEST(descriptors_nobody_asked_for_are_closed)
{
	struct mpig_control_header ping;
	unsigned before = daemon_descriptors();
	for (int i = 0; i < 100; i++) {
		int socket = greeted(), fds[2], gift = eventfd(0, EFD_CLOEXEC);
		wire_header(&ping, MPIG_CTL_PING, sizeof(ping));
		if (i % 2)
			ping.magic = 0;
		ck_assert_int_eq(wire_send(socket, &ping, sizeof(ping), gift), 0);
		wire_receive(socket, &reply, sizeof(reply), fds);
		ck_assert_int_eq(fds[0], -1);
		close(gift);
		close(socket);
	}
	assert_descriptors(before);
}
END_TEST

// A client that never reads its answers is dropped or held up, but holds up nobody.
START_TEST(answers_nobody_reads)
{
	struct mpig_ctl_list list = {.cursor = 0};
	int socket = greeted();
	ck_assert_int_eq(fcntl(socket, F_SETFL, O_NONBLOCK), 0);
	for (int i = 0; i < 5000; i++) {
		wire_header(&list.h, MPIG_CTL_LIST, sizeof(list));
		if (wire_send(socket, &list, sizeof(list), -1))
			break;
		if (i % 500 == 0)
			ck_assert_status(mpig_ping(witness.client), MPIG_OK);
	}
	ck_assert_status(mpig_ping(witness.client), MPIG_OK);
	close(socket);
}
END_TEST

// ---- fuzz --------------------------------------------------------------------------------------------------------------
static size_t request_size(unsigned op)
{
	switch (op) {
	case MPIG_CTL_HELLO:
		return sizeof(struct mpig_ctl_hello);
	case MPIG_CTL_QUEUE_CREATE:
		return sizeof(struct mpig_ctl_queue_create);
	case MPIG_CTL_QUEUE_DESTROY:
		return sizeof(struct mpig_ctl_queue_destroy);
	case MPIG_CTL_CREATE:
		return sizeof(struct mpig_ctl_create) + 2 * sizeof(struct mpig_wire_layer);
	case MPIG_CTL_LIST:
		return sizeof(struct mpig_ctl_list);
	case MPIG_CTL_HEADS:
		return sizeof(struct mpig_ctl_heads);
	case MPIG_CTL_SIGNATURE:
		return sizeof(struct mpig_ctl_signature);
	case MPIG_CTL_REINDEX:
		return sizeof(struct mpig_ctl_reindex);
	case MPIG_CTL_DISK:
		return sizeof(struct mpig_ctl_disk);
	case MPIG_CTL_SAVED:
		return sizeof(struct mpig_ctl_saved);
	case MPIG_CTL_VERIFY:
		return sizeof(struct mpig_ctl_verify);
	case MPIG_CTL_CLIENTS:
		return sizeof(struct mpig_ctl_clients);
	case MPIG_CTL_KILL:
		return sizeof(struct mpig_ctl_kill);
	case MPIG_CTL_QUOTA:
		return sizeof(struct mpig_ctl_quota);
	case MPIG_CTL_DRAIN:
		return sizeof(struct mpig_ctl_drain);
	case MPIG_CTL_TRACE:
		return sizeof(struct mpig_ctl_trace);
	case MPIG_CTL_PROFILE:
		return sizeof(struct mpig_ctl_profile);
	case MPIG_CTL_QUERIES:
		return sizeof(struct mpig_ctl_queries);
	case MPIG_CTL_PING:
	case MPIG_CTL_STATUS:
	case MPIG_CTL_CONFIG_GET:
		return sizeof(struct mpig_control_header);
	default:
		return sizeof(struct mpig_ctl_open);
	}
}

// A message that is nearly right: some bytes of the body are random, most are zero, the framing is broken one time in eight. The
// witness's context is never named, so that nothing can be dropped that is needed.
static size_t fuzz_message(uint64_t *random, uint8_t *message)
{
	unsigned op = (unsigned)(model_random(random) % (MPIG_CTL_COUNT + 1));
	size_t size = request_size(op);
	struct mpig_control_header h;
	memset(message, 0, 4096);
	for (size_t i = sizeof(h), n = model_random(random) % 12; n--;
	     i = sizeof(h) + model_random(random) % (size - sizeof(h) + 1))
		message[i] = (uint8_t)(model_random(random) >> (model_random(random) % 2 ? 56 : 62));
	if (model_random(random) % 2 && size >= sizeof(h) + 2)
		memcpy(message + sizeof(h), (const char *[]){"a", "b", "f\1", "//"}[model_random(random) % 4], 2);
	if (op == MPIG_CTL_KILL)
		message[sizeof(h) + 7] |= 0x80; // an id nobody has: it might be the witness's
	wire_header(&h, (enum mpig_control_op)op, size);
	memcpy(message, &h, sizeof(h));
	if (model_random(random) % 8 == 0)
		message[model_random(random) % sizeof(h)] ^= (uint8_t)(1u << (model_random(random) % 8));
	if (model_random(random) % 16 == 0)
		size = model_random(random) % 4096;
	return size;
}

START_TEST(a_fuzz_of_messages_harms_nobody)
{
	uint64_t random = 20240601 + (uint64_t)_i;
	uint8_t message[4096];
	unsigned answered = 0, closed = 0, accepted = 0;
	int socket = greeted();
	for (int i = 0; i < 3000; i++) {
		size_t size = fuzz_message(&random, message);
		int gift = model_random(&random) % 10 ? -1 : memfd_create("gift", MFD_CLOEXEC), fds[2] = {-1, -1};
		bool lost = size == 0 || wire_send(socket, message, size, gift) != 0 ||
		            wire_receive(socket, &reply, sizeof(reply), fds) == 0;
		for (int k = 0; k < 2; k++)
			if (fds[k] >= 0)
				close(fds[k]);
		if (gift >= 0)
			close(gift);
		answered += !lost;
		accepted += !lost && reply.h.status == MPIG_OK;
		if (lost || i % 100 == 99) {
			closed += lost;
			close(socket);
			socket = greeted();
		}
		if (i % 500 == 0)
			assert_unharmed();
	}
	close(socket);
	ck_assert_uint_gt(answered, 1000); // the fuzz gets past the framing
	ck_assert_uint_gt(accepted, 100);
	ck_assert_uint_gt(closed, 50);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/malformed control");
	TCase *framing = tcase_create("framing"), *descriptors = tcase_create("descriptors"), *fuzz = tcase_create("fuzz");
	TCase *cases[] = {framing, descriptors, fuzz};
	for (int i = 0; i < 3; i++) {
		tcase_add_checked_fixture(cases[i], setup, teardown);
		tcase_set_timeout(cases[i], 120);
		suite_add_tcase(suite, cases[i]);
	}
	tcase_add_test(framing, a_broken_header_is_refused);
	tcase_add_test(framing, an_empty_or_huge_datagram_is_refused);
	tcase_add_test(framing, hello_must_match);
	tcase_add_test(framing, reserved_bytes_must_be_zero);
	tcase_add_test(framing, recording_is_asked_for_properly);
	tcase_add_test(framing, heads_are_asked_for_properly);
	tcase_add_test(framing, lists_are_asked_for_properly);
	tcase_add_test(framing, profiles_are_asked_for_properly);
	tcase_add_test(framing, queries_are_asked_for_properly);
	tcase_add_test(framing, administrators_operations_are_asked_for_properly);
	tcase_add_test(framing, signatures_are_asked_for_properly);
	tcase_add_test(framing, queue_sizes_are_checked);
	tcase_add_test(descriptors, foreign_regions_are_not_adopted);
	tcase_add_test(descriptors, descriptors_nobody_asked_for_are_closed);
	tcase_add_test(descriptors, answers_nobody_reads);
	tcase_add_loop_test(fuzz, a_fuzz_of_messages_harms_nobody, 0, 2);
	return suite_run(suite);
}
