// magicpigctl tune: how the layers of a model are answered best, found by asking.
#include "tune.h"

#include <errno.h>
#include <math.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"
#include "text.h"
#include "tune_stored.h"

struct arguments {
	const char *what, *trace, *output, *html, *use, *rates;
	double error, ms;
	uint32_t uid;
	bool show, list, clear, dry;
};

static void on_signal(int number)
{
	(void)number;
	tune_interrupted = 1;
}

static void progress(const struct tune *t, double share)
{
	static int shown = -1;
	int percent = (int)(100 * share);
	(void)t;
	if (percent == shown)
		return;
	shown = percent;
	fprintf(stderr, "\rasking ");
	text_bar(stderr, share, 40);
	fprintf(stderr, " %3d %%%s", percent, percent >= 100 ? "\n" : "");
}

// ---- before ----------------------------------------------------------------------------------------------------------
// "section.key = value" of the daemon's configuration.
static float configured(const char *text, const char *key, float otherwise)
{
	const char *line = strstr(text, key);
	float value;
	return line && sscanf(line + strlen(key), " = %f", &value) == 1 ? value : otherwise;
}

// Bytes of a row's code in each layer: the mean over its KV heads, whose widths may differ.
static int ask_widths(struct tune *t, mpig_client *client)
{
	int count = mpig_context_heads(client, t->name, NULL, 0);
	struct mpig_head *heads = count > 0 ? calloc((size_t)count, sizeof(*heads)) : NULL;
	if (count < 0 || !heads)
		return count < 0 ? count : MPIG_ENOMEM;
	heads->size = sizeof(*heads);
	int now = mpig_context_heads(client, t->name, heads, count);
	for (int i = 0; i < count && i < now; i++)
		for (int l = 0; l < t->layers; l++) {
			const struct mpig_layer *spec = &t->layer[l].spec;
			int padded = spec->d_k <= 64 ? 64 : spec->d_k <= 128 ? 128 : 256;
			if (t->layer[l].number == heads[i].layer && heads[i].signature_bits &&
			    heads[i].signature_bits != MPIG_BITS_AUTO)
				t->layer[l].code_bytes += (padded * heads[i].signature_bits / 8.0 + 2) / spec->kv_heads;
		}
	free(heads);
	return now < 0 ? now : MPIG_OK;
}

static int ask_daemon(struct tune *t, mpig_client *client)
{
	static char config[65536];
	t->info = (struct mpig_context_info)MPIG_INIT(t->info);
	int status = mpig_context_info(client, t->name, &t->info),
	    count = mpig_context_layers(client, t->name, t->spec, TUNE_LAYERS);
	if (!status && count < 0)
		status = count;
	int length = status ? status : mpig_daemon_config(client, config, sizeof(config));
	if (length < 0)
		return length;
	t->error_target = configured(config, "engine.error_target", .055f);
	t->floor = configured(config, "engine.budget_floor", .005f);
	t->cap = configured(config, "engine.budget_cap", .08f);
	t->layer_count = count > TUNE_LAYERS ? TUNE_LAYERS : count;
	t->layer = calloc((size_t)t->layer_count, sizeof(*t->layer));
	if (!t->layer)
		return MPIG_ENOMEM;
	for (int i = 0; i < t->layer_count; i++)
		if (t->spec[i].kind == MPIG_LAYER_GLOBAL)
			t->layer[t->layers++] = (struct tune_layer){.number = i, .spec = t->spec[i]};
	return ask_widths(t, client);
}

// "request=..,dense=..": all that are named; the others stay.
static bool parse_rates(const char *text, struct tune_rates *r)
{
	const struct {
		const char *name;
		double *value;
	} names[] = {{"request", &r->request},    {"dense", &r->dense},       {"scan", &r->scan},
	             {"read", &r->read},          {"lookup", &r->lookup},     {"scan1", &r->scan_bits[0]},
	             {"scan2", &r->scan_bits[1]}, {"scan4", &r->scan_bits[2]}};
	enum { NAMES = sizeof(names) / sizeof(names[0]) };
	for (bool more = true; more;) {
		size_t n = strcspn(text, "="), i = 0;
		char *end;
		while (i < NAMES && (strlen(names[i].name) != n || strncmp(text, names[i].name, n) != 0))
			i++;
		if (i == NAMES || !text[n])
			return false;
		double value = strtod(text + n + 1, &end);
		if (end == text + n + 1 || (*end && *end != ',') || !(value >= 0) || value > 1e12)
			return false;
		*names[i].value = value;
		more = *end == ',';
		text = end + 1;
	}
	return r->request + r->dense + r->scan + r->read > 0;
}

// Whether a context is about as long as that whose rows the profile's rates were measured on: those of short ranges are not those of long ones.
static bool as_long(const struct tune *t, const struct profile *profile)
{
	uint64_t tokens = profile->rates_tokens;
	return !tokens || (tokens <= 2 * t->info.committed && t->info.committed <= 2 * tokens);
}

// As given, else those of the profile that is in force, so that a second run is the first one again; else measured.
static void choose_rates(struct tune *t, const struct arguments *a, const struct profile *profile)
{
	bool anew = a->rates && strcmp(a->rates, "measure") == 0;
	t->rates_from = "measured";
	t->rates_tokens = t->info.committed;
	if (a->rates && !anew) {
		t->rates_from = "given";
		t->rates_tokens = 0;
		t->rates_given = true; // parsed by now
	} else if (profile && !anew && profile->ns_dense > 0 && profile->ns_scan > 0 && as_long(t, profile)) {
		t->rates_from = "of the profile in force";
		t->rates_tokens = profile->rates_tokens;
		t->rates = (struct tune_rates){
			.request = (double)profile->ns_request,
			.dense = (double)profile->ns_dense,
			.scan = (double)profile->ns_scan,
			.read = (double)profile->ns_read,
			.lookup = (double)profile->ns_lookup,
			.scan_bits = {(double)profile->ns_scan_1, (double)profile->ns_scan_2, (double)profile->ns_scan_4}};
		t->rates_given = true;
	}
}

// ---- after -----------------------------------------------------------------------------------------------------------
struct page {
	const struct tune *tune;
	const struct tune_result *result;
};

static void write_page(FILE *out, const void *page)
{
	const struct page *p = page;
	tune_html(out, p->tune, p->result);
}

static void write_text(FILE *out, const void *text)
{
	fputs(text, out);
}

static void say_not_reached(const struct ctl_command *self, const struct tune *t, const struct tune_result *r)
{
	char name[128], error[TEXT_SHORT];
	fflush(stdout);
	fprintf(stderr, "magicpigctl %s: '%s': not reached: best is error %s at %.3g ms a token; nothing was changed\n",
	        self->name, text_printable(name, sizeof(name), t->name), text_share(error, sqrt(r->after.check.error2)),
	        r->after.check.ms);
}

static int finish(const struct ctl_command *self, mpig_client *client, const struct arguments *a, const struct stored_of *of,
                  const struct tune *t, const struct tune_result *r)
{
	static char text[PROFILE_TEXT_BYTES + 1];
	static struct profile profile;
	char whose[80];
	int code = CTL_OK;
	tune_profile(t, r, &profile);
	if (ctl_globals.json)
		tune_json(t, r, &profile);
	else
		tune_print(t, r);
	if (a->html)
		code = ctl_write_file(self, a->html, write_page, &(struct page){t, r});
	if (!r->reached) {
		say_not_reached(self, t, r);
		return CTL_FAILED;
	}
	if (!profile_format(&profile, text)) {
		fprintf(stderr, "magicpigctl %s: '%s': a profile of %d layers is longer than %u bytes\n", self->name, t->name,
		        t->layers, PROFILE_TEXT_BYTES);
		return CTL_FAILED;
	}
	if (a->output) {
		int written = ctl_write_file(self, a->output, write_text, text);
		code = code ? code : written;
	}
	if (a->dry)
		return code;
	int status = mpig_profile_set(client, of->fingerprint, of->uid, text);
	if (status) {
		code = ctl_failed(self, client, t->name, status);
		if (a->output)
			fprintf(stderr, "magicpigctl %s: the profile is in %s, and --use sets it later\n", self->name, a->output);
		else
			fprintf(stderr, "magicpigctl %s: it is not kept; --output FILE keeps one, and --use sets it later\n",
			        self->name);
		return code;
	}
	if (!ctl_globals.json)
		printf("the profile %s for its fingerprint is set: it holds for contexts that are opened or made from now on\n",
		       stored_whose(of->uid, whose));
	return code;
}

// Before anything is measured: whether the profile could be set in the end. Only administrators may look at what is another's.
static int may_set(mpig_client *client, const struct stored_of *of)
{
	uint32_t own = (uint32_t)geteuid(), another = of->uid == MPIG_PROFILE_ALL ? own == 0 : of->uid;
	int status = another == own ? MPIG_OK : mpig_profile_get(client, of->fingerprint, another, NULL, 0, NULL);
	return status == MPIG_EACCES ? status : MPIG_OK;
}

static int tune(const struct ctl_command *self, mpig_client *client, const struct arguments *a, const struct stored_of *of,
                struct tune *t)
{
	static char text[PROFILE_TEXT_BYTES + 1];
	static struct profile profile;
	static struct tune_result result;
	char why[TUNE_WHY_BYTES];
	struct stored_of own = {.uid = t->info.uid};
	memcpy(own.fingerprint, of->fingerprint, sizeof(own.fingerprint));
	int status = a->dry ? MPIG_OK : may_set(client, of);
	status = status ? status : stored_get(client, &own, text, NULL);
	if (status && status != MPIG_ENOENT)
		return ctl_failed(self, client, t->name, status);
	bool profiled = !status && profile_parse(text, strlen(text), &profile, why) == 0;
	choose_rates(t, a, profiled ? &profile : NULL);
	status = a->trace ? tune_queries_trace(t, a->trace, why) : tune_queries_noted(t, client, why);
	if (status) {
		fprintf(stderr, "magicpigctl %s: '%s': %s\n", self->name, t->name, why);
		return CTL_FAILED;
	}
	tune_ways(t, profiled ? &profile : NULL);
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGINT, &action, NULL); // so that forks are dropped
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	t->progress = isatty(STDERR_FILENO) ? progress : NULL;
	status = tune_measure(t, client);
	if (t->progress && status)
		putc('\n', stderr);
	if (status && tune_interrupted) {
		fprintf(stderr, "magicpigctl %s: interrupted; nothing was changed\n", self->name);
		return CTL_FAILED;
	}
	if (status)
		return ctl_failed(self, client, t->name, status);
	if (!tune_choose(t, &result))
		return ctl_failed(self, NULL, t->name, MPIG_ENOMEM);
	return finish(self, client, a, of, t, &result);
}

// ---- the command -----------------------------------------------------------------------------------------------------
static uint32_t user(const struct ctl_command *self, const char *text)
{
	const struct passwd *entry = getpwnam(text);
	if (!entry && strspn(text, "0123456789") != strlen(text))
		exit(ctl_usage(self, "--user: '%s' is neither a user's name nor a uid", text));
	if (entry && entry->pw_uid >= MPIG_PROFILE_ALL)
		exit(ctl_usage(self,
		               "--user: %s is uid %u, which stands for all users and has no profile of its own: --all-users",
		               text, (unsigned)entry->pw_uid));
	return entry ? entry->pw_uid : (uint32_t)ctl_number(self, "--user", text, 0, UINT32_MAX - 2);
}

static void read_options(const struct ctl_command *self, int argc, char **argv, struct arguments *a, struct tune *t)
{
	enum {
		TRACE = CTL_OPTION_OWN,
		QUERIES,
		SEEDS,
		SEED,
		RATES,
		LOAD,
		SINKS,
		WINDOW,
		DRY,
		OUTPUT,
		HTML,
		INDEX,
		USER,
		ALL,
		SHOW,
		LIST,
		CLEAR,
		USE
	};
	static const struct option options[] = {CTL_GLOBAL_OPTIONS,
	                                        {"error", required_argument, NULL, 'e'},
	                                        {"ms", required_argument, NULL, 'm'},
	                                        {"trace", required_argument, NULL, TRACE},
	                                        {"queries", required_argument, NULL, QUERIES},
	                                        {"seeds", required_argument, NULL, SEEDS},
	                                        {"seed", required_argument, NULL, SEED},
	                                        {"rates", required_argument, NULL, RATES},
	                                        {"load", required_argument, NULL, LOAD},
	                                        {"sinks", required_argument, NULL, SINKS},
	                                        {"window", required_argument, NULL, WINDOW},
	                                        {"index", no_argument, NULL, INDEX},
	                                        {"dry-run", no_argument, NULL, DRY},
	                                        {"output", required_argument, NULL, OUTPUT},
	                                        {"html", required_argument, NULL, HTML},
	                                        {"user", required_argument, NULL, USER},
	                                        {"all-users", no_argument, NULL, ALL},
	                                        {"show", no_argument, NULL, SHOW},
	                                        {"list", no_argument, NULL, LIST},
	                                        {"clear", no_argument, NULL, CLEAR},
	                                        {"use", required_argument, NULL, USE},
	                                        {NULL, 0, NULL, 0}};
	for (int option; (option = ctl_option(self, argc, argv, "he:m:", options)) != -1;)
		switch (option) {
		case 'e':
			a->error = ctl_positive(self, "--error", optarg, 1);
			break;
		case 'm':
			a->ms = ctl_positive(self, "--ms", optarg, 1e6);
			break;
		case TRACE:
			a->trace = optarg;
			break;
		case QUERIES:
			t->queries = (int)ctl_number(self, "--queries", optarg, 2, 4096);
			break;
		case SEEDS:
			t->seeds = (int)ctl_number(self, "--seeds", optarg, 1, TUNE_SEEDS);
			break;
		case SEED:
			t->seed = (uint32_t)ctl_number(self, "--seed", optarg, 0, UINT32_MAX);
			break;
		case RATES:
			a->rates = optarg;
			if (strcmp(optarg, "measure") != 0 && !parse_rates(optarg, &t->rates))
				exit(ctl_usage(self,
				               "--rates: '%s' is neither measure nor nanoseconds as in "
				               "request=20000,dense=9,scan=3,read=60,lookup=60",
				               optarg));
			break;
		case LOAD:
			t->load = ctl_positive(self, "--load", optarg, 1);
			break;
		case SINKS:
			t->sinks = ctl_number(self, "--sinks", optarg, 0, 1u << 20);
			break;
		case WINDOW:
			t->window = ctl_number(self, "--window", optarg, 0, 1u << 20);
			break;
		case INDEX:
			t->index = true;
			break;
		case DRY:
			a->dry = true;
			break;
		case OUTPUT:
			a->output = optarg;
			break;
		case HTML:
			a->html = optarg;
			break;
		case USER:
			a->uid = user(self, optarg);
			break;
		case ALL:
			a->uid = MPIG_PROFILE_ALL;
			break;
		case SHOW:
			a->show = true;
			break;
		case LIST:
			a->list = true;
			break;
		case CLEAR:
			a->clear = true;
			break;
		case USE:
			a->use = optarg;
			break;
		}
}

static int run(const struct ctl_command *self, int argc, char **argv)
{
	static struct mpig_layer spec[TUNE_LAYERS];
	struct tune t = {.load = .5, .queries = 32, .seeds = 5, .seed = 1, .sinks = 4, .window = 64, .spec = spec};
	struct arguments a = {.uid = UINT32_MAX};
	struct stored_of of;
	mpig_client *client;
	read_options(self, argc, argv, &a, &t);
	if (argc - optind != !a.list)
		return ctl_usage(
			self, "give one context (`magicpigctl ls` shows them), or with --show, --clear and --use a fingerprint");
	a.what = argv[optind];
	int modes = a.show + a.list + a.clear + (a.use != NULL), goals = (a.error > 0) + (a.ms > 0);
	if (modes > 1 || (modes && goals))
		return ctl_usage(self, "--show, --list, --clear, --use and a goal exclude each other");
	if (!modes && !goals)
		return ctl_usage(self, "what is wanted? Give --error, --ms, or both");
	int code = ctl_check_file(self, a.html);
	code = code ? code : ctl_check_file(self, a.output);
	code = code ? code : ctl_connect(self, &client);
	if (code)
		return code;
	code = a.list ? stored_list(self, client, a.uid) : stored_find(self, client, a.what, a.uid, &of);
	if (code == CTL_OK && modes && !a.list)
		code = a.show    ? stored_show(self, client, a.what, &of)
		       : a.clear ? stored_clear(self, client, a.what, &of)
		                 : stored_use(self, client, a.what, &of, a.use);
	if (code == CTL_OK && !modes) {
		t.name = a.what;
		t.goal = (struct tune_goal){.error2 = a.error * a.error, .ms = a.ms};
		int status = ask_daemon(&t, client);
		code = status ? ctl_failed(self, client, a.what, status) : tune(self, client, &a, &of, &t);
		tune_layers_free(&t);
	}
	mpig_disconnect(client);
	return code;
}

const struct ctl_command ctl_tune = {
	.name = "tune",
	.arguments = "NAME | --list",
	.summary = "Finds how the layers of a model are answered best, and keeps it as a profile",
	.options =
		"  -e, --error E       wanted: the least time at which answers err by E at most\n"
		"  -m, --ms M          wanted: the least error within M ms a token; with --error: fail if that takes longer\n"
		"      --trace FILE    queries of `magicpigctl trace record` (default: those that the daemon has noted, few)\n"
		"      --queries N     of a layer, at most; every other one only checks (default 32)\n"
		"      --seeds N       draws, over which stability is told (default 5)\n"
		"      --seed S        the first of them (default 1)\n"
		"      --rates LIST    ns: request=..,dense=..,scan=..,read=..,lookup=..; or measure (default: of the profile "
		"in force, if its\n"
		"                      context was about as long, else measured)\n"
		"      --load SHARE    of the time that a request of it is in flight, one at a time (default 0.5)\n"
		"      --sinks N, --window N  rows at both ends that clients keep, for queries the daemon has noted (default "
		"4, 64)\n"
		"      --index         also tries other widths of codes, and other K and L where there are tables, on private\n"
		"                      copies of one layer at a time; what it takes of these holds for contexts made later\n"
		"      --html FILE     also a page with the curves\n"
		"      --output FILE   also the profile as a text\n"
		"      --dry-run       sets no profile\n"
		"      --show          prints the profile of a context, or of a fingerprint\n"
		"      --list          lists the profiles that there are: one's own and those of all users; administrators:\n"
		"                      everybody's\n"
		"      --clear         removes it\n"
		"      --use FILE      sets one that was written by --output or --show\n"
		"      --user NAME, --all-users  whose, for administrators (default: the context's owner; of a fingerprint: "
		"yours)\n"
		"\n"
		"The error is that of a layer's output, the client's own rows merged, relative to the exact one: root mean\n"
		"square over layers, heads and queries. Times are reckoned from rows, at rates in ns: a request; a row and KV\n"
		"head attended densely, looked at, read; a hash bit of a query.\n"
		"All is measured on forks of the context, which are dropped again; of the context itself, rows that are not "
		"sealed\n"
		"are (a fork does that), and no more. With the same seed, queries and rates the profile is the same to the "
		"byte.\n",
	.run = run,
};
