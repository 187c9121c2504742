// What each user and each group holds of the things the server itself hands out. Control thread only, but for rates and requests in progress.
#ifndef MPIG_SERVER_ACCOUNT_H
#define MPIG_SERVER_ACCOUNT_H

#include <stdatomic.h>
#include <stdint.h>

#include "daemon/server/rate.h"

// Numbers of users and of groups in one list.
#define ACCOUNT_GROUP(gid) (UINT64_C(1) << 32 | (gid))
#define ACCOUNT_IS_GROUP(who) ((who) >> 32 != 0)

struct account {
	struct account *next;
	uint64_t who; // a uid, or ACCOUNT_GROUP(gid)
	uint32_t clients, queues;
	uint64_t region_bytes; // shared with the daemon: of queues, of recordings, and of leftovers
	uint32_t leftovers;    // regions of neither any more (leftover.h)
	uint64_t left_bytes;   // of these; region_bytes counts them too
	struct rate rate;      // of its requests; queues point to it, which keep the account
	atomic_uint tasks;     // a user's: its requests in progress; as `rate`
};

// Made if absent; NULL: out of memory. What `who` holds is the caller's to count.
struct account *account_get(struct account **list, uint64_t who);
void account_tidy(struct account **list); // frees those that hold nothing
void account_free(struct account **list);

#endif
