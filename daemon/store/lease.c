// Who may write: one holder per context.
#include "daemon/store/internal.h"

static void reset_rows(struct context *c)
{
	for (uint32_t i = 0; i < c->spec->layer_count; i++)
		atomic_store(&c->rows[i], context_committed(c));
	c->reserved = context_committed(c);
}

int context_lease(struct store *s, struct context *c, const struct credentials *who, uint64_t holder, char *why)
{
	store_lock(s);
	int status = context_alive(c, why);
	uint64_t held = atomic_load(&c->holder);
	if (!status && !access_check(&c->identity, who, ACCESS_WRITE))
		status = refuse(why, MPIG_EACCES, "context '%s' belongs to uid %u, mode %04o: uid %u may not write it", c->name,
		                c->identity.uid, c->identity.mode, who->uid);
	if (!status && held && held != holder)
		status = refuse(why, MPIG_EBUSY, "context '%s' is being written by process %u: wait for it, or fork the context",
		                c->name, c->writer_pid);
	if (!status && !held && c->sealing)
		status = refuse(why, MPIG_EBUSY, "context '%s' is still being indexed for its last writer: try again", c->name);
	if (!status && !held) {
		reset_rows(c);
		c->writer_pid = who->pid;
		atomic_store(&c->holder, holder);
	}
	store_unlock(s);
	return status;
}

void context_release(struct store *s, struct context *c, uint64_t holder)
{
	store_lock(s);
	if (atomic_load(&c->holder) == holder) {
		writer_leave(s, c);
		if (!context_dropped(c)) {
			context_forget(s, c);
			reset_rows(c);
		}
		atomic_store(&c->holder, 0);
	}
	store_unlock(s);
}

bool context_leased_by(const struct context *c, uint64_t holder)
{
	return holder && atomic_load(&c->holder) == holder;
}
