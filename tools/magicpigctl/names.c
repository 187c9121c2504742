#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "context.h"
#include "ctl.h"
#include "top.h"

#define ASK_MS 2000   // an answer is waited for as long
#define AGAIN_MS 2000 // between two questions, while names are missing
#define MAX_NAMES 65536u

struct name {
	uint64_t id;
	char text[128];
};
struct names {
	struct name *name; // by id
	size_t count, room;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // of all below
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER;
static struct names known;
static bool missing = true; // the first question is asked at once

static int add(void *argument, const struct mpig_context_info *info)
{
	struct names *names = argument;
	if (names->count >= MAX_NAMES)
		return MPIG_OK;
	if (names->count == names->room) {
		size_t room = names->room ? 2 * names->room : 64;
		struct name *grown = reallocarray(names->name, room, sizeof(*grown));
		if (!grown)
			return MPIG_ENOMEM;
		names->name = grown;
		names->room = room;
	}
	struct name *n = &names->name[names->count++];
	n->id = info->id;
	snprintf(n->text, sizeof(n->text), "%s", info->name);
	return MPIG_OK;
}

static int by_id(const void *a, const void *b)
{
	const struct name *x = a, *y = b;
	return (x->id > y->id) - (x->id < y->id);
}

static void ask(void)
{
	struct mpig_connect_options options = MPIG_INIT(options);
	struct names fresh = {0};
	mpig_client *client = NULL;
	options.socket_path = ctl_globals.socket_path;
	options.timeout_ms = ASK_MS;
	options.reconnect_ms = -1;
	int status = mpig_connect(&options, &client);
	if (!status)
		status = context_each(client, add, &fresh);
	mpig_disconnect(client);
	if (status) {
		free(fresh.name);
		return;
	}
	if (fresh.count)
		qsort(fresh.name, fresh.count, sizeof(*fresh.name), by_id);
	pthread_mutex_lock(&lock);
	free(known.name);
	known = fresh;
	pthread_mutex_unlock(&lock);
}

static void *run(void *argument)
{
	(void)argument;
	for (;;) {
		pthread_mutex_lock(&lock);
		while (!missing)
			pthread_cond_wait(&wanted, &lock);
		missing = false;
		pthread_mutex_unlock(&lock);
		ask();
		nanosleep(&(struct timespec){AGAIN_MS / 1000, AGAIN_MS % 1000 * 1000000L}, NULL);
	}
	return NULL;
}

void names_start(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, run, NULL) == 0) // without it there are numbers
		pthread_detach(thread);
}

void names_context(uint64_t id, char *name, size_t bytes)
{
	struct name key = {.id = id};
	pthread_mutex_lock(&lock);
	const struct name *found = known.count ? bsearch(&key, known.name, known.count, sizeof(key), by_id) : NULL;
	if (found) {
		text_printable(name, bytes, found->text);
	} else {
		snprintf(name, bytes, "#%llu", (unsigned long long)id);
		missing = true;
		pthread_cond_signal(&wanted);
	}
	pthread_mutex_unlock(&lock);
}
