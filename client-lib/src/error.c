// Texts of failures, kept per thread; option structs of other ages; the clock.
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

// One thread talks to few clients: the last failures of the last four it spoke to. Key NULL is mpig_connect's.
#define ERROR_TEXTS 4u
struct error_text {
	const mpig_client *client;
	uint32_t age; // larger is newer; 0 = unused
	char text[508];
};
static _Thread_local struct error_text error_texts[ERROR_TEXTS];
static _Thread_local uint32_t error_clock;

static struct error_text *error_of(const mpig_client *client)
{
	for (unsigned i = 0; i < ERROR_TEXTS; i++)
		if (error_texts[i].age && error_texts[i].client == client)
			return &error_texts[i];
	return NULL;
}

static struct error_text *error_place(const mpig_client *client)
{
	struct error_text *place = error_of(client);
	for (unsigned i = 0; !place && i < ERROR_TEXTS; i++)
		if (!error_texts[i].age)
			place = &error_texts[i];
	if (!place) {
		place = &error_texts[0];
		for (unsigned i = 1; i < ERROR_TEXTS; i++)
			if (error_texts[i].age < place->age)
				place = &error_texts[i];
	}
	place->client = client;
	place->age = ++error_clock;
	return place;
}

int error_set(const mpig_client *client, int status, const char *format, ...)
{
	struct error_text *place = error_place(client);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(place->text, sizeof(place->text), format, arguments);
	va_end(arguments);
	return status;
}

void error_clear(const mpig_client *client)
{
	struct error_text *place = error_of(client);
	if (place)
		*place = (struct error_text){0};
}

const char *mpig_last_error(mpig_client *client)
{
	if (client && client_forked(client))
		return mpig_status_text(MPIG_EFORK);
	struct error_text *place = error_of(client);
	return place ? place->text : "";
}

const char *mpig_strerror(int status)
{
	return mpig_status_text(status);
}

const char *mpig_version(void)
{
	return MPIG_VERSION_STRING;
}

static int options_size(const mpig_client *client, const char *name, const void *given, size_t *size)
{
	memcpy(size, given, sizeof(*size));
	if (*size < sizeof(size_t) || *size > 4096)
		return error_set(client, MPIG_EINVAL, "%s.size = %zu: begin the struct with MPIG_INIT(struct %s)", name, *size,
		                 name);
	return MPIG_OK;
}

int options_copy(const mpig_client *client, const char *name, const void *given, void *known, size_t bytes)
{
	memset(known, 0, bytes);
	if (!given)
		return MPIG_OK;
	size_t size;
	int rc = options_size(client, name, given, &size);
	if (rc)
		return rc;
	for (size_t i = bytes; i < size; i++)
		if (((const uint8_t *)given)[i])
			return error_set(client, MPIG_ENOTSUP,
			                 "%s has a field (at byte %zu) that this library, version %s, does not know", name, i,
			                 MPIG_VERSION_STRING);
	memcpy(known, given, size < bytes ? size : bytes);
	return MPIG_OK;
}

int options_return(const mpig_client *client, const char *name, void *given, const void *known, size_t bytes)
{
	size_t size, skip = sizeof(size_t);
	int rc = options_size(client, name, given, &size);
	if (rc)
		return rc;
	memcpy((uint8_t *)given + skip, (const uint8_t *)known + skip, (size < bytes ? size : bytes) - skip);
	return MPIG_OK;
}

int options_return_at(const mpig_client *client, const char *name, void *array, size_t i, const void *known, size_t bytes)
{
	size_t stride;
	int rc = options_size(client, name, array, &stride);
	if (rc)
		return rc;
	uint8_t *place = (uint8_t *)array + i * stride;
	memcpy(place, &stride, sizeof(stride));
	return options_return(client, name, place, known, bytes);
}

uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

uint64_t deadline_in(int timeout_ms)
{
	return timeout_ms < 0 ? NO_DEADLINE : now_ns() + (uint64_t)timeout_ms * NS_PER_MS;
}
