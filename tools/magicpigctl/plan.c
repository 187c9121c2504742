// magicpigctl plan: what contexts of a model need, before anything is bought or started.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "analyze_model.h"
#include "bench.h"
#include "ctl.h"
#include "json.h"
#include "limit.h"
#include "plan_model.h"
#include "text.h"

#define MEASURED 65536u // tokens of the context that is measured, if the pool has room: more than caches hold
#define LEAST_MEASURED 8192u
#define HEADROOM 1.05 // of the pool: segments that are open are not trimmed yet

struct plan {
	struct plan_shape shape;
	uint64_t tokens, shared, contexts, window, upper_rows;
	double budget, rate, gpu_bytes; // tokens a second of each context, 0 = not asked; memory for KV of the GPU
	struct plan_memory one;         // a context by itself
	double pool, disk;              // of all of them
	struct plan_traffic traffic;    // of one token
	double window_bytes;            // of one context, on the GPU
	struct limit limit;             // stream_bytes_per_s 0: not known
	bool measured;                  // by --measure
	double layer_ns;                // of one answer of a layer, then
	unsigned workers;
	bool tables; // asked of the tables instead of the signatures
};

// ---- reckoning ---------------------------------------------------------------------------------------------------------
static double bytes_of(const struct plan_memory *m)
{
	return (double)(m->rows + m->index + m->metadata);
}

static void reckon(struct plan *p)
{
	struct plan_memory shared = {0}, own;
	p->one = plan_memory(&p->shape, 0, p->tokens, p->upper_rows);
	own = p->one;
	if (p->shared) { // forks: the prefix once, what each has of its own as often as there are contexts
		shared = plan_memory(&p->shape, 0, p->shared, p->upper_rows);
		own = plan_memory(&p->shape, p->shared, p->tokens - p->shared, p->upper_rows);
	}
	p->pool = bytes_of(&shared) + (double)p->contexts * bytes_of(&own);
	p->disk = (double)shared.disk + (double)p->contexts * (double)own.disk;
	p->traffic = plan_traffic(&p->shape, p->tokens, p->budget, p->tables);
	p->window_bytes = plan_window_bytes(&p->shape, p->window);
}

// Seconds of one core for one token, at memory's rates.
static double core_seconds(const struct plan *p)
{
	double threads = p->limit.threads ? p->limit.threads : 1;
	return p->traffic.codes / (p->limit.stream_bytes_per_s / threads) +
	       p->traffic.rows / (p->limit.gather_bytes_per_s / threads);
}

static double token_seconds(const struct plan *p)
{
	if (p->measured)
		return p->layer_ns * 1e-9 * p->traffic.attends;
	return p->traffic.codes / p->limit.stream_bytes_per_s + p->traffic.rows / p->limit.gather_bytes_per_s;
}

// ---- measuring ---------------------------------------------------------------------------------------------------------
// The time of an answer is a constant and so much for each token, at one budget: two sizes tell the two, and what they say of the size asked
// for is the prediction. The sizes are far apart, so that what disturbs one of them weighs little. Between two answers as much is looked at as the
// model's other layers would: codes that a layer finds in the caches are twice as fast as those in memory.
static int measure(const struct ctl_command *self, struct plan *p)
{
	const struct mpig_layer *layer = NULL;
	for (int i = 0; i < p->shape.layers && !layer; i++)
		if (p->shape.layer[i].kind == MPIG_LAYER_GLOBAL &&
		    (p->tables ? p->shape.layer[i].paper_l : p->shape.layer[i].signature_bits))
			layer = &p->shape.layer[i];
	struct mpig_daemon_status daemon = MPIG_INIT(daemon);
	mpig_client *client;
	if (!layer)
		return ctl_usage(self, "--measure needs a layer with signatures, or with tables and --proposal paper");
	int code = ctl_connect(self, &client);
	if (code)
		return code;
	int status = mpig_daemon_status(client, &daemon);
	double each = layer->kv_heads *
	              (layer_row_bytes(layer) + layer_code_bytes(layer, layer->signature_bits) + 2.0 * layer->paper_l + 4) *
	              HEADROOM;
	double free_bytes = .8 * (double)(daemon.pool_bytes - daemon.pool_used),
	       others = (p->traffic.codes + p->traffic.rows) * (p->traffic.attends - 1) / p->traffic.attends;
	others = fmin(others, free_bytes / 3);
	uint64_t size = MEASURED; // tokens of both layers: the one that is measured, and what stands for the others
	while (size >= LEAST_MEASURED && each * (double)size + HEADROOM * (double)bench_points_bytes(size, others) > free_bytes)
		size = size * 3 / 4;
	uint64_t tokens = p->tokens < size ? p->tokens : size;
	if (!status && tokens < LEAST_MEASURED) {
		fprintf(stderr,
		        "magicpigctl plan: --measure needs 8192 tokens of one layer, at least, asked for and free in the pool\n");
		mpig_disconnect(client);
		return CTL_FAILED;
	}
	char name[64];
	struct bench_point points[] = {{.tokens = tokens / 8, .budget = p->budget}, {.tokens = tokens, .budget = p->budget}};
	snprintf(name, sizeof(name), "magicpigctl-plan-%d", (int)getpid());
	status = status ? status
	                : bench_points(client, name, layer, size, others,
	                               p->tables ? MPIG_PROPOSAL_PAPER : MPIG_PROPOSAL_SIGNATURE, points, 2);
	if (status)
		code = ctl_failed(self, client, NULL, status);
	mpig_disconnect(client);
	if (code)
		return code;
	double per_token = fmax(0, (points[1].ns - points[0].ns) / (double)(points[1].tokens - points[0].tokens));
	p->layer_ns = fmax(points[1].ns + ((double)p->tokens - (double)tokens) * per_token, points[1].ns);
	p->workers = daemon.workers;
	p->measured = true;
	return CTL_OK;
}

// ---- telling -----------------------------------------------------------------------------------------------------------
static void print_model(const struct plan *p)
{
	const struct plan_shape *s = &p->shape;
	const struct mpig_layer *l = &s->layer[0];
	static const char *const types[] = {"bf16", "bf16", "fp16", "int8"};
	char tokens[TEXT_SHORT], rows[TEXT_SHORT], index[TEXT_SHORT], metadata[TEXT_SHORT], all[TEXT_SHORT];
	printf("model        %s: %d layers, of %d of them the daemon keeps rows; %d query heads on %d KV heads of d %d\n",
	       s->name, s->layers, p->traffic.attends, l->query_heads, l->kv_heads, l->d_k);
	printf("one context  %s tokens in %s: rows %s, index %s, metadata %s, in all %s\n", text_count(tokens, p->tokens),
	       types[l->row_dtype], text_bytes(rows, p->one.rows), text_bytes(index, p->one.index),
	       text_bytes(metadata, p->one.metadata), text_bytes(all, (uint64_t)bytes_of(&p->one)));
}

static double table_share(const struct plan *p)
{
	const struct mpig_layer *l = &p->shape.layer[0];
	for (int i = 0; i < p->shape.layers && !l->paper_l; i++)
		l = &p->shape.layer[i];
	return plan_table_share(l->paper_k, l->paper_l, l->d_k);
}

static void print_needs(const struct plan *p)
{
	char all[TEXT_SHORT], size[TEXT_SHORT], disk[TEXT_SHORT], codes[TEXT_SHORT], rows[TEXT_SHORT], sum[TEXT_SHORT],
		dense[TEXT_SHORT];
	char share[TEXT_SHORT], window[TEXT_SHORT], kv[TEXT_SHORT], tokens[TEXT_SHORT];
	printf("DRAM         %" PRIu64 " context%s: %s", p->contexts, p->contexts == 1 ? "" : "s",
	       text_bytes(all, (uint64_t)p->pool));
	if (p->shared)
		printf(", %s tokens of them shared", text_count(tokens, p->shared));
	printf("; pool.size = %.0fM\n", ceil(p->pool * HEADROOM / 1048576 / 2) * 2);
	printf("disk         %s when all are saved\n", text_bytes(disk, (uint64_t)p->disk));
	printf("each token   looks at %s", text_bytes(sum, (uint64_t)(p->traffic.codes + p->traffic.rows)));
	if (!p->tables)
		printf(" when a head reads %s of the rows: %s of codes in a stream, %s of rows here and there",
		       text_share(share, p->budget), text_bytes(codes, (uint64_t)p->traffic.codes),
		       text_bytes(rows, (uint64_t)p->traffic.rows));
	else if (p->budget > 0)
		printf(" of lists and rows, here and there, when the tables choose %s of the rows for a head",
		       text_share(share, p->budget));
	else
		printf(" of lists and rows, here and there: of rows without structure the tables choose %s for a head; of a "
		       "model's, "
		       "more",
		       text_share(share, table_share(p)));
	printf(" (dense: %s)\n", text_bytes(dense, (uint64_t)p->traffic.dense));
	if (p->rate > 0)
		printf("bandwidth    %s/s at %.3g tokens/s in all\n",
		       text_bytes(size, (uint64_t)((p->traffic.codes + p->traffic.rows) * p->rate * (double)p->contexts)),
		       p->rate * (double)p->contexts);
	double full = plan_window_bytes(&p->shape, p->tokens);
	printf("GPU          %s a context for a window of %s tokens; all its KV would be %s\n",
	       text_bytes(window, (uint64_t)p->window_bytes), text_count(tokens, p->window), text_bytes(kv, (uint64_t)full));
	if (p->gpu_bytes > 0)
		printf("             in %s: %.0f contexts with the daemon, %.0f without\n",
		       text_bytes(size, (uint64_t)p->gpu_bytes), floor(p->gpu_bytes / p->window_bytes),
		       floor(p->gpu_bytes / full));
}

static void print_time(const struct plan *p)
{
	char time[TEXT_SHORT], layer[TEXT_SHORT], ago[TEXT_SHORT];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (p->measured)
		printf("time         %s a token of one context (%s a layer, extrapolated from this daemon with %u workers)%s\n",
		       text_latency(time, token_seconds(p) * 1e9), text_latency(layer, p->layer_ns), p->workers,
		       p->tables ? "; of rows without structure" : "");
	else if (p->limit.stream_bytes_per_s > 0)
		printf("time         at least %s a token of one context, at the rates of memory that `magicpigctl bench` "
		       "measured "
		       "here %s\n             (a busy machine makes them too low; --measure tells more)\n",
		       text_latency(time, token_seconds(p) * 1e9),
		       text_ago(ago, p->limit.measured_ns, (uint64_t)now.tv_sec * UINT64_C(1000000000)));
	else
		printf("time         not known: `magicpigctl bench --memory` measures this machine, --measure a running "
		       "daemon\n");
	if (p->upper_rows && p->tokens >= p->upper_rows && (p->measured || p->limit.stream_bytes_per_s > 0))
		printf("             so many rows go through upper layers: on keys like a model's in 1 / 1.1 to 1 / 1.6 of "
		       "that\n");
	if (p->rate > 0 && p->limit.stream_bytes_per_s > 0)
		printf("cores        %.0f, at least, of this machine's, at their share of its memory's rates\n",
		       ceil(core_seconds(p) * p->rate * (double)p->contexts));
	if (p->rate > 0 && (p->measured || p->limit.stream_bytes_per_s > 0) && token_seconds(p) * p->rate > 1)
		printf("             one context alone cannot do %.3g tokens/s here: %.3g at most\n", p->rate,
		       1 / token_seconds(p));
}

static void print_json(const struct plan *p)
{
	struct json json;
	json_begin(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "model", p->shape.name);
	json_int(&json, "layers", p->shape.layers);
	json_int(&json, "stored_layers", p->traffic.attends);
	json_uint(&json, "tokens", p->tokens);
	json_uint(&json, "contexts", p->contexts);
	json_uint(&json, "rows_bytes", p->one.rows);
	json_uint(&json, "index_bytes", p->one.index);
	json_uint(&json, "metadata_bytes", p->one.metadata);
	json_uint(&json, "context_bytes", (uint64_t)bytes_of(&p->one));
	json_uint(&json, "pool_bytes", (uint64_t)p->pool);
	json_uint(&json, "disk_bytes", (uint64_t)p->disk);
	json_string(&json, "proposal", p->tables ? "paper" : "signature");
	if (p->tables)
		json_double(&json, "share_of_rows", p->budget > 0 ? p->budget : table_share(p));
	json_double(&json, "token_codes_bytes", p->traffic.codes);
	json_double(&json, "token_rows_bytes", p->traffic.rows);
	json_double(&json, "token_dense_bytes", p->traffic.dense);
	json_double(&json, "bandwidth_bytes_per_s", (p->traffic.codes + p->traffic.rows) * p->rate * (double)p->contexts);
	json_double(&json, "window_bytes", p->window_bytes);
	json_bool(&json, "measured", p->measured);
	if (p->measured || p->limit.stream_bytes_per_s > 0)
		json_double(&json, "ms_per_token", token_seconds(p) * 1e3);
	else
		json_string(&json, "ms_per_token", NULL);
	if (p->limit.stream_bytes_per_s > 0)
		json_double(&json, "cores", ceil(core_seconds(p) * p->rate * (double)p->contexts));
	else
		json_string(&json, "cores", NULL);
	json_object_end(&json);
	json_finish(&json);
}

// ---- the command -------------------------------------------------------------------------------------------------------
// A number of bytes with K, M, G or T, powers of 1024.
static double size(const struct ctl_command *self, const char *option, const char *text)
{
	static const char units[] = "KMGT";
	char *end;
	double value = strtod(text, &end);
	const char *unit = *end ? strchr(units, *end) : NULL;
	if (end == text || !(value > 0) || (*end && (!unit || end[1])))
		exit(ctl_usage(self, "%s: '%s' is not a size such as 24G", option, text));
	return value * pow(1024, unit ? (double)(unit - units + 1) : 0);
}

static int row_type(const struct ctl_command *self, const char *text)
{
	if (strcmp(text, "bf16") == 0)
		return MPIG_BF16;
	if (strcmp(text, "fp16") == 0)
		return MPIG_F16;
	if (strcmp(text, "int8") == 0)
		return MPIG_I8;
	exit(ctl_usage(self, "--rows: '%s' is none of bf16, fp16, int8", text));
}

// What is chosen for all layers.
struct index_options {
	int row_dtype, bits, table_k, table_l;
};

static void apply(struct plan_shape *s, const struct index_options *o)
{
	for (int i = 0; i < s->layers; i++) {
		struct mpig_layer *l = &s->layer[i];
		l->row_dtype = o->row_dtype;
		l->signature_bits = l->window ? 0 : o->bits;
		l->paper_k = l->window ? 0 : o->table_k;
		l->paper_l = l->window ? 0 : o->table_l;
	}
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	enum { SHARED = CTL_OPTION_OWN, ROWS, BITS, TABLES, BUDGET, WINDOW, RATE, GPU, SLIDING, UPPER, PROPOSAL, MEASURE };
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"tokens", required_argument, NULL, 't'},
	                                        {"contexts", required_argument, NULL, 'c'},
	                                        {"shared", required_argument, NULL, SHARED},
	                                        {"rows", required_argument, NULL, ROWS},
	                                        {"bits", required_argument, NULL, BITS},
	                                        {"tables", required_argument, NULL, TABLES},
	                                        {"budget", required_argument, NULL, BUDGET},
	                                        {"window", required_argument, NULL, WINDOW},
	                                        {"rate", required_argument, NULL, RATE},
	                                        {"gpu-mem", required_argument, NULL, GPU},
	                                        {"keep-sliding", no_argument, NULL, SLIDING},
	                                        {"upper-rows", required_argument, NULL, UPPER},
	                                        {"proposal", required_argument, NULL, PROPOSAL},
	                                        {"measure", no_argument, NULL, MEASURE},
	                                        {NULL, 0, NULL, 0}};
	static struct plan p = {.tokens = 131072, .contexts = 1, .window = 1024, .upper_rows = 524288};
	struct index_options index = {.row_dtype = MPIG_BF16, .bits = 2};
	bool keep_sliding = false, measuring = false;
	int end = 0;
	for (int option; (option = ctl_option(self, argc, argv, "ht:c:", options)) != -1;)
		switch (option) {
		case 't':
			p.tokens = ctl_number(self, "--tokens", optarg, 1, UINT64_C(1) << 31);
			break;
		case 'c':
			p.contexts = ctl_number(self, "--contexts", optarg, 1, 1000000);
			break;
		case SHARED:
			p.shared = ctl_number(self, "--shared", optarg, 1, UINT64_C(1) << 31);
			break;
		case ROWS:
			index.row_dtype = row_type(self, optarg);
			break;
		case BITS:
			index.bits = (int)ctl_number(self, "--bits", optarg, 0, 4);
			if (index.bits == 3)
				return ctl_usage(self, "--bits: 0, 1, 2 or 4");
			break;
		case TABLES:
			if (sscanf(optarg, "%d,%d%n", &index.table_k, &index.table_l, &end) != 2 || optarg[end] ||
			    index.table_k < 1 || index.table_k > 16 || index.table_l < 2 || index.table_l > 512)
				return ctl_usage(self, "--tables: '%s' is not K,L with K 1 to 16 and L 2 to 512", optarg);
			break;
		case BUDGET:
			p.budget = ctl_positive(self, "--budget", optarg, 1);
			break;
		case WINDOW:
			p.window = ctl_number(self, "--window", optarg, 1, UINT64_C(1) << 31);
			break;
		case RATE:
			p.rate = ctl_positive(self, "--rate", optarg, 1e6);
			break;
		case GPU:
			p.gpu_bytes = size(self, "--gpu-mem", optarg);
			break;
		case SLIDING:
			keep_sliding = true;
			break;
		case UPPER:
			p.upper_rows = ctl_number(self, "--upper-rows", optarg, 0, UINT64_C(1) << 32);
			break;
		case PROPOSAL:
			p.tables = strcmp(optarg, "paper") == 0;
			if (!p.tables && strcmp(optarg, "signature") != 0)
				return ctl_usage(self, "--proposal: '%s' is neither signature nor paper", optarg);
			break;
		case MEASURE:
			measuring = true;
			break;
		}
	if (argc - optind != 1)
		return ctl_usage(self, "give a model: LAYERS/QUERY/KV/D, as in 32/32/8/128, or its config.json");
	if (p.shared >= p.tokens)
		return ctl_usage(self, "--shared must be less than --tokens");
	if (p.tables && !index.table_l)
		return ctl_usage(self, "--proposal paper needs --tables K,L");
	if (!p.tables && p.budget <= 0)
		p.budget = .02;
	if (p.tables && measuring)
		p.budget = 0; // the tables choose; in what is measured, of rows without structure
	char why[160];
	if (plan_shape_read(argv[optind], keep_sliding, &p.shape, why, sizeof(why)) != 0) {
		fprintf(stderr, "magicpigctl plan: %s: %s\n", argv[optind], why);
		return CTL_FAILED;
	}
	apply(&p.shape, &index);
	reckon(&p);
	if (limit_read(&p.limit) != 0)
		p.limit = (struct limit){0};
	int code = measuring ? measure(self, &p) : CTL_OK;
	if (code)
		return code;
	if (ctl_globals.json) {
		print_json(&p);
	} else {
		print_model(&p);
		print_needs(&p);
		print_time(&p);
	}
	return CTL_OK;
}

const struct ctl_command ctl_plan = {
	.name = "plan",
	.arguments = "MODEL",
	.summary = "Tells what contexts of a model need, before anything is started",
	.options = "  -t, --tokens N      of each context (default 131072)\n"
		   "  -c, --contexts N    how many (default 1)\n"
		   "      --shared N      tokens that all of them have in common, stored once (forks)\n"
		   "      --rate R        tokens a second that each generates: bandwidth and cores\n"
		   "      --rows TYPE     bf16, fp16 or int8 (default bf16)\n"
		   "      --bits B        of signatures: 1, 2, 4, or 0 for none (default 2)\n"
		   "      --tables K,L    tables of the paper's proposal, too\n"
		   "      --proposal P    signature (the default), or paper: bytes and times are those of answers by tables\n"
		   "      --budget B      share of the rows that a query head reads (default 0.02; `analyze` tells what an error "
		   "takes);\n"
		   "                      of paper: that the tables choose (default: of rows without structure; `trace replay` "
		   "tells)\n"
		   "      --window N      tokens that the client keeps on the GPU (default 1024)\n"
		   "      --gpu-mem SIZE  memory of the GPU that is left for KV\n"
		   "      --keep-sliding  rows of sliding layers are kept in the daemon, too\n"
		   "      --upper-rows N  engine.upper_rows of the daemon (default 524288; 0: no upper layers)\n"
		   "      --measure       times a layer of it in the running daemon, in a context that is dropped again\n"
		   "\n"
		   "MODEL: LAYERS/QUERY/KV/D (heads and their dimension), as in 32/32/8/128, or a config.json of Hugging Face.\n",
	.run = run,
};
