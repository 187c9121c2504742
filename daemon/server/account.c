#include "daemon/server/account.h"

#include <stdlib.h>

struct account *account_get(struct account **list, uint64_t who)
{
	for (struct account *a = *list; a; a = a->next)
		if (a->who == who)
			return a;
	struct account *a = calloc(1, sizeof *a);
	if (!a)
		return NULL;
	a->who = who;
	a->next = *list;
	*list = a;
	return a;
}

void account_tidy(struct account **list)
{
	while (*list) {
		struct account *a = *list;
		if (a->clients || a->queues || a->region_bytes) {
			list = &a->next;
			continue;
		}
		*list = a->next;
		free(a);
	}
}

void account_free(struct account **list)
{
	while (*list) {
		struct account *a = *list;
		*list = a->next;
		free(a);
	}
}
