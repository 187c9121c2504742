// `window`: no rows. What the client attends by itself is the whole answer: the baseline that tells how much the rest matters.
#include "daemon/engine/attend.h"

static uint32_t no_units(const struct attend *a)
{
	(void)a;
	return 0;
}

const struct proposal window_proposal = {.ops = {.close = attend_close, .finish = attend_finish, .release = attend_release},
                                         .main_units = no_units};
