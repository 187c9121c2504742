#include "status.h"

#include <stddef.h>

struct status_row {
	const char *name, *text;
};

// Indexed by the negated status: the list is dense from 0 down.
static const struct status_row rows[] = {
#define X(name, value, text) [-(value)] = {"MPIG_" #name, text},
	MPIG_STATUS_LIST(X)
#undef X
};

static const struct status_row *find(int status)
{
	static const struct status_row unknown = {"MPIG_UNKNOWN", "unknown status"};
	size_t count = sizeof(rows) / sizeof(rows[0]);
	if (status > 0 || status <= -(int)count || !rows[-status].name)
		return &unknown;
	return &rows[-status];
}

const char *mpig_status_text(int status)
{
	return find(status)->text;
}

const char *mpig_status_name(int status)
{
	return find(status)->name;
}
