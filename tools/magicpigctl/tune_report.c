// What tune has to say, at a terminal and as JSON.
#include <math.h>
#include <string.h>

#include "json.h"
#include "proposal.h"
#include "text.h"
#include "tune.h"

const char *tune_way_text(const struct tune_way *way, char text[64])
{
	if (way->error_target > 0)
		snprintf(text, 64, "by error %.3g", (double)way->error_target);
	else if (way->budget > 0)
		snprintf(text, 64, "%.3g %% of rows", 100 * (double)way->budget);
	else if (way->paper_k)
		snprintf(text, 64, "%s (%d,%d)", proposal_name(way->proposal), way->paper_k, way->paper_l);
	else if (way->paper_l)
		snprintf(text, 64, "%s (%d)", proposal_name(way->proposal), way->paper_l);
	else
		snprintf(text, 64, "%s", proposal_name(way->proposal));
	if (way->bits)
		snprintf(text + strlen(text), 64 - strlen(text), ", b=%d", way->bits);
	return text;
}

// ---- the table -------------------------------------------------------------------------------------------------------
static void way_cells(struct table *table, const struct tune *t, int layer, int way)
{
	char text[TEXT_SHORT];
	struct tune_point p = tune_point_of(t, layer, way, -1, TUNE_CHECK);
	table_cell(table, tune_way_text(&t->layer[layer].way[way], text));
	table_cell(table, text_share(text, tune_share(t, layer, way)));
	table_cell(table, text_share(text, sqrt(p.error2)));
	table_format(table, "%.3g", p.ms);
}

static void spread_cell(struct table *table, const struct tune *t, const struct tune_result *r, int layer)
{
	double least = 1, most = 0;
	char text[TEXT_SHORT], other[TEXT_SHORT];
	for (int s = 0; s < t->seeds; s++) {
		double share = tune_share(t, layer, r->of_seed[s].way[layer]);
		least = fmin(least, share);
		most = fmax(most, share);
	}
	text_share(text, least);
	if (strcmp(text, text_share(other, most)) == 0)
		table_cell(table, text);
	else
		table_format(table, "%.20s to %.20s", text, other);
}

static void total_cells(struct table *table, const struct tune_total *total)
{
	char text[TEXT_SHORT];
	table_cell(table, "");
	table_cell(table, "");
	table_cell(table, text_share(text, sqrt(total->error2)));
	table_format(table, "%.3g", total->ms);
}

static void print_layers(const struct tune *t, const struct tune_result *r)
{
	static const char *const titles[] = {">LAYER", "BEFORE", ">ROWS",  ">ERROR", ">MS",
	                                     "AFTER",  ">ROWS",  ">ERROR", ">MS",    ">ROWS, BY SEED"};
	struct table *table = table_create(10, titles);
	for (int i = 0; i < t->layers; i++) {
		table_format(table, "%d", t->layer[i].number);
		way_cells(table, t, i, r->before.way[i]);
		way_cells(table, t, i, r->after.way[i]);
		spread_cell(table, t, r, i);
	}
	table_cell(table, "all");
	total_cells(table, &r->before.check);
	total_cells(table, &r->after.check);
	table_cell(table, "");
	table_print(table, stdout);
	table_destroy(table);
}

// ---- the curve -------------------------------------------------------------------------------------------------------
enum { WIDE = 64, HIGH = 16 };
struct plot {
	double x0, x1, y0, y1; // logarithms
	char at[HIGH][WIDE + 1];
};

static void widen(struct plot *p, struct tune_total total)
{
	if (!(total.ms > 0) || !(total.error2 > 0))
		return;
	p->x0 = fmin(p->x0, log(total.ms));
	p->x1 = fmax(p->x1, log(total.ms));
	p->y0 = fmin(p->y0, log(total.error2) / 2);
	p->y1 = fmax(p->y1, log(total.error2) / 2);
}

static void mark(struct plot *p, struct tune_total total, char sign)
{
	if (!(total.ms > 0) || !(total.error2 > 0))
		return;
	int x = (int)lround((log(total.ms) - p->x0) / fmax(p->x1 - p->x0, 1e-9) * (WIDE - 1));
	int y = (int)lround((p->y1 - log(total.error2) / 2) / fmax(p->y1 - p->y0, 1e-9) * (HIGH - 1));
	if (x >= 0 && x < WIDE && y >= 0 && y < HIGH)
		p->at[y][x] = sign;
}

static void print_curve(const struct tune *t, const struct tune_result *r)
{
	struct plot p = {INFINITY, -INFINITY, INFINITY, -INFINITY, {{0}}};
	char top[TEXT_SHORT], bottom[TEXT_SHORT];
	(void)t;
	for (int y = 0; y < HIGH; y++)
		memset(p.at[y], ' ', WIDE);
	for (int i = 0; i < r->uniform_count; i++)
		widen(&p, r->uniform[i]);
	widen(&p, r->before.check);
	widen(&p, r->after.check);
	if (!(p.x1 > p.x0))
		return;
	for (int i = 0; i < r->tuned_count; i++)
		mark(&p, r->tuned[i], '*');
	for (int i = 0; i < r->uniform_count; i++)
		mark(&p, r->uniform[i], 'o');
	mark(&p, r->before.check, 'B');
	mark(&p, r->after.check, 'A');
	text_share(top, exp(p.y1));
	text_share(bottom, exp(p.y0));
	printf("\nerror against ms a token, both logarithmic; o all layers alike, * tuned, B before, A after\n");
	for (int y = 0; y < HIGH; y++)
		printf("%8s |%s\n", y == 0 ? top : y == HIGH - 1 ? bottom : "", p.at[y]);
	printf("%8s +", "");
	for (int x = 0; x < WIDE; x++)
		putchar('-');
	printf("\n%8s  %-*.3g%*.3g ms\n", "", WIDE / 2, exp(p.x0), WIDE - WIDE / 2, exp(p.x1));
}

// ---- in words --------------------------------------------------------------------------------------------------------
static void print_outcome(const struct tune *t, const struct tune_result *r)
{
	char before[TEXT_SHORT], after[TEXT_SHORT], least[TEXT_SHORT], most[TEXT_SHORT];
	double low = INFINITY, high = 0, quick = INFINITY, slow = 0;
	text_share(before, sqrt(r->before.check.error2));
	text_share(after, sqrt(r->after.check.error2));
	printf("before: error %s, %.3g ms a token; after: error %s, %.3g ms", before, r->before.check.ms, after,
	       r->after.check.ms);
	if (r->after.check.ms > 0 && r->before.check.error2 > 0)
		printf(" (%.2f times the time, %.2f times the error)", r->after.check.ms / r->before.check.ms,
		       sqrt(r->after.check.error2 / r->before.check.error2));
	putchar('\n');
	for (int s = 0; s < t->seeds; s++) {
		low = fmin(low, sqrt(r->of_draw[s].error2));
		high = fmax(high, sqrt(r->of_draw[s].error2));
		quick = fmin(quick, r->of_seed[s].check.ms);
		slow = fmax(slow, r->of_seed[s].check.ms);
	}
	printf("over %d seed%s: its error is %s to %s; what each seed alone would choose takes %.3g to %.3g ms, the same in %d "
	       "of %d "
	       "layers\n",
	       t->seeds, t->seeds == 1 ? "" : "s", text_share(least, low), text_share(most, high), quick, slow, r->agree,
	       t->layers);
}

static void print_reindexed(const struct tune *t, const struct tune_result *r)
{
	char error[TEXT_SHORT];
	if (r->reindexed)
		printf("%d of %d layers want another index, which contexts get that are made from now on and leave it to the "
		       "daemon; as this one is "
		       "indexed, the same rules err by %s in %.3g ms\n",
		       r->reindexed, t->layers, text_share(error, sqrt(r->present.error2)), r->present.ms);
}

// Shares and error targets go with the length of a context, this does not.
static void print_dense(const struct tune *t, const struct tune_result *r)
{
	int dense = 0;
	for (int i = 0; i < t->layers; i++)
		dense += t->layer[i].way[r->after.way[i]].proposal == MPIG_PROPOSAL_DENSE;
	if (dense)
		printf("%d of %d layers are attended densely, however long a context is: tune one that is as long as those that "
		       "are "
		       "served\n",
		       dense, t->layers);
}

void tune_print(const struct tune *t, const struct tune_result *r)
{
	char name[128], tokens[TEXT_SHORT], requests[TEXT_SHORT], rows[TEXT_SHORT], share[TEXT_SHORT];
	int fewest = t->layer[0].steps, most = fewest;
	for (int i = 0; i < t->layers; i++) {
		fewest = t->layer[i].steps < fewest ? t->layer[i].steps : fewest;
		most = t->layer[i].steps > most ? t->layer[i].steps : most;
	}
	printf("%s: %s tokens, %d layers, ", text_printable(name, sizeof(name), t->info.name),
	       text_count(tokens, t->info.committed), t->layers);
	printf(fewest == most ? "%d queries of each" : "%d to %d queries of each", fewest, most);
	printf(", every other one to check with; %d seed%s from %u\n", t->seeds, t->seeds == 1 ? "" : "s", t->seed);
	printf("rates: request=%.0f,dense=%g,scan=%g,read=%g,lookup=%g", t->rates.request, t->rates.dense, t->rates.scan,
	       t->rates.read, t->rates.lookup);
	for (int b = 0; b < 3 && t->index; b++)
		printf(",scan%d=%g", 1 << b, t->rates.scan_bits[b]);
	printf(" (ns, %s)\n", t->rates_from);
	printf("load: %s requests, one at a time, in %.1f s, %s of the time in flight; %s rows read\n",
	       text_count(requests, t->requests), t->seconds, text_share(share, fmin(t->busy_s / t->seconds, 1)),
	       text_count(rows, t->rows_read));
	print_layers(t, r);
	print_outcome(t, r);
	print_reindexed(t, r);
	print_dense(t, r);
	print_curve(t, r);
}

// ---- JSON ------------------------------------------------------------------------------------------------------------
static void total_json(struct json *json, const char *key, struct tune_total total)
{
	json_object(json, key);
	json_double(json, "ms", total.ms);
	json_double(json, "error", sqrt(total.error2));
	json_object_end(json);
}

static void totals_json(struct json *json, const char *key, const struct tune_total *total, int count)
{
	json_array(json, key);
	for (int i = 0; i < count; i++)
		total_json(json, NULL, total[i]);
	json_array_end(json);
}

static void way_json(struct json *json, const char *key, const struct tune *t, int layer, int way)
{
	const struct tune_way *w = &t->layer[layer].way[way];
	struct tune_point p = tune_point_of(t, layer, way, -1, TUNE_CHECK);
	json_object(json, key);
	json_string(json, "proposal", proposal_name(w->proposal));
	json_float(json, "budget", w->budget);
	json_float(json, "error_target", w->error_target);
	json_float(json, "budget_floor", w->floor);
	json_float(json, "budget_cap", w->cap);
	json_int(json, "signature_bits", w->bits);
	json_int(json, "paper_k", w->paper_k);
	json_int(json, "paper_l", w->paper_l);
	json_double(json, "rows", tune_share(t, layer, way));
	json_double(json, "error", sqrt(p.error2));
	json_double(json, "ms", p.ms);
	json_object_end(json);
}

static void layer_json(struct json *json, const struct tune *t, const struct tune_result *r, int layer)
{
	json_object(json, NULL);
	json_int(json, "layer", t->layer[layer].number);
	json_int(json, "queries", t->layer[layer].steps);
	way_json(json, "before", t, layer, r->before.way[layer]);
	way_json(json, "after", t, layer, r->after.way[layer]);
	json_array(json, "rows_by_seed");
	for (int s = 0; s < t->seeds; s++)
		json_double(json, NULL, tune_share(t, layer, r->of_seed[s].way[layer]));
	json_array_end(json);
	json_object_end(json);
}

void tune_json(const struct tune *t, const struct tune_result *r, const struct profile *profile)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "name", t->info.name);
	json_string(&json, "fingerprint", profile->fingerprint);
	json_bool(&json, "reached", r->reached);
	json_bool(&json, "profiled_before", t->profiled);
	json_uint(&json, "committed", t->info.committed);
	json_double(&json, "goal_error", sqrt(t->goal.error2));
	json_double(&json, "goal_ms", t->goal.ms);
	json_uint(&json, "seed", t->seed);
	json_int(&json, "seeds", t->seeds);
	json_object(&json, "rates_ns");
	json_double(&json, "request", t->rates.request);
	json_double(&json, "dense", t->rates.dense);
	json_double(&json, "scan", t->rates.scan);
	json_double(&json, "read", t->rates.read);
	json_double(&json, "lookup", t->rates.lookup);
	json_double(&json, "scan1", t->rates.scan_bits[0]);
	json_double(&json, "scan2", t->rates.scan_bits[1]);
	json_double(&json, "scan4", t->rates.scan_bits[2]);
	json_object_end(&json);
	json_uint(&json, "requests", t->requests);
	json_uint(&json, "rows_read", t->rows_read);
	json_double(&json, "seconds", t->seconds);
	total_json(&json, "before", r->before.check);
	total_json(&json, "after", r->after.check);
	totals_json(&json, "after_by_seed", r->of_draw, t->seeds);
	json_array(&json, "chosen_by_seed");
	for (int s = 0; s < t->seeds; s++)
		total_json(&json, NULL, r->of_seed[s].check);
	json_array_end(&json);
	json_int(&json, "layers_agreed", r->agree);
	json_int(&json, "layers_reindexed", r->reindexed);
	total_json(&json, "as_indexed", r->present);
	totals_json(&json, "uniform", r->uniform, r->uniform_count);
	totals_json(&json, "tuned", r->tuned, r->tuned_count);
	json_array(&json, "layers");
	for (int i = 0; i < t->layers; i++)
		layer_json(&json, t, r, i);
	json_array_end(&json);
	json_object_end(&json);
	json_finish(&json);
}
