// A queue on a GPU. The library registers the queue's memory with the driver, lends the queue, and keeps three things beside it: the
// rings' state in the GPU's memory, a report in pinned host memory, and entries of requests that do nothing.
#include "cuda/private.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_TIMEOUT_MS 2000
#define MOST_TIMEOUT_MS 60000
#define LEAST_COMPUTE 8
#define DRIVER_OF_GRAPH_EDGES 12040 // captures launches that overlap as such

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

// ---- option structs ----------------------------------------------------------------------------------------------------
static int options_size(const char *name, const void *given, size_t *size)
{
	memcpy(size, given, sizeof(*size));
	if (*size < sizeof(*size) || *size > 65536)
		return cuda_error_set(MPIG_EINVAL, "%s.size = %zu: begin the struct with MPIG_INIT(struct %s)", name, *size,
		                      name);
	return MPIG_OK;
}

int gpu_options(const char *name, const void *given, void *known, size_t bytes)
{
	size_t size;
	memset(known, 0, bytes);
	if (!given)
		return MPIG_OK;
	int rc = options_size(name, given, &size);
	if (rc)
		return rc;
	for (size_t i = bytes; i < size; i++)
		if (((const uint8_t *)given)[i])
			return cuda_error_set(MPIG_EVERSION, "%s has fields that this library (%s) does not know", name,
			                      mpig_version());
	memcpy(known, given, size < bytes ? size : bytes);
	return MPIG_OK;
}

int gpu_options_return(const char *name, void *given, const void *known, size_t bytes)
{
	size_t size, skip = sizeof(size_t);
	if (!given)
		return cuda_error_set(MPIG_EINVAL, "%s is NULL", name);
	int rc = options_size(name, given, &size);
	if (rc == MPIG_OK)
		memcpy((uint8_t *)given + skip, (const uint8_t *)known + skip, (size < bytes ? size : bytes) - skip);
	return rc;
}

// ---- the context -------------------------------------------------------------------------------------------------------
int gpu_enter(const struct mpig_cuda *gpu)
{
	cuda_error_clear();
	return cuda_error_of(gpu->driver, gpu->driver->push(gpu->context), "making the queue's CUDA context current");
}

void gpu_leave(const struct mpig_cuda *gpu)
{
	CUcontext ours;
	gpu->driver->pop(&ours);
}

int gpu_settle(const struct mpig_cuda *gpu)
{
	return cuda_error_of(gpu->driver, gpu->driver->stream_synchronize(NULL), "waiting for copies to the GPU");
}

static int context_find(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	int rc = cuda_error_of(d, d->current(&gpu->context), "asking for the current CUDA context");
	if (rc || gpu->context)
		return rc;
	rc = cuda_error_of(d, d->device_get(&gpu->device, 0), "opening GPU 0");
	rc = rc ? rc : cuda_error_of(d, d->primary_retain(&gpu->context, gpu->device), "making the context of GPU 0");
	gpu->retained = rc == MPIG_OK;
	return rc;
}

static int device_check(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	struct mpig_cuda_info *i = &gpu->info;
	int rc = cuda_error_of(d, d->version(&gpu->driver_version), "asking for the driver's version");
	rc = rc ? rc : cuda_error_of(d, d->current_device(&gpu->device), "asking for the context's GPU");
	rc = rc ? rc : cuda_error_of(d, d->device_name(i->device, sizeof(i->device), gpu->device), "asking for the GPU's name");
	rc = rc ? rc
	        : cuda_error_of(d, d->device_attribute(&i->compute_major, CU_ATTRIBUTE_MAJOR, gpu->device),
	                        "asking for the GPU's kind");
	rc = rc ? rc
	        : cuda_error_of(d, d->device_attribute(&i->compute_minor, CU_ATTRIBUTE_MINOR, gpu->device),
	                        "asking for the GPU's kind");
	rc = rc ? rc
	        : cuda_error_of(d, d->device_attribute(&gpu->multiprocessors, CU_ATTRIBUTE_MULTIPROCESSORS, gpu->device),
	                        "asking for the GPU's size");
	if (rc == MPIG_OK && i->compute_major < LEAST_COMPUTE)
		rc = cuda_error_set(MPIG_ENOTSUP, "%s has compute capability %d.%d; at least %d.0 is needed", i->device,
		                    i->compute_major, i->compute_minor, LEAST_COMPUTE);
	return rc;
}

// ---- kernels -----------------------------------------------------------------------------------------------------------
static int kernels_load(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	int rc = cuda_error_of(d, d->module_load(&gpu->module, mpig_cuda_image), "loading the kernels");
	const struct {
		CUfunction *function;
		const char *name;
	} all[] = {{&gpu->kernel.sign, "mpig_sign"},
	           {&gpu->kernel.submit, "mpig_submit"},
	           {&gpu->kernel.window_64, "mpig_window_64"},
	           {&gpu->kernel.window_128, "mpig_window_128"},
	           {&gpu->kernel.window_256, "mpig_window_256"},
	           {&gpu->kernel.wait, "mpig_wait"},
	           {&gpu->kernel.merge, "mpig_merge"},
	           {&gpu->kernel.merge_fused, "mpig_merge_fused"},
	           {&gpu->kernel.rounds, "mpig_rounds"},
	           {&gpu->kernel.ingest, "mpig_ingest"}};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && rc == MPIG_OK; i++) {
		int registers; // asking loads the code now: later it could wait for a kernel that waits
		rc = cuda_error_of(d, d->module_function(all[i].function, gpu->module, all[i].name), all[i].name);
		rc = rc ? rc
		        : cuda_error_of(d, d->function_attribute(&registers, CU_FUNCTION_REGISTERS, *all[i].function),
		                        all[i].name);
	}
	return rc;
}

// A kernel may begin before the one before it in its stream has ended, and then waits for that itself (grid_wait), on GPUs of the kind on which
// this has been tried, with a driver that keeps it in graphs that are captured.
static bool may_overlap(const struct mpig_cuda *gpu)
{
	return gpu->info.compute_major == 9 && gpu->driver_version >= DRIVER_OF_GRAPH_EDGES;
}

int gpu_launch(const struct mpig_cuda *gpu, CUfunction function, const char *name, unsigned grid_x, unsigned grid_y,
               unsigned block, CUstream stream, const void *argument)
{
	void *arguments[] = {(void *)(uintptr_t)argument};
	struct driver_launch_attribute overlap = {.id = CU_LAUNCH_PROGRAMMATIC, .value.allowed = 1};
	const struct driver_launch launch = {.grid_x = grid_x,
	                                     .grid_y = grid_y,
	                                     .grid_z = 1,
	                                     .block_x = block,
	                                     .block_y = 1,
	                                     .block_z = 1,
	                                     .stream = stream,
	                                     .attributes = &overlap,
	                                     .attribute_count = may_overlap(gpu) ? 1 : 0};
	int rc = gpu_enter(gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(gpu->driver, gpu->driver->launch(&launch, function, arguments, NULL), name);
	gpu_leave(gpu);
	return rc;
}

// ---- memory ------------------------------------------------------------------------------------------------------------
static int region_register(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	const struct mpig_region *r = &gpu->region;
	CUdeviceptr address;
	int rc = cuda_error_of(d, d->host_register(r->base, r->bytes, CU_HOST_REGISTER_PORTABLE_DEVICEMAP),
	                       "registering the queue's memory");
	gpu->registered = rc == MPIG_OK;
	rc = rc ? rc : cuda_error_of(d, d->host_pointer(&address, r->base, 0), "asking for the queue's device address");
	if (rc)
		return rc;
	gpu->args = (struct gpu_queue){.region = address,
	                               .sq_offset = r->sq_offset,
	                               .cq_offset = r->cq_offset,
	                               .slots_offset = r->slots_offset,
	                               .slot_bytes = r->slot_bytes,
	                               .entries = r->entries,
	                               .slots = r->slots};
	gpu->info.region = address;
	gpu->info.bytes = r->bytes;
	gpu->info.entries = r->entries;
	gpu->info.slots = r->slots;
	return MPIG_OK;
}

// What kernels know of the rings, from the beginning. No kernel runs.
static int state_reset(struct mpig_cuda *gpu, uint64_t sequence, uint32_t sq_next, uint32_t cq_next)
{
	const struct driver *d = gpu->driver;
	size_t bytes = sizeof(struct gpu_state) + gpu->region.slots * sizeof(struct gpu_slot);
	const struct mpig_queue_header *h = gpu->region.base;
	struct gpu_state begin = {.sequence = sequence,
	                          .sq_next = sq_next,
	                          .known_head = sq_next - gpu->region.entries, // as if full: the first look checks it
	                          .cq_published = cq_next,
	                          .cq_next = cq_next,
	                          .heads = (h->features & MPIG_FEATURE_HEADS) != 0};
	int rc = cuda_error_of(d, d->fill(gpu->state, 0, bytes), "clearing the queue's state");
	rc = rc ? rc : cuda_error_of(d, d->to_device(gpu->state, &begin, sizeof(begin)), "setting the queue's state");
	rc = rc ? rc : gpu_settle(gpu);
	if (rc == MPIG_OK)
		memset(gpu->report, 0, sizeof(*gpu->report));
	return rc;
}

static int memory_make(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	uint32_t slots = gpu->region.slots;
	size_t state_bytes = (sizeof(struct gpu_state) + slots * sizeof(struct gpu_slot) + 255) & ~(size_t)255;
	void *report = NULL;
	int rc = cuda_error_of(d, d->host_alloc(&report, sizeof(*gpu->report), CU_HOST_ALLOC_PORTABLE_DEVICEMAP),
	                       "allocating host memory");
	gpu->report = report;
	rc = rc ? rc : cuda_error_of(d, d->host_pointer(&gpu->args.report, report, 0), "asking for a device address");
	rc = rc ? rc
	        : cuda_error_of(d, d->alloc(&gpu->state, state_bytes + slots * sizeof(struct gpu_item)), "allocating GPU memory");
	if (rc)
		return rc;
	gpu->args.state = gpu->state;
	gpu->nop = gpu->state + state_bytes;
	struct gpu_item *nops = calloc(slots, sizeof(*nops));
	if (!nops)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	for (uint32_t i = 0; i < slots; i++)
		nops[i].entry = (struct mpig_sqe){.op = MPIG_OP_NOP, .slot = i};
	rc = cuda_error_of(d, d->to_device(gpu->nop, nops, slots * sizeof(*nops)), "copying to the GPU");
	free(nops);
	return rc ? rc : state_reset(gpu, gpu->region.sq_tail, gpu->region.sq_tail, gpu->region.cq_head);
}

// ---- attaching and detaching -------------------------------------------------------------------------------------------
static int begin(struct mpig_cuda *gpu)
{
	int rc = device_check(gpu);
	rc = rc ? rc : kernels_load(gpu);
	rc = rc ? rc : region_register(gpu);
	rc = rc ? rc : memory_make(gpu);
	if (rc == MPIG_OK)
		gpu->info.stream_wait = probe_stream_wait(gpu->driver);
	gpu->ready = rc == MPIG_OK;
	return rc;
}

// What kernels have taken and not yet said so in the ring. They are done: this thread is the queue's client.
static void give_places_back(struct mpig_cuda *gpu)
{
	struct mpig_queue_header *h = gpu->region.base;
	struct gpu_state s;
	if (gpu->driver->from_device(&s, gpu->state, sizeof(s)) == CU_OK)
		__atomic_store_n(&h->cq_head, s.cq_next, __ATOMIC_RELEASE); // R2
}

// In reverse; what was not reached is NULL.
static void end(struct mpig_cuda *gpu)
{
	const struct driver *d = gpu->driver;
	d->synchronize();
	if (gpu->ready)
		give_places_back(gpu);
	if (gpu->state)
		d->free(gpu->state);
	if (gpu->report)
		d->host_free(gpu->report);
	if (gpu->registered)
		d->host_unregister(gpu->region.base);
	if (gpu->module)
		d->module_unload(gpu->module);
}

int mpig_cuda_attach(mpig_queue *queue, const struct mpig_cuda_options *options, mpig_cuda **out)
{
	struct mpig_cuda_options o;
	cuda_error_clear();
	if (!queue || !out)
		return cuda_error_set(MPIG_EINVAL, "queue and gpu must not be NULL");
	int rc = gpu_options("mpig_cuda_options", options, &o, sizeof(o));
	if (rc)
		return rc;
	if (o.timeout_ms < 0 || o.timeout_ms > MOST_TIMEOUT_MS)
		return cuda_error_set(MPIG_EINVAL, "timeout_ms = %d: 1 to %d, or 0 for %d", o.timeout_ms, MOST_TIMEOUT_MS,
		                      DEFAULT_TIMEOUT_MS);
	const struct driver *driver;
	rc = driver_get(&driver);
	if (rc)
		return rc;
	struct mpig_cuda *gpu = calloc(1, sizeof(*gpu));
	if (!gpu)
		return cuda_error_set(MPIG_ENOMEM, "%s", mpig_strerror(MPIG_ENOMEM));
	gpu->driver = driver;
	gpu->queue = queue;
	gpu->step = 1;
	gpu->region.size = sizeof(gpu->region);
	rc = mpig_queue_lend(queue, &gpu->region);
	if (rc) {
		cuda_error_set(rc, "the queue cannot be lent: %s", mpig_strerror(rc));
		goto free_gpu;
	}
	rc = context_find(gpu);
	if (rc)
		goto take_back;
	rc = gpu_enter(gpu);
	if (rc)
		goto release_context;
	rc = begin(gpu);
	if (rc) {
		end(gpu);
		gpu_leave(gpu);
		goto release_context;
	}
	gpu_leave(gpu);
	gpu->args.timeout_ns = (uint64_t)(o.timeout_ms ? o.timeout_ms : DEFAULT_TIMEOUT_MS) * 1000000;
	*out = gpu;
	return MPIG_OK;

release_context:
	if (gpu->retained)
		driver->primary_release(gpu->device);
take_back:
	mpig_queue_take_back(queue);
free_gpu:
	free(gpu);
	return rc;
}

void mpig_cuda_detach(mpig_cuda *gpu)
{
	if (!gpu)
		return;
	if (gpu_enter(gpu) == MPIG_OK) {
		end(gpu);
		gpu_leave(gpu);
	}
	if (gpu->retained)
		gpu->driver->primary_release(gpu->device);
	mpig_queue_take_back(gpu->queue);
	free(gpu);
}

int mpig_cuda_get_info(const mpig_cuda *gpu, struct mpig_cuda_info *info)
{
	return gpu ? gpu_options_return("mpig_cuda_info", info, &gpu->info, sizeof(gpu->info)) : MPIG_EINVAL;
}

// ---- failures, and other daemons ---------------------------------------------------------------------------------------
int mpig_cuda_failure(const mpig_cuda *gpu, struct mpig_cuda_failure *failure)
{
	if (!gpu)
		return MPIG_EINVAL;
	int status = __atomic_load_n(&gpu->report->status, __ATOMIC_ACQUIRE); // partner: fail() of the kernels
	if (!status || !failure)
		return status;
	struct mpig_cuda_failure known = {.status = status, .slot = gpu->report->slot, .sequence = gpu->report->sequence};
	int rc = gpu_options_return("mpig_cuda_failure", failure, &known, sizeof(known));
	return rc ? rc : status;
}

int mpig_cuda_last_answer(const mpig_cuda *gpu, struct mpig_cuda_answer *answer)
{
	if (!gpu)
		return MPIG_EINVAL;
	const struct mpig_cqe *ring = (const struct mpig_cqe *)((const uint8_t *)gpu->region.base + gpu->region.cq_offset);
	const uint64_t taken = __atomic_load_n(&gpu->report->taken, __ATOMIC_ACQUIRE); // partner: report_taken of the kernels
	struct mpig_cqe c = {0};
	if (taken & GPU_TAKEN)
		c = ring[(uint32_t)taken & (gpu->region.entries - 1)];
	struct mpig_cuda_answer known = {.sequence = c.user_data,
	                                 .committed = c.committed,
	                                 .rows_read = c.rows_read,
	                                 .bytes_read = c.bytes_read,
	                                 .service_ns = c.service_ns};
	return gpu_options_return("mpig_cuda_answer", answer, &known, sizeof(known));
}

// Another daemon takes the queue if there is one: then both rings begin at 0, and 1 is returned. No kernel of ours may run meanwhile: it
// would write into rings that are the new daemon's.
static int renew(struct mpig_cuda *gpu)
{
	int rc = gpu_enter(gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(gpu->driver, gpu->driver->synchronize(), "waiting for the GPU");
	if (rc)
		goto leave;
	rc = mpig_queue_renew(gpu->queue, &gpu->region);
	if (rc < 0)
		cuda_error_set(rc, "the daemon: %s", mpig_strerror(rc));
	if (rc != 1)
		goto leave;
	rc = state_reset(gpu, 0, gpu->region.sq_tail, gpu->region.cq_head);
	rc = rc ? rc : 1;
leave:
	gpu_leave(gpu);
	return rc;
}

int mpig_cuda_begin(mpig_cuda *gpu, int awake_ms)
{
	cuda_error_clear();
	if (!gpu || awake_ms < 0)
		return cuda_error_set(MPIG_EINVAL, "gpu must not be NULL, awake_ms not negative");
	int failed = mpig_cuda_failure(gpu, NULL);
	if (failed)
		return cuda_error_set(MPIG_ERETRY, "a request failed (%s): call mpig_cuda_recover first", mpig_strerror(failed));
	gpu->step++;
	int rc = mpig_awake(gpu->queue, awake_ms), again = 0;
	if (rc == MPIG_ERETRY) {
		again = renew(gpu);
		if (again < 0)
			return again;
		rc = mpig_awake(gpu->queue, awake_ms);
	}
	if (rc == MPIG_ENOTSUP) // older: it looks when it looks
		rc = MPIG_OK;
	return rc ? cuda_error_set(rc, "the daemon: %s", mpig_strerror(rc)) : again;
}

// Takes the completions of what is still in flight, without looking at them. The GPU is idle: this thread is the queue's client.
static int drain(struct mpig_cuda *gpu, uint64_t deadline)
{
	struct mpig_queue_header *h = gpu->region.base;
	struct gpu_state s;
	int rc = cuda_error_of(gpu->driver, gpu->driver->from_device(&s, gpu->state, sizeof(s)), "reading the queue's state");
	if (rc)
		return rc;
	for (;;) {
		uint32_t peer_tail = __atomic_load_n(&h->cq_tail, __ATOMIC_ACQUIRE); // A1
		uint32_t left = s.sq_next - peer_tail; // a completion for each submission, whatever was taken before
		if (left > gpu->region.entries)
			return cuda_error_set(MPIG_EPROTO, "the completion ring is broken: its tail is impossible; detach");
		if (!left)
			break;
		if (mpig_awake(gpu->queue, 10) == MPIG_ERETRY)
			return MPIG_ERETRY;
		if (now_ns() > deadline)
			return cuda_error_set(MPIG_ETIMEDOUT, "the daemon still works on %u requests; try again", left);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	__atomic_store_n(&h->cq_head, s.sq_next, __ATOMIC_RELEASE); // R2
	return state_reset(gpu, s.sequence, s.sq_next, s.sq_next);
}

int mpig_cuda_recover(mpig_cuda *gpu)
{
	cuda_error_clear();
	if (!gpu)
		return cuda_error_set(MPIG_EINVAL, "gpu is NULL");
	gpu->step++;
	int rc = renew(gpu);
	if (rc)
		return rc;
	rc = gpu_enter(gpu);
	if (rc)
		return rc;
	rc = cuda_error_of(gpu->driver, gpu->driver->synchronize(), "waiting for the GPU");
	rc = rc ? rc : drain(gpu, now_ns() + gpu->args.timeout_ns);
	gpu_leave(gpu);
	return rc == MPIG_ERETRY ? renew(gpu) : rc;
}
