// Configurations that recorded queries are asked with.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proposal.h"
#include "trace.h"

static bool set(struct trace_config *c, const char *key, const char *value, char why[128])
{
	const struct {
		const char *key;
		float *at, most;
	} keys[] = {{"budget", &c->budget, 1},
	            {"error", &c->error, 1},
	            {"floor", &c->floor, 1},
	            {"cap", &c->cap, 1},
	            {"delta", &c->delta, .999f}};
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		char *end;
		if (strcmp(key, keys[i].key) != 0)
			continue;
		float x = strtof(value, &end);
		if (end == value || *end || !(x > 0) || x > keys[i].most) {
			snprintf(why, 128, "%s: '%.40s' is not a number above 0 and up to %g", key, value, (double)keys[i].most);
			return false;
		}
		*keys[i].at = x;
		return true;
	}
	snprintf(why, 128, "'%.40s' is not budget, error, floor, cap or delta", key);
	return false;
}

bool trace_config_parse(const char *text, struct trace_config *c, char why[128])
{
	char copy[sizeof(c->text)], *rest = copy, *word;
	struct trace_config parsed = {.proposal = -1, .budget = -1, .error = -1, .floor = -1, .cap = -1, .delta = -1};
	if (!*text || strlen(text) >= sizeof(copy)) {
		snprintf(why, 128, "'%.40s' is no configuration", text);
		return false;
	}
	strcpy(copy, text);
	strcpy(parsed.text, text);
	while ((word = strsep(&rest, ","))) {
		char *value = strchr(word, '=');
		if (value)
			*value++ = 0;
		if (value ? !set(&parsed, word, value, why) : strcmp(word, "recorded") != 0 && proposal_number(word) < 0) {
			if (!value)
				snprintf(why, 128, "'%.40s' is no proposal", word);
			return false;
		}
		if (!value && strcmp(word, "recorded") != 0)
			parsed.proposal = proposal_number(word);
	}
	if (parsed.delta > 0 && parsed.budget > 0) {
		snprintf(why, 128, "delta verifies an error, not a budget: give error=E with it");
		return false;
	}
	*c = parsed;
	return true;
}

void trace_config_apply(const struct trace_config *c, struct mpig_attend *a)
{
	if (c->proposal >= 0)
		a->proposal = c->proposal;
	if (c->budget > 0) { // an error target would come first
		a->budget = c->budget;
		a->error_target = a->delta = a->budget_floor = a->budget_cap = 0;
	}
	if (c->error > 0)
		a->error_target = c->error;
	if (c->floor > 0)
		a->budget_floor = c->floor;
	if (c->cap > 0)
		a->budget_cap = c->cap;
	if (c->delta > 0)
		a->delta = c->delta;
	if (c->proposal >= 0 && c->proposal != MPIG_PROPOSAL_SIGNATURE && c->proposal != MPIG_PROPOSAL_DENSE &&
	    c->proposal != MPIG_PROPOSAL_DEFAULT)
		a->delta = 0; // others cannot be verified
}
