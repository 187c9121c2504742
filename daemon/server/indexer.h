// The thread that indexes contexts again: those that somebody asks for, and by itself those whose index has drifted from what it was made
// for. One at a time, but for those that wait until a client has committed what it appended; below the workers' priority.
#ifndef MPIG_SERVER_INDEXER_H
#define MPIG_SERVER_INDEXER_H

#include "daemon/engine/engine.h"

#define INDEXER_JOBS 32u        // known at a time, waiting, running or done
#define INDEXER_JOBS_PER_UID 4u // of these, waiting or running

struct indexer;
struct indexer_options {
	struct engine *engine;
	struct store *store;
	double drift; // by how much the noise's variance may be above that of a new fit, as a share; 0: no context is indexed by itself
	uint64_t look_ns; // between looks for drift; 0: a minute
	void (*tell)(void *arg, bool failed, const char *text);
	void *arg;
};
int indexer_start(const struct indexer_options *options, struct indexer **out); // 0 or MPIG_ENOMEM
void indexer_set_drift(struct indexer *x, double drift);                        // takes effect with the next look
void indexer_stop(struct indexer *x); // what runs is given up, and nothing of it is left; NULL is nothing

enum indexer_state { INDEXER_WAITING = 0, INDEXER_RUNNING = 1, INDEXER_DONE = 2 };
struct indexer_view {
	enum indexer_state state;
	int status; // when done
	uint32_t signature_version;
	uint64_t done, total; // rows
	char why[MPIG_TEXT_BYTES];
};
// Keeps a reference to the context. A context that waits already is not listed twice. MPIG_ELIMIT: too many wait, of this user or of all.
int indexer_begin(struct indexer *x, uint32_t uid, struct context *c, uint64_t *job, char *why);
int indexer_look(struct indexer *x, uint32_t uid, uint64_t job,
                 struct indexer_view *view); // MPIG_ENOENT: none, or another user's; MPIG_ERETRY: it ended, and how is forgotten

#endif
