// What each user holds of the things the server itself hands out. Control thread only.
#ifndef MPIG_SERVER_ACCOUNT_H
#define MPIG_SERVER_ACCOUNT_H

#include <stdint.h>

struct account {
	struct account *next;
	uint32_t uid;
	uint32_t clients, queues;
	uint64_t region_bytes;
};

struct account *account_get(struct account **list, uint32_t uid); // made if absent; NULL: out of memory
void account_tidy(struct account **list);                         // frees those that hold nothing
void account_free(struct account **list);

#endif
