#include "tune_stored.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "text.h"

int stored_find(const struct ctl_command *self, mpig_client *client, const char *what, uint32_t uid, struct stored_of *of)
{
	struct mpig_context_info info = MPIG_INIT(info);
	static const uint8_t none[64];
	*of = (struct stored_of){.uid = uid};
	// A context that has such a name comes first.
	bool digits = strlen(what) < PROFILE_HEX_BYTES && profile_unhex(what, of->fingerprint);
	int status = mpig_context_info(client, what, &info);
	if (status == MPIG_ENOENT && digits)
		return CTL_OK;
	if (status)
		return ctl_failed(self, client, what, status);
	if (memcmp(info.fingerprint, none, sizeof(none)) == 0) {
		fprintf(stderr,
		        "magicpigctl %s: '%s': it has no fingerprint, so that its profile would hold for contexts of any model: "
		        "make it "
		        "with one (mpig_spec.fingerprint)\n",
		        self->name, what);
		return CTL_FAILED;
	}
	if (uid == UINT32_MAX && info.uid == MPIG_PROFILE_ALL) {
		fprintf(stderr,
		        "magicpigctl %s: '%s' is of uid %u, which stands for all users and has no profile of its own: "
		        "--all-users\n",
		        self->name, what, info.uid);
		return CTL_FAILED;
	}
	memcpy(of->fingerprint, info.fingerprint, sizeof(of->fingerprint));
	of->uid = uid == UINT32_MAX ? info.uid : uid;
	return CTL_OK;
}

int stored_get(mpig_client *client, const struct stored_of *of, char *text, uint32_t *whose)
{
	int n = mpig_profile_get(client, of->fingerprint, of->uid, text, PROFILE_TEXT_BYTES + 1, whose);
	// Of another user the daemon looks for exactly that one; what holds without it is that of all.
	if (n == MPIG_ENOENT && of->uid != UINT32_MAX && of->uid != MPIG_PROFILE_ALL)
		n = mpig_profile_get(client, of->fingerprint, MPIG_PROFILE_ALL, text, PROFILE_TEXT_BYTES + 1, whose);
	return n < 0 ? n : MPIG_OK;
}

const char *stored_whose(uint32_t uid, char text[80])
{
	char user[TEXT_SHORT];
	if (uid == MPIG_PROFILE_ALL)
		return "of all users";
	snprintf(text, 80, "of user %s", text_uid(user, uid));
	return text;
}

// A comment that profile_parse takes: a name may have bytes that a profile may not.
static void print_head(const char *what, const char *whose)
{
	printf("# ");
	for (; *what; what++)
		putchar(*what < ' ' || *what > '~' ? '?' : *what);
	printf(", %s\n", whose);
}

static void layer_json(struct json *json, const struct profile_layer *l)
{
	json_object(json, NULL);
	json_uint(json, "layer", l->number);
	json_string(json, "proposal", profile_proposal_words[l->proposal]);
	json_float(json, "budget", l->budget);
	json_float(json, "error_target", l->error_target);
	json_float(json, "budget_floor", l->budget_floor);
	json_float(json, "budget_cap", l->budget_cap);
	json_uint(json, "signature_bits", l->signature_bits);
	json_uint(json, "paper_k", l->paper_k);
	json_uint(json, "paper_l", l->paper_l);
	json_float(json, "rows", l->rows);
	json_float(json, "error", l->error);
	json_float(json, "ms", l->ms);
	json_object_end(json);
}

static void head_json(struct json *json, const struct profile *p, uint32_t whose)
{
	json_string(json, "fingerprint", p->fingerprint);
	if (whose == MPIG_PROFILE_ALL)
		json_string(json, "uid", "all");
	else
		json_uint(json, "uid", whose);
	json_uint(json, "rates_tokens", p->rates_tokens);
	json_float(json, "goal_error", p->goal_error);
	json_float(json, "goal_ms", p->goal_ms);
	json_float(json, "error", p->error);
	json_float(json, "ms", p->ms);
}

static void profile_json(const struct profile *p, uint32_t whose)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	head_json(&json, p, whose);
	json_array(&json, "layers");
	for (uint32_t i = 0; i < p->count; i++)
		layer_json(&json, &p->layer[i]);
	json_array_end(&json);
	json_object_end(&json);
	json_finish(&json);
}

int stored_show(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of)
{
	static char text[PROFILE_TEXT_BYTES + 1];
	static struct profile profile;
	char why[PROFILE_WHY_BYTES], user[80];
	uint32_t whose;
	int status = stored_get(client, of, text, &whose);
	if (status)
		return ctl_failed(self, client, what, status);
	if (!ctl_globals.json) {
		print_head(what, stored_whose(whose, user));
		fputs(text, stdout);
		return CTL_OK;
	}
	if (profile_parse(text, strlen(text), &profile, why) != 0) {
		fprintf(stderr, "magicpigctl %s: '%s': %s\n", self->name, what, why);
		return CTL_FAILED;
	}
	profile_json(&profile, whose);
	return CTL_OK;
}

static void list_row(struct table *table, const struct profile *p, uint32_t whose)
{
	char cell[80], user[TEXT_SHORT], share[TEXT_SHORT];
	table_format(table, "%.16s", p->fingerprint);
	table_cell(table, whose == MPIG_PROFILE_ALL ? "all users" : text_uid(user, whose));
	table_format(table, "%u", p->count);
	size_t used = p->goal_error > 0
	                      ? (size_t)snprintf(cell, sizeof(cell), "error %s", text_share(share, (double)p->goal_error))
	                      : 0;
	if (p->goal_ms > 0)
		snprintf(cell + used, sizeof(cell) - used, "%s%.3g ms", used ? ", " : "", (double)p->goal_ms);
	table_cell(table, used || p->goal_ms > 0 ? cell : "-");
	table_cell(table, p->error > 0 ? text_share(share, (double)p->error) : "-");
	snprintf(cell, sizeof(cell), "%.3g", (double)p->ms);
	table_cell(table, p->ms > 0 ? cell : "-");
}

int stored_list(const struct ctl_command *self, mpig_client *client, uint32_t uid)
{
	static const char *const titles[] = {"FINGERPRINT", "FOR", ">LAYERS", "GOAL", ">ERROR", ">MS A TOKEN"};
	static char text[PROFILE_TEXT_BYTES + 1];
	static struct profile profile;
	uint8_t fingerprint[64] = {0};
	char why[PROFILE_WHY_BYTES];
	uint32_t whose = 0;
	int n, count = 0;
	struct json_held held;
	if (ctl_globals.json && !json_hold(&held))
		return ctl_failed(self, NULL, NULL, MPIG_ENOMEM);
	struct table *table = table_create(sizeof(titles) / sizeof(titles[0]), titles);
	if (ctl_globals.json)
		json_array(&held.json, NULL);
	while ((n = mpig_profile_next(client, fingerprint, &whose, text, sizeof(text))) >= 0) {
		if (uid != UINT32_MAX && uid != whose)
			continue;
		if (profile_parse(text, strlen(text), &profile, why) != 0) // of a newer daemon
			profile = (struct profile){.count = 0};
		profile_hex(fingerprint, profile.fingerprint);
		count++;
		if (!ctl_globals.json) {
			list_row(table, &profile, whose);
			continue;
		}
		json_object(&held.json, NULL);
		head_json(&held.json, &profile, whose);
		json_uint(&held.json, "layers", profile.count);
		json_object_end(&held.json);
	}
	bool all = n == MPIG_ENOENT;
	if (ctl_globals.json) {
		json_array_end(&held.json);
		json_let_go(&held, all);
	} else if (all && count) {
		table_print(table, stdout);
	} else if (all) {
		puts("no profiles");
	}
	table_destroy(table);
	return all ? CTL_OK : ctl_failed(self, client, NULL, n);
}

int stored_clear(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of)
{
	int status = mpig_profile_clear(client, of->fingerprint, of->uid);
	return status ? ctl_failed(self, client, what, status) : CTL_OK;
}

int stored_use(const struct ctl_command *self, mpig_client *client, const char *what, const struct stored_of *of,
               const char *path)
{
	static char text[PROFILE_TEXT_BYTES + 2];
	FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
	size_t n = in ? fread(text, 1, sizeof(text) - 1, in) : 0;
	bool bad = !in || ferror(in);
	if (bad)
		fprintf(stderr, "magicpigctl %s: %s: %s\n", self->name, path, strerror(errno));
	if (in && in != stdin)
		fclose(in);
	if (bad)
		return CTL_FAILED;
	if (n > PROFILE_TEXT_BYTES || memchr(text, 0, n) || n == 0) {
		fprintf(stderr, "magicpigctl %s: %s: not a profile: it is empty, longer than %u bytes, or has zeros in it\n",
		        self->name, path, PROFILE_TEXT_BYTES);
		return CTL_FAILED;
	}
	text[n] = '\0';
	int status = mpig_profile_set(client, of->fingerprint, of->uid, text);
	return status ? ctl_failed(self, client, what, status) : CTL_OK;
}
