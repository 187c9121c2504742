// An ingest: a queue that a GPU feeds with rows. It is made and ended here, says how far it is, and finds out why it does not get on.
#include "cuda/ingest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_SLOT_BYTES ((UINT64_C(16) << 20) + 4096) // with a page for the header: whole pieces of what rows are kept in
#define DEFAULT_SLOTS 4u
#define DEFAULT_TIMEOUT_MS 30000
#define DEFAULT_PATIENCE_MS 120000
#define DEFAULT_BLOCKS 32u
#define MOST_BLOCKS 1024u
#define AWAKE_MS 200
#define LOOK_NS UINT64_C(5000000) // between questions whether the daemon lives
#define NAP_NS 20000

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

// ---- how it stands -----------------------------------------------------------------------------------------------------
// Kernels that wait for an answer which will not come end now.
static void stop(struct mpig_cuda_ingest *g, int status)
{
	g->failed = status;
	__atomic_store_n(&g->host->report.stop, (uint32_t)status, __ATOMIC_RELEASE); // partner: ingest_wait of the kernels
}

int ingest_status(struct mpig_cuda_ingest *g)
{
	int status = mpig_cuda_failure(g->gpu, NULL);
	uint64_t now = now_ns();
	if (status || g->failed)
		return status ? status : g->failed;
	if (g->looked_ns && now - g->looked_ns < LOOK_NS)
		return MPIG_OK;
	g->looked_ns = now;
	status = mpig_awake(g->queue, AWAKE_MS);
	if (status == MPIG_ERETRY)
		stop(g, status);
	return g->failed;
}

static int failure_text(struct mpig_cuda_ingest *g, int status)
{
	struct mpig_cuda_ingest_failure f = MPIG_INIT(struct mpig_cuda_ingest_failure);
	if (mpig_cuda_ingest_failure(g, &f) && f.context && f.layer >= 0)
		return cuda_error_set(status, "tokens %llu + %llu of layer %d of '%s': %s: call mpig_cuda_ingest_recover",
		                      (unsigned long long)f.first, (unsigned long long)f.count, f.layer,
		                      mpig_context_name(f.context), mpig_strerror(status));
	if (f.status && f.context)
		return cuda_error_set(status, "the commit of tokens %llu + %llu of '%s': %s: call mpig_cuda_ingest_recover",
		                      (unsigned long long)f.first, (unsigned long long)f.count, mpig_context_name(f.context),
		                      mpig_strerror(status));
	return cuda_error_set(status, "%s: call mpig_cuda_ingest_recover", mpig_strerror(status));
}

// 1: the ingest's stream has nothing left to do; 0: it has; or a failure, which is kept.
static int stream_through(struct mpig_cuda_ingest *g)
{
	int result = CU_OK, rc = gpu_enter(g->gpu);
	if (rc == MPIG_OK) {
		result = g->gpu->driver->stream_query(g->stream);
		gpu_leave(g->gpu);
	}
	if (rc == MPIG_OK && result != CU_NOT_READY)
		rc = cuda_error_of(g->gpu->driver, result, "waiting for the kernels of an ingest");
	if (rc)
		stop(g, rc);
	return rc ? rc : result == CU_OK;
}

// The host's patience with kernels that may be waiting for a stream of the caller's, of which nobody knows when it goes on.
struct patience {
	uint64_t since_ns, kernels; // they stood at this number since then
};

static int nap(struct mpig_cuda_ingest *g, struct patience *p)
{
	uint64_t now = now_ns(), kernels = __atomic_load_n(&g->host->report.copied, __ATOMIC_RELAXED) +
	                                   __atomic_load_n(&g->host->report.done, __ATOMIC_RELAXED);
	if (!p->since_ns || kernels != p->kernels)
		*p = (struct patience){now, kernels};
	if (now - p->since_ns > g->patience_ns)
		return cuda_error_set(
			MPIG_EAGAIN,
			"the ingest has not moved for %llu ms: what is on the streams of mpig_cuda_ingest_layer before "
			"the rows has not come to its end (or the daemon is slow); nothing is lost, the same call "
			"goes on waiting",
			(unsigned long long)(g->patience_ns / 1000000));
	nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
	return MPIG_OK;
}

int ingest_await(struct mpig_cuda_ingest *g, const uint64_t *word, uint64_t number)
{
	struct patience patience = {0};
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < number) { // partner: a kernel's store behind its fence
		int through = stream_through(g);
		if (through < 0)
			return through;
		if (through && __atomic_load_n(word, __ATOMIC_ACQUIRE) < number) {
			stop(g, MPIG_EIO);
			return cuda_error_set(MPIG_EIO, "a kernel of an ingest ended without saying so");
		}
		ingest_status(g);
		int rc = through ? MPIG_OK : nap(g, &patience);
		if (rc)
			return rc;
	}
	return MPIG_OK;
}

static int context_note(struct mpig_cuda_ingest *g, mpig_context *context)
{
	for (uint32_t i = g->contexts; i--;)
		if (g->context[i] == context)
			return MPIG_OK;
	if (g->contexts == g->context_room) {
		uint32_t room = g->context_room ? 2 * g->context_room : 8;
		mpig_context **all = realloc((void *)g->context, room * sizeof(*all));
		if (!all)
			return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
		g->context = all;
		g->context_room = room;
	}
	g->context[g->contexts++] = context;
	return MPIG_OK;
}

int ingest_begin(struct mpig_cuda_ingest *g, mpig_context *context)
{
	int status = ingest_status(g);
	if (status)
		return failure_text(g, status);
	g->began_ns = g->began_ns ? g->began_ns : now_ns();
	return context_note(g, context);
}

// ---- kernels -----------------------------------------------------------------------------------------------------------
int ingest_launch(struct mpig_cuda_ingest *g, struct gpu_ingest *a, unsigned blocks)
{
	if (g->launched >= INGEST_AHEAD) {
		int rc = ingest_await(g, &g->host->report.copied, g->launched - INGEST_AHEAD + 1);
		if (rc == MPIG_EAGAIN)
			return rc;
		rc = rc ? rc : ingest_status(g);
		if (rc)
			return failure_text(g, rc);
	}
	a->queue = g->gpu->args;
	a->state = g->state;
	a->report = g->host_device + offsetof(struct ingest_host, report);
	a->number = g->launched + 1;
	int rc = gpu_launch(g->gpu, g->gpu->kernel.ingest, "mpig_ingest", blocks, 1, GPU_BLOCK, g->stream, a);
	if (rc == MPIG_OK)
		g->launched++;
	return rc;
}

int ingest_launch_wait(struct mpig_cuda_ingest *g, uint32_t first, uint32_t slots)
{
	struct gpu_ingest a = {.slot = MPIG_NO_SLOT, .wait_first = first, .wait_slots = slots};
	return ingest_launch(g, &a, 1);
}

// ---- making and ending -------------------------------------------------------------------------------------------------
static int options_check(struct mpig_cuda_ingest_options *o)
{
	o->slot_bytes = o->slot_bytes ? o->slot_bytes : DEFAULT_SLOT_BYTES;
	o->slots = o->slots ? o->slots : DEFAULT_SLOTS;
	o->timeout_ms = o->timeout_ms ? o->timeout_ms : DEFAULT_TIMEOUT_MS;
	o->blocks = o->blocks ? o->blocks : DEFAULT_BLOCKS;
	o->patience_ms = o->patience_ms ? o->patience_ms : DEFAULT_PATIENCE_MS;
	if (o->slots < 2 || o->slots > INGEST_MOST_SLOTS)
		return cuda_error_set(MPIG_EINVAL, "slots = %u: 2 to %u, or 0 for %u", o->slots, INGEST_MOST_SLOTS,
		                      DEFAULT_SLOTS);
	if (o->blocks > MOST_BLOCKS)
		return cuda_error_set(MPIG_EINVAL, "blocks = %u: at most %u, or 0 for %u", o->blocks, MOST_BLOCKS,
		                      DEFAULT_BLOCKS);
	return MPIG_OK;
}

static int queues_make(struct mpig_cuda_ingest *g, const struct mpig_cuda_ingest_options *o)
{
	struct mpig_queue_options q = {
		.size = sizeof(q), .entries = 16, .slots = o->slots, .slot_bytes = o->slot_bytes, .timeout_ms = o->timeout_ms};
	struct mpig_queue_options own = {
		.size = sizeof(own), .entries = 2, .slots = 1, .slot_bytes = 4096, .timeout_ms = o->timeout_ms};
	struct mpig_cuda_options c = {.size = sizeof(c), .timeout_ms = o->timeout_ms};
	while (q.entries < 2 * o->slots) // an entry's place is used again when its request was answered long ago
		q.entries *= 2;
	int rc = mpig_queue_create(g->client, &q, &g->queue);
	rc = rc ? rc : mpig_queue_create(g->client, &own, &g->own);
	if (rc)
		return cuda_error_set(rc, "a queue of %u slots of %llu bytes: %s", o->slots, (unsigned long long)o->slot_bytes,
		                      mpig_last_error(g->client));
	return mpig_cuda_attach(g->queue, &c, &g->gpu);
}

static int memory_make(struct mpig_cuda_ingest *g)
{
	const struct driver *d = g->gpu->driver;
	void *host = NULL;
	int least, greatest, rc = gpu_enter(g->gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(d, d->host_alloc(&host, sizeof(*g->host), CU_HOST_ALLOC_PORTABLE_DEVICEMAP), "allocating host memory");
	g->host = host;
	rc = rc ? rc : cuda_error_of(d, d->host_pointer(&g->host_device, host, 0), "asking for a device address");
	rc = rc ? rc : cuda_error_of(d, d->alloc(&g->state, sizeof(struct gpu_ingest_state)), "allocating GPU memory");
	rc = rc ? rc : cuda_error_of(d, d->fill(g->state, 0, sizeof(struct gpu_ingest_state)), "clearing GPU memory");
	rc = rc ? rc : gpu_settle(g->gpu);
	rc = rc ? rc : cuda_error_of(d, d->stream_priorities(&least, &greatest), "asking for priorities of streams");
	rc = rc ? rc : cuda_error_of(d, d->stream_create_with(&g->stream, CU_STREAM_NON_BLOCKING, greatest), "making a stream");
	rc = rc ? rc : cuda_error_of(d, d->event_create(&g->event, CU_EVENT_DISABLE_TIMING), "making an event");
	for (uint32_t i = 0; i < INGEST_AHEAD && rc == MPIG_OK; i++)
		rc = cuda_error_of(d, d->event_create(&g->read[i], CU_EVENT_DISABLE_TIMING), "making an event");
	gpu_leave(g->gpu);
	if (rc == MPIG_OK)
		memset(&g->host->report, 0, sizeof(g->host->report));
	return rc;
}

// In reverse; what was not reached is NULL.
static void end(struct mpig_cuda_ingest *g)
{
	if (g->gpu && gpu_enter(g->gpu) == MPIG_OK) {
		const struct driver *d = g->gpu->driver;
		for (uint32_t i = 0; i < INGEST_AHEAD && g->read[i]; i++)
			d->event_destroy(g->read[i]);
		if (g->event)
			d->event_destroy(g->event);
		if (g->stream)
			d->stream_destroy(g->stream);
		if (g->state)
			d->free(g->state);
		if (g->host)
			d->host_free(g->host);
		gpu_leave(g->gpu);
	}
	mpig_cuda_detach(g->gpu);
	mpig_queue_destroy(g->own);
	mpig_queue_destroy(g->queue);
	free((void *)g->context);
	free(g);
}

int mpig_cuda_ingest_create(mpig_client *client, const struct mpig_cuda_ingest_options *options, mpig_cuda_ingest **out)
{
	struct mpig_cuda_ingest_options o;
	cuda_error_clear();
	if (!client || !out)
		return cuda_error_set(MPIG_EINVAL, "client and ingest must not be NULL");
	int rc = gpu_options("mpig_cuda_ingest_options", options, &o, sizeof(o));
	rc = rc ? rc : options_check(&o);
	if (rc)
		return rc;
	struct mpig_cuda_ingest *g = calloc(1, sizeof(*g));
	if (!g)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	g->client = client;
	g->blocks = o.blocks;
	g->patience_ns = o.patience_ms < 0 ? UINT64_MAX : (uint64_t)o.patience_ms * 1000000;
	g->gated = true; // every slot is free
	rc = queues_make(g, &o);
	rc = rc ? rc : memory_make(g);
	if (rc) {
		char why[512]; // calls of the driver on the way back begin with none
		snprintf(why, sizeof(why), "%s", mpig_cuda_error());
		end(g);
		return cuda_error_set(rc, "%s", why);
	}
	*out = g;
	return MPIG_OK;
}

void mpig_cuda_ingest_destroy(mpig_cuda_ingest *g)
{
	if (!g)
		return;
	if (ingest_status(g) || ingest_launch_wait(g, 0, g->gpu->region.slots) ||
	    ingest_await(g, &g->host->report.done, g->launched))
		stop(g, MPIG_ESHUTDOWN);
	if (gpu_enter(g->gpu) == MPIG_OK) {
		g->gpu->driver
			->synchronize(); // kernels have deadlines, streams of the caller's have none: what they will use must not be freed
		gpu_leave(g->gpu);
	}
	end(g);
}

// ---- the end of a prefill ----------------------------------------------------------------------------------------------
// Where contexts are now: an answer on the host's queue tells their handles. What the GPU asked for is answered already.
static int contexts_ask(struct mpig_cuda_ingest *g)
{
	int status = MPIG_OK;
	for (uint32_t i = 0; i < g->contexts; i++) {
		int rc = mpig_commit(g->own, g->context[i], 0, 0, NULL, 0);
		if (rc == MPIG_ERETRY) // another daemon: opening the context again has told
			rc = mpig_commit(g->own, g->context[i], 0, 0, NULL, 0);
		if (rc && status == MPIG_OK)
			status = cuda_error_set(rc, "asking where '%s' is: %s", mpig_context_name(g->context[i]),
			                        mpig_last_error(g->client));
	}
	return status;
}

static void sums_begin(struct mpig_cuda_ingest *g)
{
	g->began_ns = 0;
	g->contexts = 0;
	g->before = g->host->report;
	g->sums = (struct mpig_cuda_ingest_report){0};
}

int mpig_cuda_ingest_finish(mpig_cuda_ingest *g, struct mpig_cuda_ingest_report *report)
{
	cuda_error_clear();
	if (!g)
		return cuda_error_set(MPIG_EINVAL, "ingest is NULL");
	int rc = ingest_status(g);
	if (rc)
		return failure_text(g, rc);
	rc = ingest_launch_wait(g, 0, g->gpu->region.slots);
	rc = rc ? rc : ingest_await(g, &g->host->report.done, g->launched);
	if (rc)
		return rc;
	rc = ingest_status(g);
	if (rc)
		return failure_text(g, rc);
	g->gated = true; // all slots are free
	const struct gpu_ingest_report *r = &g->host->report;
	g->sums.elapsed_ns = g->began_ns ? now_ns() - g->began_ns : 0;
	g->sums.copy_ns = r->copy_ns - g->before.copy_ns;
	g->sums.wait_ns = r->wait_ns - g->before.wait_ns;
	g->sums.service_ns = r->service_ns - g->before.service_ns;
	rc = contexts_ask(g);
	rc = rc || !report ? rc : gpu_options_return("mpig_cuda_ingest_report", report, &g->sums, sizeof(g->sums));
	if (rc == MPIG_OK)
		sums_begin(g);
	return rc;
}

// ---- failures ----------------------------------------------------------------------------------------------------------
int mpig_cuda_ingest_failure(mpig_cuda_ingest *g, struct mpig_cuda_ingest_failure *failure)
{
	struct mpig_cuda_failure of_gpu = MPIG_INIT(struct mpig_cuda_failure);
	struct mpig_cuda_ingest_failure known = {.layer = -1};
	if (!g)
		return MPIG_EINVAL;
	known.status = ingest_status(g);
	if (!known.status || !failure)
		return known.status;
	if (mpig_cuda_failure(g->gpu, &of_gpu) && of_gpu.sequence < g->sequence) {
		const struct ingest_request *r = &g->request[of_gpu.sequence % INGEST_LOG];
		known.context = r->context;
		known.layer = r->layer;
		known.first = r->first;
		known.count = r->count;
	}
	int rc = gpu_options_return("mpig_cuda_ingest_failure", failure, &known, sizeof(known));
	return rc ? rc : known.status;
}

int mpig_cuda_ingest_recover(mpig_cuda_ingest *g)
{
	cuda_error_clear();
	if (!g)
		return cuda_error_set(MPIG_EINVAL, "ingest is NULL");
	if (!mpig_cuda_failure(g->gpu, NULL)) // what waits for answers ends now
		stop(g, MPIG_ERETRY);
	struct patience patience = {0};
	for (int through; (through = stream_through(g)) == 0;) {
		int rc = nap(g, &patience);
		if (rc)
			return rc;
	}
	int again = mpig_cuda_recover(g->gpu); // the GPU is idle after it
	if (again < 0)
		return again;
	struct gpu_state s;
	int rc = gpu_enter(g->gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(g->gpu->driver, g->gpu->driver->from_device(&s, g->gpu->state, sizeof(s)),
	                   "reading the queue's state");
	gpu_leave(g->gpu);
	if (rc)
		return rc;
	g->sequence = s.sequence;
	g->slot = 0;
	g->gated = true;
	__atomic_store_n(&g->host->report.stop, 0, __ATOMIC_RELEASE);
	g->failed = 0;
	g->looked_ns = 0;
	contexts_ask(g); // one that did not survive says so when it is used
	sums_begin(g);
	return again;
}
