// A connection's context handles, as its queues see them. The control thread binds and unbinds; workers look handles up. A
// binding outlives its handle until the requests that use it are complete; only then is its writer lease given back, so that two
// writers never meet.
#ifndef MPIG_SERVER_SESSION_H
#define MPIG_SERVER_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/store.h"

struct engine_default;
struct binding {
	struct store *store;
	struct context *context; // a reference
	uint64_t holder;         // of the writer lease; 0: opened for reading
	atomic_uint busy;        // the handle, and each request whose effects are not complete; the lease goes when it reaches 0
	atomic_uint references;  // `busy` counts as one; the struct goes when it reaches 0
	atomic_bool writing;     // one writing request at a time, over all queues
	struct places *places;   // of contexts in the statistics, or NULL
	uint32_t place;          // the context's among them
	struct engine_default *defaults; // the context's profile as it was when it was opened, [layers], or NULL
};

struct session;
struct places;
struct session *session_create(void); // one reference; NULL: out of memory
struct session *session_ref(struct session *session);
void session_unref(struct session *session);

// Takes over the caller's reference of `context`, its use of a place, and `defaults` (malloc, or NULL), on success only. MPIG_ELIMIT (handle >=
// MPIG_MAX_HANDLES), MPIG_EBUSY (in use), MPIG_ENOMEM.
int session_bind(struct session *session, uint32_t handle, struct store *store, struct context *context, uint64_t holder,
                 struct places *places, uint32_t place, struct engine_default *defaults);
uint32_t session_count(struct session *session, uint32_t *leases); // handles that are bound, and how many of them write
int session_unbind(struct session *session, uint32_t handle);      // MPIG_ENOENT
void session_unbind_all(struct session *session);
// Whether a handle may be bound now: 0 or session_bind's error.
int session_free_handle(struct session *session, uint32_t handle);
// For one request: counts as busy and as a reference. NULL: no such handle. Any thread.
struct binding *session_get(struct session *session, uint32_t handle);

bool binding_begin_write(struct binding *binding); // false: another request writes
void binding_end_write(struct binding *binding);
void binding_done(struct binding *binding); // the request's effects are complete
void binding_put(struct binding *binding);  // and nobody looks at the binding any more

#endif
