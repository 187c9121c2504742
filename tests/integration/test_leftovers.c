// Clients that keep what they shared with the daemon, a queue's memfd or a recording's, after they gave it up, were ended, or died: the memory is
// taken back, and until then it counts as theirs. And those that come back for it find it as it was.
#include <check.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/suite.h"
#include "tests/lib/wire.h" // first: shm/ has the enumerations that magicpig.h copies

#include "shm/region.h"
#include "shm/status.h"
#include "shm/trace.h"
#include "tests/lib/client.h"

#define SLOTS 4u
#define SLOT_BYTES (UINT64_C(1) << 20)
#define RING_BYTES (UINT64_C(8) << 20)

static struct test_daemon *d;
static struct test_client me;
static uint64_t baseline; // of my own queue

static uint64_t charged(void)
{
	struct mpig_quota user = MPIG_INIT(user), group = MPIG_INIT(group), again = MPIG_INIT(again);
	do { // until nothing has changed meanwhile
		ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &user), MPIG_OK);
		ck_assert_status(mpig_quota_get_group(me.client, UINT32_MAX, &group), MPIG_OK);
		ck_assert_status(mpig_quota_get(me.client, UINT32_MAX, &again), MPIG_OK);
	} while (again.region_bytes != user.region_bytes);
	ck_assert_uint_eq(user.region_bytes, group.region_bytes);
	return user.region_bytes - baseline;
}

static void start(const char *lines)
{
	d = test_daemon_start(lines);
	test_client_open(&me, d);
	baseline = 0;
	baseline = charged();
}

static void stop(void)
{
	test_client_close(&me);
	test_daemon_stop(d);
}

static void start_patient(void)
{
	start("[limits]\nregion_keep = 600s\n");
}

static void start_hasty(void)
{
	start("[limits]\nregion_keep = 300ms\n");
}

static uint64_t blocks(int fd)
{
	struct stat file;
	ck_assert_int_eq(fstat(fd, &file), 0);
	return (uint64_t)file.st_blocks * 512;
}

static void assert_taken_back(int fd)
{
	for (int i = 0; i < 2000 && (blocks(fd) || charged()); i++)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	ck_assert_uint_eq(blocks(fd), 0);
	ck_assert_uint_eq(charged(), 0);
}

static int connected(void)
{
	int s = wire_connect(d);
	ck_assert_int_eq(wire_hello(s), MPIG_OK);
	return s;
}

// A connection with a queue whose slots the client has written.
static int with_queue(struct wire_queue *q)
{
	int s = connected();
	wire_queue_open(s, 4, SLOTS, SLOT_BYTES, q);
	memset(wire_slot(q, 0), 0x5a, SLOTS * SLOT_BYTES);
	ck_assert_uint_eq(blocks(q->region), q->header.region_bytes);
	return s;
}

static int destroy(int s, uint32_t id)
{
	struct mpig_ctl_queue_destroy request = {.queue_id = id};
	struct mpig_ctl_error reply;
	wire_header(&request.h, MPIG_CTL_QUEUE_DESTROY, sizeof(request));
	return wire_call(s, &request, sizeof(request), &reply, sizeof(reply));
}

// Offers the region of q again, on connection s. On success q is the new queue.
static int offer(int s, struct wire_queue *q)
{
	struct mpig_ctl_queue_create request = {.entries = 4, .slot_count = SLOTS, .slot_bytes = SLOT_BYTES, .adopt = 1};
	union {
		struct mpig_ctl_queue_create reply;
		struct mpig_ctl_error error;
	} reply;
	int fds[2];
	wire_header(&request.h, MPIG_CTL_QUEUE_CREATE, sizeof(request));
	ck_assert_int_eq(wire_send(s, &request, sizeof(request), q->region), 0);
	ck_assert_int_gt(wire_receive(s, &reply, sizeof(reply), fds), 0);
	if (reply.reply.h.status != MPIG_OK)
		return reply.reply.h.status;
	close(fds[0]);
	close(q->eventfd);
	q->eventfd = fds[1];
	q->id = reply.reply.queue_id;
	ck_assert_int_eq(mpig_queue_header_check(q->base, q->header.region_bytes, &q->header), MPIG_OK);
	mpig_client_rings(q->base, &q->header, &q->sq, &q->cq);
	return MPIG_OK;
}

// Ends all connections but mine.
static void kill_others(void)
{
	struct mpig_client_info infos[16];
	uint64_t cursor = 0;
	for (int i = 0; i < 16; i++)
		infos[i] = (struct mpig_client_info)MPIG_INIT(infos[i]);
	int n = mpig_client_list(me.client, &cursor, infos, 16);
	for (int i = 0; i < n; i++)
		if (!(infos[i].flags & MPIG_CLIENT_INFO_SELF))
			ck_assert_status(mpig_client_kill(me.client, infos[i].id), MPIG_OK);
}

static void configure(const char *assignment)
{
	char text[1024];
	ck_assert_msg(mpig_daemon_configure(me.client, assignment, text, sizeof(text)) >= 0, "%s", mpig_last_error(me.client));
}

// A recording of a context that belongs to me; its ring's fd.
static int recording(int s, uint32_t *number)
{
	struct mpig_ctl_trace request = {.action = MPIG_TRACE_START, .ring_bytes = RING_BYTES}, reply;
	int fds[2];
	snprintf(request.name, sizeof(request.name), "book");
	wire_header(&request.h, MPIG_CTL_TRACE, sizeof(request));
	ck_assert_int_eq(wire_send(s, &request, sizeof(request), -1), 0);
	ck_assert_int_eq(wire_receive(s, &reply, sizeof(reply), fds), (int)sizeof(reply));
	ck_assert_int_eq(reply.h.status, MPIG_OK);
	ck_assert_uint_eq(blocks(fds[0]), RING_BYTES + sizeof(struct mpig_trace_ring));
	ck_assert_uint_eq(charged(), RING_BYTES + sizeof(struct mpig_trace_ring));
	*number = reply.number;
	return fds[0];
}

static void make_book(void)
{
	struct model_data data;
	struct mpig_layer layer = test_client_layer(4, 2, 64);
	model_data_make(&data, &layer, 1, 10, 7);
	test_client_create(&me, "book", &data);
	model_data_free(&data);
}

// ---- given up ----------------------------------------------------------------------------------------------------------
START_TEST(a_queue_that_was_destroyed)
{
	struct wire_queue q;
	int s = with_queue(&q);
	ck_assert_uint_eq(charged(), q.header.region_bytes);
	ck_assert_int_eq(destroy(s, q.id), MPIG_OK);
	assert_taken_back(q.region);
	ck_assert_int_eq(wire_slot(&q, 1)[7], 0); // a page of one's own, by the mapping that was kept
	ck_assert_uint_gt(blocks(q.region), 0);
	ck_assert_int_eq(offer(s, &q), MPIG_EINVAL); // not what it was
	ck_assert_uint_eq(charged(), 0);
	wire_queue_close(&q);
	close(s);
}
END_TEST

START_TEST(a_recording_that_was_stopped)
{
	uint32_t number;
	make_book();
	int s = connected(), ring = recording(s, &number);
	struct mpig_ctl_trace stop_it = {.action = MPIG_TRACE_STOP, .number = number}, reply;
	wire_header(&stop_it.h, MPIG_CTL_TRACE, sizeof(stop_it));
	ck_assert_int_eq(wire_call(s, &stop_it, sizeof(stop_it), &reply, sizeof(reply)), MPIG_OK);
	ck_assert_uint_eq(blocks(ring), 0); // at once
	ck_assert_uint_eq(charged(), 0);
	close(ring);
	close(s);
}
END_TEST

// Again and again, as to hoard memory that nobody is charged for.
START_TEST(hoarding)
{
	enum { TIMES = 40 };
	struct wire_queue q[TIMES];
	int s = connected();
	for (int i = 0; i < TIMES; i++) {
		wire_queue_open(s, 4, SLOTS, SLOT_BYTES, &q[i]);
		ck_assert_int_eq(destroy(s, q[i].id), MPIG_OK);
		assert_taken_back(q[i].region);
	}
	for (int i = 0; i < TIMES; i++) {
		ck_assert_uint_eq(blocks(q[i].region), 0);
		wire_queue_close(&q[i]);
	}
	close(s);
}
END_TEST

START_TEST(a_client_that_disconnects)
{
	struct test_client other;
	mpig_queue *second;
	test_client_open(&other, d);
	ck_assert_status(mpig_queue_create(other.client, NULL, &second), MPIG_OK);
	ck_assert_uint_gt(charged(), 0);
	test_client_close(&other);
	assert_taken_back(memfd_create("nothing", MFD_CLOEXEC)); // ten minutes have not passed
	struct wire_queue q[3];
	int s = connected();
	for (int i = 0; i < 3; i++)
		wire_queue_open(s, 4, SLOTS, SLOT_BYTES, &q[i]);
	ck_assert_int_eq(destroy(s, MPIG_ALL_QUEUES), MPIG_OK);
	for (int i = 0; i < 3; i++) {
		assert_taken_back(q[i].region);
		wire_queue_close(&q[i]);
	}
	ck_assert_int_eq(destroy(s, MPIG_ALL_QUEUES), MPIG_OK); // of none
	close(s);
}
END_TEST

// ---- left --------------------------------------------------------------------------------------------------------------
START_TEST(who_comes_back_in_time_finds_it_as_it_was)
{
	struct wire_queue q;
	int s = with_queue(&q), again = connected();
	struct mpig_sqe nop = {.op = MPIG_OP_NOP, .slot = MPIG_NO_SLOT, .user_data = 9};
	close(s); // without a word
	for (int i = 0, status = MPIG_EAGAIN; status == MPIG_EAGAIN; i++) {
		ck_assert_int_lt(i, 1000);
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		ck_assert_uint_eq(charged(), q.header.region_bytes);
		ck_assert_uint_eq(blocks(q.region), q.header.region_bytes);
		status = offer(again, &q);
		ck_assert(status == MPIG_EAGAIN || status == MPIG_OK);
	}
	ck_assert_uint_eq(charged(), q.header.region_bytes); // once
	for (uint64_t i = 0; i < SLOTS * SLOT_BYTES; i++)
		if (wire_slot(&q, 0)[i] != 0x5a)
			ck_abort_msg("byte %llu of the slots", (unsigned long long)i);
	wire_submit(&q, &nop);
	ck_assert_uint_eq(wire_complete(&q).user_data, 9);
	ck_assert_int_eq(destroy(again, q.id), MPIG_OK);
	assert_taken_back(q.region);
	wire_queue_close(&q);
	close(again);
}
END_TEST

START_TEST(who_comes_back_too_late_does_not)
{
	struct wire_queue q;
	int s = with_queue(&q);
	kill_others();
	close(s);
	assert_taken_back(q.region);
	s = connected();
	ck_assert_int_eq(offer(s, &q), MPIG_EINVAL);
	wire_queue_close(&q);
	close(s);
}
END_TEST

START_TEST(a_recorder_that_was_ended_reads_what_is_there)
{
	uint32_t number;
	void *base;
	make_book();
	int s = connected(), ring = recording(s, &number);
	ck_assert_int_eq(mpig_region_map(ring, RING_BYTES + sizeof(struct mpig_trace_ring), 1, &base), MPIG_OK);
	kill_others();
	const struct mpig_trace_ring *shared = base;
	ck_assert_uint_eq(shared->magic, MPIG_TRACE_MAGIC); // for 300 ms
	ck_assert_uint_eq(__atomic_load_n(&shared->ended, __ATOMIC_ACQUIRE), MPIG_TRACE_STOPPED);
	munmap(base, RING_BYTES + sizeof(struct mpig_trace_ring));
	assert_taken_back(ring);
	close(ring);
	close(s);
}
END_TEST

// The library's way back: in time to the same memory, later to another one; and a lent queue, which cannot move, is lost.
START_TEST(the_librarys_way_back)
{
	struct test_client other;
	struct mpig_region r = MPIG_INIT(r);
	test_client_open(&other, d);
	kill_others();
	int status = MPIG_ERETRY;
	for (int i = 0; i < 5 && status == MPIG_ERETRY; i++)
		status = mpig_nop(other.queue);
	ck_assert_status(status, MPIG_OK);
	kill_others();
	assert_taken_back(memfd_create("nothing", MFD_CLOEXEC));
	for (int i = 0; i < 5 && (status = mpig_nop(other.queue)) == MPIG_ERETRY; i++)
		;
	ck_assert_status(status, MPIG_OK);
	ck_assert_status(mpig_queue_lend(other.queue, &r), MPIG_OK);
	kill_others();
	status = mpig_queue_renew(other.queue, &r);
	ck_assert_msg(status == 1, "%s: %s", mpig_strerror(status), mpig_last_error(other.client));
	kill_others();
	assert_taken_back(memfd_create("nothing", MFD_CLOEXEC));
	ck_assert_status(mpig_queue_renew(other.queue, &r), MPIG_ELOST);
	mpig_queue_take_back(other.queue);
	ck_assert_status(mpig_nop(other.queue), MPIG_OK); // in memory of its own
	test_client_close(&other);
}
END_TEST

// A client dies, but a child of it, and another process, keep what it had.
START_TEST(a_client_that_dies)
{
	int pair[2], fds[2];
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	fflush(NULL);
	pid_t client = fork();
	if (client == 0) {
		struct wire_queue q;
		with_queue(&q);
		pid_t child = fork();
		if (child == 0) {
			pause();
			_exit(0);
		}
		wire_send(pair[1], &child, sizeof(child), q.region);
		pause();
		_exit(0);
	}
	pid_t child;
	ck_assert_int_eq(wire_receive(pair[0], &child, sizeof(child), fds), (int)sizeof(child));
	ck_assert_uint_gt(charged(), SLOTS * SLOT_BYTES);
	ck_assert_int_eq(kill(client, SIGKILL), 0);
	assert_taken_back(fds[0]);
	ck_assert_int_eq(kill(child, SIGKILL), 0);
	ck_assert_int_eq(waitpid(client, NULL, 0), client);
	close(fds[0]);
	close(pair[0]);
	close(pair[1]);
}
END_TEST

// What is left counts, and says so; who comes back for it needs no room for it twice.
START_TEST(what_is_left_counts)
{
	struct wire_queue q;
	struct mpig_queue_options options = MPIG_INIT(options);
	mpig_queue *more = NULL;
	char line[64];
	int s = with_queue(&q);
	options.slots = SLOTS;
	options.slot_bytes = SLOT_BYTES;
	snprintf(line, sizeof(line), "limits.region_bytes_per_uid=%llu", (unsigned long long)(baseline + q.header.region_bytes));
	configure(line);
	kill_others();
	close(s);
	ck_assert_status(mpig_queue_create(me.client, &options, &more), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(me.client), "kept for limits.region_keep"));
	s = connected();
	ck_assert_int_eq(offer(s, &q), MPIG_OK);
	kill_others();
	close(s);
	// Nor can they be many: me and one of them is two.
	configure("limits.region_bytes_per_uid=1G");
	configure("limits.queues_per_uid=2");
	struct wire_queue second;
	s = with_queue(&second);
	kill_others();
	close(s);
	mpig_queue_destroy(me.queue);
	ck_assert_status(mpig_queue_create(me.client, NULL, &me.queue), MPIG_EQUOTA);
	ck_assert_ptr_nonnull(strstr(mpig_last_error(me.client), "has left 2 regions"));
	s = connected();
	ck_assert_int_eq(offer(s, &q), MPIG_OK);
	ck_assert_status(mpig_queue_create(me.client, NULL, &me.queue), MPIG_OK);
	ck_assert_int_eq(destroy(s, q.id), MPIG_OK);
	wire_queue_close(&q);
	wire_queue_close(&second);
	close(s);
}
END_TEST

// ---- a client that keeps the file locked ---------------------------------------------------------------------------------
struct stuck {
	int file, uffd;
	uint8_t *page;
};

// Holds the file's lock: a write whose source has no page yet.
static void *write_from_nowhere(void *argument)
{
	struct stuck *s = argument;
	ck_assert_int_eq(pwrite(s->file, s->page, 100, 4096), 100);
	return NULL;
}

static bool make_stuck(struct stuck *s, int file)
{
	struct uffdio_api api = {.api = UFFD_API};
	s->file = file;
	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	s->page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(s->page, MAP_FAILED);
	struct uffdio_register all = {.range = {(uintptr_t)s->page, 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	return s->uffd >= 0 && ioctl(s->uffd, UFFDIO_API, &api) == 0 && ioctl(s->uffd, UFFDIO_REGISTER, &all) == 0;
}

START_TEST(a_file_that_is_kept_locked)
{
	struct wire_queue q, second;
	struct stuck stuck;
	struct uffd_msg fault;
	pthread_t thread;
	int s = with_queue(&q);
	wire_queue_open(s, 4, SLOTS, SLOT_BYTES, &second);
	if (!make_stuck(&stuck, q.region)) {
		fprintf(stderr, "not tested: no userfaultfd here\n");
		goto close;
	}
	ck_assert_int_eq(pthread_create(&thread, NULL, write_from_nowhere, &stuck), 0);
	ck_assert_int_eq(read(stuck.uffd, &fault, sizeof(fault)), (int)sizeof(fault)); // it stands, with the lock
	ck_assert_int_eq(destroy(s, q.id), MPIG_OK);
	ck_assert_status(mpig_ping(me.client), MPIG_OK); // nobody waits for it
	ck_assert_status(mpig_nop(me.queue), MPIG_OK);
	ck_assert_int_eq(destroy(s, second.id), MPIG_OK); // behind the first: of the same user
	ck_assert_status(mpig_ping(me.client), MPIG_OK);
	int status = MPIG_EAGAIN;
	for (int i = 0; i < 1000 && (status = offer(s, &second)) == MPIG_EAGAIN; i++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	ck_assert_int_eq(status, MPIG_EINVAL);
	ck_assert_uint_eq(charged(), 2 * q.header.region_bytes);
	ck_assert_uint_eq(blocks(q.region), q.header.region_bytes);
	struct uffdio_zeropage zeros = {.range = {(uintptr_t)stuck.page, 4096}};
	ck_assert_int_eq(ioctl(stuck.uffd, UFFDIO_ZEROPAGE, &zeros), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	assert_taken_back(q.region);
	assert_taken_back(second.region);
close:
	wire_queue_close(&q);
	wire_queue_close(&second);
	close(s);
}
END_TEST

// The daemon goes, and the next one comes, while a client keeps the file locked.
START_TEST(the_next_daemon_does_not_wait_for_it)
{
	struct wire_queue q;
	struct stuck stuck;
	struct uffd_msg fault;
	pthread_t thread;
	int s = with_queue(&q);
	if (make_stuck(&stuck, q.region)) {
		ck_assert_int_eq(pthread_create(&thread, NULL, write_from_nowhere, &stuck), 0);
		ck_assert_int_eq(read(stuck.uffd, &fault, sizeof(fault)), (int)sizeof(fault));
		ck_assert_int_eq(destroy(s, q.id), MPIG_OK);
		ck_assert_status(mpig_ping(me.client), MPIG_OK);
		test_daemon_term(d);
		for (int i = 0; i < 1000 && !test_daemon_logged(d, "magicpigd stopped"); i++)
			nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		ck_assert(test_daemon_logged(d, "magicpigd stopped")); // but for the thread that stands in the kernel
		fflush(NULL);
		const char *program = getenv("MAGICPIGD") ? getenv("MAGICPIGD") : "build/magicpigd";
		pid_t next = fork();
		if (next == 0) {
			int log = open(d->log, O_WRONLY | O_APPEND);
			dup2(log, 2);
			execl(program, program, "--config", d->config, (char *)NULL);
			_exit(127);
		}
		int status = MPIG_ENODAEMON;
		for (int i = 0; i < 100 && status != MPIG_OK; i++)
			status = mpig_ping(me.client);
		ck_assert_status(status, MPIG_OK);
		ck_assert_int_eq(kill(next, SIGTERM), 0);
		ck_assert_int_eq(waitpid(next, &status, 0), next);
		ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		struct uffdio_zeropage zeros = {.range = {(uintptr_t)stuck.page, 4096}};
		ck_assert_int_eq(ioctl(stuck.uffd, UFFDIO_ZEROPAGE, &zeros), 0);
		ck_assert_int_eq(pthread_join(thread, NULL), 0);
		ck_assert_int_eq(test_daemon_wait(d), 0);
		test_daemon_again(d);
	} else {
		fprintf(stderr, "not tested: no userfaultfd here\n");
	}
	wire_queue_close(&q);
	close(s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("integration/leftovers");
	TCase *patient = tcase_create("patient"), *hasty = tcase_create("hasty");
	tcase_add_checked_fixture(patient, start_patient, stop);
	tcase_add_checked_fixture(hasty, start_hasty, stop);
	tcase_set_timeout(patient, 120);
	tcase_set_timeout(hasty, 120);
	tcase_add_test(patient, a_queue_that_was_destroyed);
	tcase_add_test(patient, a_recording_that_was_stopped);
	tcase_add_test(patient, hoarding);
	tcase_add_test(patient, a_client_that_disconnects);
	tcase_add_test(patient, who_comes_back_in_time_finds_it_as_it_was);
	tcase_add_test(patient, a_client_that_dies);
	tcase_add_test(patient, what_is_left_counts);
	tcase_add_test(patient, a_file_that_is_kept_locked);
	tcase_add_test(patient, the_next_daemon_does_not_wait_for_it);
	tcase_add_test(hasty, who_comes_back_too_late_does_not);
	tcase_add_test(hasty, a_recorder_that_was_ended_reads_what_is_there);
	tcase_add_test(hasty, the_librarys_way_back);
	suite_add_tcase(suite, patient);
	suite_add_tcase(suite, hasty);
	return suite_run(suite);
}
