// Profiles by fingerprint and user, and the queries they are made from.
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static int profile_check(mpig_client *c, const uint8_t *fingerprint)
{
	static const uint8_t none[64];
	if (!fingerprint || memcmp(fingerprint, none, sizeof(none)) == 0)
		return error_set(c, MPIG_EINVAL, "fingerprint is NULL or all zero: there is no profile of contexts without one");
	return MPIG_OK;
}

// Lock held. The text of a reply; its length, or a negative status.
static int take_profile(mpig_client *c, struct mpig_ctl_profile *request, char *text, size_t bytes)
{
	int rc = client_call(c, MPIG_CTL_PROFILE, request, sizeof(*request), -1, sizeof(*request), NULL);
	const struct mpig_ctl_profile *reply = (const void *)c->reply;
	if (rc)
		return rc;
	if (reply->length > MPIG_PROFILE_BYTES || c->reply_bytes != sizeof(*reply) + reply->length)
		return error_set(c, MPIG_EPROTO, "a profile of %u bytes in %u", reply->length, c->reply_bytes);
	size_t n = reply->length < bytes ? reply->length : bytes ? bytes - 1 : 0;
	if (bytes) {
		memcpy(text, reply + 1, n);
		text[n] = '\0';
	}
	return (int)reply->length;
}

int mpig_profile_get(mpig_client *c, const uint8_t fingerprint[64], uint32_t uid, char *text, size_t bytes, uint32_t *whose)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = profile_check(c, fingerprint);
	if (rc)
		return rc;
	if (bytes && !text)
		return error_set(c, MPIG_EINVAL, "text is NULL and bytes = %zu", bytes);
	struct mpig_ctl_profile request = {.action = MPIG_PROFILE_GET, .uid = uid};
	memcpy(request.fingerprint, fingerprint, sizeof(request.fingerprint));
	pthread_mutex_lock(&c->lock);
	rc = take_profile(c, &request, text, bytes);
	if (rc >= 0 && whose)
		*whose = ((const struct mpig_ctl_profile *)(const void *)c->reply)->uid;
	pthread_mutex_unlock(&c->lock);
	return rc;
}

int mpig_profile_next(mpig_client *c, uint8_t fingerprint[64], uint32_t *uid, char *text, size_t bytes)
{
	if (client_forked(c))
		return MPIG_EFORK;
	if (!fingerprint || !uid || (bytes && !text))
		return error_set(c, MPIG_EINVAL, "fingerprint or uid is NULL, or text is with bytes = %zu", bytes);
	struct mpig_ctl_profile request = {.action = MPIG_PROFILE_NEXT, .uid = *uid};
	memcpy(request.fingerprint, fingerprint, sizeof(request.fingerprint));
	pthread_mutex_lock(&c->lock);
	int rc = take_profile(c, &request, text, bytes);
	if (rc >= 0) {
		const struct mpig_ctl_profile *reply = (const void *)c->reply;
		memcpy(fingerprint, reply->fingerprint, sizeof(reply->fingerprint));
		*uid = reply->uid;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}

static int profile_call(mpig_client *c, uint32_t action, const uint8_t fingerprint[64], uint32_t uid, const char *text,
                        size_t bytes)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = profile_check(c, fingerprint);
	if (rc)
		return rc;
	struct mpig_ctl_profile *request = calloc(1, sizeof(*request) + bytes);
	if (!request)
		return error_set(c, MPIG_ENOMEM, "no memory for a profile");
	request->action = action;
	request->uid = uid;
	request->length = (uint32_t)bytes;
	memcpy(request->fingerprint, fingerprint, sizeof(request->fingerprint));
	if (bytes)
		memcpy(request + 1, text, bytes);
	pthread_mutex_lock(&c->lock);
	rc = client_call(c, MPIG_CTL_PROFILE, request, sizeof(*request) + bytes, -1, sizeof(*request), NULL);
	pthread_mutex_unlock(&c->lock);
	free(request);
	return rc;
}

int mpig_profile_set(mpig_client *c, const uint8_t fingerprint[64], uint32_t uid, const char *text)
{
	size_t bytes = text ? strlen(text) : 0;
	if (!client_forked(c) && (!bytes || bytes > MPIG_PROFILE_BYTES))
		return error_set(c, MPIG_EINVAL, "text has %zu bytes: must be 1..%u", bytes, MPIG_PROFILE_BYTES);
	return profile_call(c, MPIG_PROFILE_SET, fingerprint, uid, text, bytes);
}

int mpig_profile_clear(mpig_client *c, const uint8_t fingerprint[64], uint32_t uid)
{
	return profile_call(c, MPIG_PROFILE_CLEAR, fingerprint, uid, NULL, 0);
}

int mpig_context_queries(mpig_client *c, const char *name, int layer, int kv_head, float *queries, int max)
{
	if (client_forked(c))
		return MPIG_EFORK;
	int rc = name_check(c, "name", name);
	if (rc)
		return rc;
	if (layer < 0 || kv_head < 0 || max < 0 || (max > 0 && !queries))
		return error_set(c, MPIG_EINVAL, "layer = %d, kv_head = %d, max = %d: must not be negative, and queries not NULL",
		                 layer, kv_head, max);
	struct mpig_ctl_queries request = {.layer = (uint32_t)layer, .kv_head = (uint32_t)kv_head};
	memcpy(request.name, name, strlen(name));
	pthread_mutex_lock(&c->lock);
	rc = client_call(c, MPIG_CTL_QUERIES, &request, sizeof(request), -1, sizeof(request), NULL);
	const struct mpig_ctl_queries *reply = (const void *)c->reply;
	if (!rc && (reply->count > MPIG_QUERIES_PAGE || reply->d_k < 1 || reply->d_k > MPIG_MAX_HEAD_DIM ||
	            c->reply_bytes != sizeof(*reply) + (size_t)reply->count * reply->d_k * sizeof(float)))
		rc = error_set(c, MPIG_EPROTO, "%u queries of %u in %u bytes", reply->count, reply->d_k, c->reply_bytes);
	if (!rc) {
		size_t n = reply->count < (uint32_t)max ? reply->count : (uint32_t)max;
		if (n)
			memcpy(queries, reply + 1, n * reply->d_k * sizeof(float));
		rc = (int)reply->count;
	}
	pthread_mutex_unlock(&c->lock);
	return rc;
}
