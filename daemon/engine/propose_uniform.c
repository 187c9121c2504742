// The units of `uniform`: each row with probability `budget`, its probability known. The baseline that no index can do worse than.
#include <math.h>

#include "daemon/engine/selection.h"

static int uniform_main(struct job *j, uint32_t g, uint32_t unit, struct engine_scratch *s)
{
	struct attend *a = &j->attend;
	const struct span *span = &a->view.strip[g].spans[unit];
	const uint32_t most = BLOCK_MAX_ROWS;
	uint32_t *row = scratch_get(s, most * 5 * sizeof(float));
	if (!row)
		return job_fail(j, MPIG_ENOMEM, "no memory for a sample");
	float *neg_log_pi = (float *)row + most, *scratch = (float *)row + 2 * most, tau = -logf(a->budget);
	struct row_set set = {0};
	for (uint32_t r = 0; r < a->queries; r++) {
		const float *noise = j->engine->noise +
		                     noise_offset(a->seed, a->position + attend_token(a, r), j->request.entry.layer, g,
		                                  span->first - span->block_row) +
		                     span->block_row;
		uint32_t n = 0, visible = attend_visible(a, r, span->first, span->n);
		for (uint32_t i = 0; i < visible; i++)
			if (noise[i] > tau) {
				row[n] = i;
				neg_log_pi[n++] = tau;
			}
		row_set_add(&set, row, n);
		struct selection sel = {.base = span->rows,
		                        .first = span->first,
		                        .frame = span->frame,
		                        .index = row,
		                        .neg_log_pi = neg_log_pi,
		                        .n = n};
		attend_selection(j, g, r, &sel, attend_partial(a, g, unit, r), scratch);
	}
	uint64_t rows = row_set_count(&set);
	attend_count(a, g, rows, rows * a->layer->rows.stride);
	return 0;
}

const struct proposal uniform_proposal = {.ops = {.main = uniform_main,
                                                  .merge = attend_merge_unit,
                                                  .close = attend_close,
                                                  .finish = attend_finish,
                                                  .release = attend_release}};
