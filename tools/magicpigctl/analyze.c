// magicpigctl analyze: whether this model on this text gains by sampling, and where.
#include "analyze.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "ctl.h"
#include "text.h"

#define MAX_LAYERS 512
#define ENOUGH 4u // answers looked at, of one KV head

// ---- reckoning ---------------------------------------------------------------------------------------------------------
static void analyze_head(struct analyzed_head *h, const struct analysis *a)
{
	const struct mpig_head *s = h->seen;
	h->known = s->samples >= ENOUGH && s->rows && s->signature_bits && s->signature_bits != MPIG_BITS_AUTO;
	if (!h->known)
		return;
	struct curve curve;
	double rows = (double)s->rows;
	curve_make(&curve, rows, (double)s->n_eff, (double)s->mass_1, (double)s->mass_5, (double)s->noise);
	h->error = curve_error(&curve, a->budget * rows);
	double needed = curve_budget(&curve, a->error_target);
	h->needed = needed / rows;
	h->gain = fmax(1, layer_gain(h->layer, s->signature_bits, rows, needed));
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, int count)
{
	if (!count)
		return 0;
	qsort(values, (size_t)count, sizeof(*values), by_value);
	return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

// The heads of one layer follow one another.
static int analyze_layer(struct analyzed_layer *l, const struct analyzed_head *heads, int count)
{
	static double n_eff[256], mass_1[256], needed[256], gain[256];
	int n = 0;
	*l = (struct analyzed_layer){.number = heads[0].seen->layer};
	for (int i = 0; i < count && heads[i].seen->layer == l->number && l->kv_heads < 256; i++) {
		const struct analyzed_head *h = &heads[i];
		l->kv_heads++;
		if (!h->known)
			continue;
		n_eff[n] = (double)h->seen->n_eff;
		mass_1[n] = (double)h->seen->mass_1;
		needed[n] = h->needed;
		gain[n] = h->gain;
		l->error = fmax(l->error, h->error);
		n++;
	}
	l->known = n;
	l->n_eff = median(n_eff, n);
	l->mass_1 = median(mass_1, n);
	l->needed = median(needed, n);
	l->gain = median(gain, n);
	l->pays = n && l->gain >= ANALYZE_PAYS;
	return l->kv_heads;
}

static void analyze(struct analysis *a)
{
	double dense = 0, mixed = 0, rows = 0, needed = 0;
	for (int i = 0; i < a->heads; i++) {
		analyze_head(&a->head[i], a);
		a->known += a->head[i].known;
		a->rows = fmax(a->rows, (double)a->head[i].seen->rows);
	}
	for (int i = 0; i < a->heads;) {
		struct analyzed_layer *l = &a->layer[a->layers++];
		int count = analyze_layer(l, &a->head[i], a->heads - i);
		a->paying += l->pays;
		for (int h = i; h < i + count; h++) {
			const struct analyzed_head *head = &a->head[h];
			if (!head->known)
				continue;
			double bytes = (double)head->seen->rows * layer_row_bytes(head->layer);
			dense += bytes;
			mixed += l->pays ? bytes / head->gain : bytes;
			rows += (double)head->seen->rows;
			needed += head->needed * (double)head->seen->rows;
		}
		i += count;
	}
	a->needed = rows > 0 ? needed / rows : 0;
	a->gain = mixed > 0 ? dense / mixed : 0;
}

// ---- telling -----------------------------------------------------------------------------------------------------------
static void summary(FILE *out, const struct analysis *a)
{
	char name[128], tokens[TEXT_SHORT], needed[TEXT_SHORT], error[TEXT_SHORT];
	fprintf(out, "%s: %s tokens, %d of %d KV heads seen in use\n", text_printable(name, sizeof(name), a->info.name),
	        text_count(tokens, a->info.committed), a->known, a->heads);
	fprintf(out,
	        "At an error of %s, %s of the rows are read: %d of %d layers gain by sampling, %.3g times less to read in all.\n",
	        text_share(error, a->error_target), text_share(needed, a->needed), a->paying, a->layers, a->gain);
}

static void dashes(struct table *table, int count)
{
	while (count--)
		table_cell(table, "-");
}

static void print_layers(const struct analysis *a)
{
	static const char *const titles[] = {">layer", ">heads", ">n_eff", ">in 1 %", ">error", ">needs", ">gain", "advice"};
	struct table *table = table_create(8, titles);
	for (int i = 0; i < a->layers; i++) {
		const struct analyzed_layer *l = &a->layer[i];
		char text[TEXT_SHORT];
		table_format(table, "%d", l->number);
		table_format(table, "%d/%d", l->known, l->kv_heads);
		if (!l->known) {
			dashes(table, 5);
			table_cell(table, "not seen yet");
			continue;
		}
		table_format(table, "%.0f", l->n_eff);
		table_cell(table, text_share(text, l->mass_1));
		table_cell(table, text_share(text, l->error));
		table_cell(table, text_share(text, l->needed));
		table_format(table, "%.3g", l->gain);
		table_cell(table, l->pays ? "sample" : "stay dense");
	}
	table_print(table, stdout);
	table_destroy(table);
}

static void print_heads(const struct analysis *a)
{
	static const char *const titles[] = {">layer",  ">KV head", ">samples", ">rows",  ">noise", ">n_eff",
	                                     ">in 1 %", ">in 5 %",  ">error",   ">needs", ">gain"};
	struct table *table = table_create(11, titles);
	for (int i = 0; i < a->heads; i++) {
		const struct analyzed_head *h = &a->head[i];
		const struct mpig_head *s = h->seen;
		char text[TEXT_SHORT];
		table_format(table, "%d", s->layer);
		table_format(table, "%d", s->kv_head);
		table_cell(table, text_count(text, s->samples));
		if (!h->known) {
			dashes(table, 8);
			continue;
		}
		table_cell(table, text_count(text, s->rows));
		table_format(table, "%.3f", (double)s->noise);
		table_format(table, "%.0f", (double)s->n_eff);
		table_cell(table, text_share(text, (double)s->mass_1));
		table_cell(table, text_share(text, (double)s->mass_5));
		table_cell(table, text_share(text, h->error));
		table_cell(table, text_share(text, h->needed));
		table_format(table, "%.3g", h->gain);
	}
	table_print(table, stdout);
	table_destroy(table);
}

static void head_json(struct json *json, const struct analyzed_head *h)
{
	json_object(json, NULL);
	json_int(json, "layer", h->seen->layer);
	json_int(json, "kv_head", h->seen->kv_head);
	json_uint(json, "samples", h->seen->samples);
	json_bool(json, "known", h->known);
	if (h->known) {
		json_uint(json, "rows", h->seen->rows);
		json_float(json, "noise", h->seen->noise);
		json_float(json, "n_eff", h->seen->n_eff);
		json_float(json, "mass_1", h->seen->mass_1);
		json_float(json, "mass_5", h->seen->mass_5);
		json_double(json, "error_at_budget", h->error);
		json_double(json, "needed_share", h->needed);
		json_double(json, "gain", h->gain);
	}
	json_object_end(json);
}

static void print_json(const struct analysis *a)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "name", a->info.name);
	json_uint(&json, "committed", a->info.committed);
	json_double(&json, "error_target", a->error_target);
	json_double(&json, "budget", a->budget);
	json_int(&json, "heads_known", a->known);
	json_int(&json, "layers_paying", a->paying);
	json_double(&json, "needed_share", a->needed);
	json_double(&json, "gain", a->gain);
	json_array(&json, "layers");
	for (int i = 0; i < a->layers; i++) {
		const struct analyzed_layer *l = &a->layer[i];
		json_object(&json, NULL);
		json_int(&json, "layer", l->number);
		json_int(&json, "kv_heads", l->kv_heads);
		json_int(&json, "known", l->known);
		json_double(&json, "n_eff", l->n_eff);
		json_double(&json, "mass_1", l->mass_1);
		json_double(&json, "error_at_budget", l->error);
		json_double(&json, "needed_share", l->needed);
		json_double(&json, "gain", l->gain);
		json_string(&json, "advice", !l->known ? "unknown" : l->pays ? "sample" : "dense");
		json_object_end(&json);
	}
	json_array_end(&json);
	json_array(&json, "heads");
	for (int i = 0; i < a->heads; i++)
		head_json(&json, &a->head[i]);
	json_array_end(&json);
	json_object_end(&json);
	json_finish(&json);
}

static void write_page(FILE *out, const void *analysis)
{
	analyze_html(out, analysis);
}

// ---- asking ------------------------------------------------------------------------------------------------------------
// Fills what the daemon tells; the arrays are the caller's to free.
static int ask(mpig_client *client, const char *name, struct analysis *a, struct mpig_layer *layers, struct mpig_head **heads)
{
	int count = mpig_context_heads(client, name, NULL, 0),
	    layer_count = mpig_context_layers(client, name, layers, MAX_LAYERS);
	a->info = (struct mpig_context_info)MPIG_INIT(a->info);
	int status = mpig_context_info(client, name, &a->info);
	status = count < 0 ? count : layer_count < 0 ? layer_count : status;
	if (status)
		return status;
	*heads = calloc((size_t)count + 1, sizeof(**heads));
	a->head = calloc((size_t)count + 1, sizeof(*a->head));
	a->layer = calloc((size_t)count + 1, sizeof(*a->layer));
	if (!*heads || !a->head || !a->layer)
		return MPIG_ENOMEM;
	(*heads)->size = sizeof(**heads);
	int now = mpig_context_heads(client, name, *heads, count);
	a->heads = now < count ? now : count;
	for (int i = 0; i < a->heads; i++)
		a->head[i] = (struct analyzed_head){.seen = &(*heads)[i], .layer = &layers[(*heads)[i].layer % MAX_LAYERS]};
	return now < 0 ? now : MPIG_OK;
}

static int show(const struct ctl_command *self, const struct analysis *a, bool heads, const char *html)
{
	if (!a->known) {
		char name[128];
		fprintf(stderr,
		        "magicpigctl analyze: '%s': no head has been seen in use: let a client attend to it through signatures "
		        "(every "
		        "64th answer of a head is looked at, %u are needed), then ask again\n",
		        text_printable(name, sizeof(name), a->info.name), ENOUGH);
		return CTL_FAILED;
	}
	if (ctl_globals.json) {
		print_json(a);
	} else {
		summary(stdout, a);
		if (heads)
			print_heads(a);
		else
			print_layers(a);
	}
	return html ? ctl_write_file(self, html, write_page, a) : CTL_OK;
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	enum { HEADS = CTL_OPTION_OWN, HTML };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"error", required_argument, NULL, 'e'},
	                                        {"budget", required_argument, NULL, 'b'},
	                                        {"heads", no_argument, NULL, HEADS},
	                                        {"html", required_argument, NULL, HTML},
	                                        {NULL, 0, NULL, 0}};
	static struct mpig_layer layers[MAX_LAYERS];
	struct analysis analysis = {.error_target = .02, .budget = .02};
	struct mpig_head *heads = NULL;
	const char *html = NULL;
	bool with_heads = false;
	for (int option; (option = ctl_option(self, argc, argv, "he:b:", options)) != -1;)
		switch (option) {
		case 'e':
			analysis.error_target = ctl_positive(self, "--error", optarg, 1);
			break;
		case 'b':
			analysis.budget = ctl_positive(self, "--budget", optarg, 1);
			break;
		case HEADS:
			with_heads = true;
			break;
		case HTML:
			html = optarg;
			break;
		}
	if (argc - optind != 1)
		return ctl_usage(self, "give one context (`magicpigctl ls` shows them)");
	mpig_client *client;
	int code = ctl_check_file(self, html);
	code = code ? code : ctl_connect(self, &client);
	if (code)
		return code;
	int status = ask(client, argv[optind], &analysis, layers, &heads);
	if (status)
		code = ctl_failed(self, client, argv[optind], status);
	mpig_disconnect(client);
	if (!code) {
		analyze(&analysis);
		code = show(self, &analysis, with_heads, html);
	}
	free(analysis.head);
	free(analysis.layer);
	free(heads);
	return code;
}

const struct ctl_command ctl_analyze = {
	.name = "analyze",
	.arguments = "NAME",
	.summary = "Tells whether a context gains by sampling, and where",
	.options =
		"  -e, --error E       wanted: standard deviation of a head's mass, relative (default 0.02)\n"
		"  -b, --budget B      also the error when this share of the rows is read (default 0.02)\n"
		"      --heads         a line for every KV head instead of every layer\n"
		"      --html FILE     also heat maps of all heads, in one page\n"
		"\n"
		"The error is that of the mass, and the output's is larger where values cancel out: `trace replay --exact`\n"
		"measures that, and `tune` goes by it. All of this is about signatures: what tables of (K,L) would find depends\n"
		"on the angles between queries and keys, of which the figures here say nothing; `plan --proposal paper` tells\n"
		"what they cost, and `trace replay --proposal paper --exact` what they give, on a context that has them.\n",
	.run = run,
};
