#include "config/options.h"

#include <assert.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config/value.h"

#define AT(member) offsetof(struct options, member), sizeof(((struct options *)0)->member)

// The table. Rows of a section stay together.
static const struct option table[] = {
	{"daemon", "instance", OPTION_NAME, AT(daemon.instance), "default", 0, 0, false,
         "Name of this daemon: in its log, its statistics file and its pool's default directory."},
	{"daemon", "socket", OPTION_PATH, AT(daemon.socket), "", 0, 0, false,
         "Control socket. Empty: $XDG_RUNTIME_DIR/magicpig/magicpigd.sock, or /run/magicpig/magicpigd.sock for root."},
	{"daemon", "socket_mode", OPTION_MODE, AT(daemon.socket_mode), "0660", 0, 0777, false,
         "Permissions of the socket: who may connect."},
	{"daemon", "socket_group", OPTION_NAME, AT(daemon.socket_group), "", 0, 0, false,
         "Group of the socket and of the statistics file. Empty: the daemon's."},
	{"daemon", "admin_group", OPTION_NAME, AT(daemon.admin_group), "", 0, 0, true,
         "Group whose members may do what root may: all contexts, reload, limits. Root and the daemon's user always may."},
	{"daemon", "log_level", OPTION_LEVEL, AT(daemon.log_level), "info", 0, 0, true, "Least important lines that are logged."},
	{"daemon", "stats", OPTION_PATH_OR_NONE, AT(daemon.stats), "", 0, 0, false,
         "Statistics file. Empty: INSTANCE.stats beside the socket; none: no file."},
	{"daemon", "profiles", OPTION_PATH, AT(daemon.profiles), "", 0, 0, false,
         "Directory of the profiles that magicpigctl tune makes. Empty: profiles in the service's state directory, else "
         "INSTANCE.profiles "
         "beside the socket."},
	{"pool", "dir", OPTION_PATH, AT(pool.dir), "", 0, 0, false,
         "Directory of the pool, on tmpfs or hugetlbfs. Empty: /dev/shm/magicpig-INSTANCE."},
	{"pool", "size", OPTION_SIZE, AT(pool.size), "0", 0, (double)(UINT64_C(1) << 50), false,
         "Memory for contexts. 0: half of what is available at start."},
	{"pool", "lock_memory", OPTION_BOOL, AT(pool.lock_memory), "no", 0, 0, false,
         "Keep the pool from being swapped out (needs RLIMIT_MEMLOCK)."},
	{"pool", "huge_pages", OPTION_BOOL, AT(pool.huge_pages), "yes", 0, 0, false,
         "Ask for 2 MiB pages where the kernel can give them."},
	{"pool", "ready", OPTION_SIZE, AT(pool.ready), "0", 0, (double)(UINT64_C(1) << 50), false,
         "Free memory that is kept allocated, so that a prefill need not wait for the kernel's pages. On tmpfs; 0: none."},
	{"pool", "restart", OPTION_RESTART, AT(pool.restart), "attach", 0, 0, false,
         "What becomes of a pool that an earlier daemon left: attach serves its contexts again, fresh discards them."},
	{"pool", "keep", OPTION_BOOL, AT(pool.keep), "yes", 0, 0, false,
         "Leave the pool in place at a clean stop, for the next start. It holds its memory until then."},
	{"pool", "verify", OPTION_VERIFY, AT(pool.verify), "header", 0, 0, false,
         "What attaching reads: none, records only; header, index parameters too; full, all rows and indexes."},
	{"workers", "count", OPTION_COUNT, AT(workers.count), "0", 0, 256, false, "Worker threads. 0: one per CPU in cpus."},
	{"workers", "cpus", OPTION_CPUS, AT(workers.cpus), "", 0, 0, false,
         "CPUs the workers are pinned to. Empty: one per core, with the first core left to the clients."},
	{"workers", "spin_us", OPTION_DURATION, AT(workers.spin_ns), "200us", 0, 1e10, true,
         "How long a worker looks for more work before it sleeps."},
	{"workers", "awake_max", OPTION_DURATION, AT(workers.awake_ns), "1s", 0, 6e10, false,
         "Longest time for which a client may ask, once, that workers do not sleep (mpig_awake). 0: it may not."},
	{"workers", "look_us", OPTION_DURATION, AT(workers.look_ns), "1ms", 0, 1e10, false,
         "How often a sleeping worker looks at a queue whose writer, a GPU, cannot wake it. 0: never."},
	{"workers", "prefetch", OPTION_SHARE, AT(workers.prefetch), "0.75", 0, 64, true,
         "How much of what the next layer's request will look at a worker fetches while it waits for it, as a share of the "
         "second-level "
         "cache that it has. 0: nothing."},
	{"engine", "error_target", OPTION_SHARE, AT(engine.error_target), "0.055", 0, 1, false,
         "Deviation of the mass that rows are chosen for where neither request nor layer names a share. 0: default_budget."},
	{"engine", "budget_floor", OPTION_SHARE, AT(engine.budget_floor), "0.005", 1e-6, 1, false,
         "Least share of rows under an error target; beyond 96K rows it falls as 1/sqrt(rows)."},
	{"engine", "budget_cap", OPTION_SHARE, AT(engine.budget_cap), "0.08", 1e-6, 1, false,
         "Greatest share of rows under an error target."},
	{"engine", "default_budget", OPTION_SHARE, AT(engine.default_budget), "0.01", 1e-6, 1, false,
         "Share of rows of what no error target can steer (topk, heavy_uniform, uniform, ...), where neither request nor layer "
         "says."},
	{"engine", "reindex_drift", OPTION_SHARE, AT(engine.reindex_drift), "0.5", 0, 100, true,
         "A context gets a new index by itself when its logits' noise has so much more variance than a new one would give, as a "
         "share of that. 0: never."},
	{"engine", "upper_rows", OPTION_COUNT, AT(engine.upper_rows), "524288", 0, 4e9, false,
         "Rows from which a request goes through upper layers over the signature codes; sealed segments that reach a quarter of "
         "it "
         "get one, 7 % more memory. 0: none do."},
	{"engine", "cpu_mask", OPTION_NAME, AT(engine.cpu_mask), "", 0, 0, false,
         "Instruction sets allowed, e.g. c or avx2 or all. Empty: $MAGICPIG_CPU_MASK, else all."},
	{"limits", "bytes_per_uid", OPTION_SIZE, AT(limits.bytes_per_uid), "0", 0, (double)(UINT64_C(1) << 50), true,
         "Pool bytes one user may hold. 0: no limit."},
	{"limits", "bytes_per_gid", OPTION_SIZE, AT(limits.bytes_per_gid), "0", 0, (double)(UINT64_C(1) << 50), true,
         "Pool bytes the contexts of one group may hold. 0: no limit."},
	{"limits", "contexts_per_uid", OPTION_COUNT, AT(limits.contexts_per_uid), "0", 0, 1e9, true,
         "Contexts one user may own. 0: no limit."},
	{"limits", "contexts_per_gid", OPTION_COUNT, AT(limits.contexts_per_gid), "0", 0, 1e9, true,
         "Contexts that may belong to one group. 0: no limit."},
	{"limits", "clients_per_uid", OPTION_COUNT, AT(limits.clients_per_uid), "64", 1, 1024, true, "Connections of one user."},
	{"limits", "clients_per_gid", OPTION_COUNT, AT(limits.clients_per_gid), "0", 0, 1024, true,
         "Connections from processes of one group. 0: no limit."},
	{"limits", "queues_per_uid", OPTION_COUNT, AT(limits.queues_per_uid), "256", 1, 1024, true, "Queues of one user."},
	{"limits", "queues_per_gid", OPTION_COUNT, AT(limits.queues_per_gid), "0", 0, 1024, true,
         "Queues of processes of one group. 0: no limit."},
	{"limits", "region_bytes_per_uid", OPTION_SIZE, AT(limits.region_bytes_per_uid), "4G", 4096, (double)(UINT64_C(1) << 40),
         true,
         "Memory that one user's queues and recordings share with the daemon, what is left of them included; it counts as the "
         "daemon's."},
	{"limits", "region_keep", OPTION_DURATION, AT(limits.region_keep_ns), "60s", 0, 3.6e12, true,
         "How long memory shared with a process that lives is kept after its connection's end (kill-client, an error), for it to "
         "come back "
         "to; it counts as its user's."},
	{"limits", "requests_per_uid", OPTION_COUNT, AT(limits.requests_per_uid), "0", 0, 1e9, true,
         "Requests a second on all queues of one user; more wait for their turn. 0: no limit."},
	{"limits", "requests_per_gid", OPTION_COUNT, AT(limits.requests_per_gid), "0", 0, 1e9, true,
         "The same for all processes of one group. 0: no limit."},
	{"limits", "attend_max_tokens", OPTION_COUNT, AT(limits.attend_max_tokens), "4096", 1, 4096, true,
         "Query tokens of one request, on queues made from now on."},
	{"disk", "dir", OPTION_PATH, AT(disk.dir), "", 0, 0, false,
         "Directory where contexts are saved, on a file system with hard links. Empty: nothing is kept on disk."},
	{"disk", "queue_depth", OPTION_COUNT, AT(disk.queue_depth), "8", 1, 64, false, "Reads or writes in flight."},
	{"disk", "chunk", OPTION_SIZE, AT(disk.chunk), "1M", 1 << 20, 1 << 26, false,
         "Bytes of one read or write, in whole pages of 4096; a save or load takes queue_depth times as much memory."},
	{"disk", "rate", OPTION_SIZE, AT(disk.rate), "0", 0, (double)(UINT64_C(1) << 50), true,
         "Bytes a second that saving and loading may take. 0: no limit."},
	{"disk", "persist", OPTION_PERSIST, AT(disk.persist), "none", 0, 0, true,
         "What is saved unasked: none; shutdown, all at a clean stop; idle, also what nobody used for disk.idle; commit, also "
         "what was committed. Contexts may have a policy of their own."},
	{"disk", "idle", OPTION_DURATION, AT(disk.idle_ns), "60s", 0, 1e14, true, "When persist = idle."},
	{"disk", "load_on_open", OPTION_BOOL, AT(disk.load_on_open), "yes", 0, 0, true,
         "Whether opening a context that is on disk only brings it back."},
	{"disk", "evict_high", OPTION_SHARE, AT(disk.evict_high), "1", 0.01, 1, true,
         "Share of the pool in use above which contexts that are on disk and not open leave memory. 1: they never do."},
	{"disk", "evict_low", OPTION_SHARE, AT(disk.evict_low), "0.8", 0.01, 1, true, "Share of the pool down to which they do."},
};
#define OPTIONS (sizeof table / sizeof table[0])

static void *value_of(struct options *o, const struct option *option)
{
	return (char *)o + option->offset;
}

static const void *value_in(const struct options *o, const struct option *option)
{
	return (const char *)o + option->offset;
}

void options_defaults(struct options *o)
{
	memset(o, 0, sizeof *o);
	for (size_t i = 0; i < OPTIONS; i++) {
		char what[OPTION_TEXT_BYTES];
		if (!option_parse(&table[i], table[i].fallback, value_of(o, &table[i]), what))
			abort(); // a default that is not allowed is an error in the table above
	}
}

static const struct option *find(const char *section, const char *key, bool *section_known)
{
	*section_known = false;
	for (size_t i = 0; i < OPTIONS; i++) {
		if (strcmp(table[i].section, section) != 0)
			continue;
		*section_known = true;
		if (strcmp(table[i].key, key) == 0)
			return &table[i];
	}
	return NULL;
}

static void list_names(const char *section, char *text, size_t bytes)
{
	size_t used = 0;
	text[0] = '\0';
	const char *last = "";
	for (size_t i = 0; i < OPTIONS; i++) {
		if (section ? strcmp(table[i].section, section) != 0 : strcmp(table[i].section, last) == 0)
			continue;
		last = table[i].section;
		int n = snprintf(text + used, bytes - used, "%s%s", used ? ", " : "", section ? table[i].key : table[i].section);
		if (n < 0 || (size_t)n >= bytes - used)
			return;
		used += (size_t)n;
	}
}

int options_set(struct options *o, const char *where, const char *section, const char *key, const char *value, char *why)
{
	bool section_known;
	char problem[OPTIONS_WHY_BYTES / 2];
	if (override_section(section)) {
		if (override_set(&o->overrides, section, key, value, problem, sizeof problem))
			return 0;
		snprintf(why, OPTIONS_WHY_BYTES, "%s: %s", where, problem);
		return -1;
	}
	const struct option *option = find(section, key, &section_known);
	if (!option) {
		char names[OPTION_TEXT_BYTES];
		list_names(section_known ? section : NULL, names, sizeof names);
		if (section_known)
			snprintf(why, OPTIONS_WHY_BYTES, "%s: unknown key '%.64s' in [%s]; allowed: %s", where, key, section,
			         names);
		else
			snprintf(why, OPTIONS_WHY_BYTES, "%s: unknown section [%.64s] (key '%.64s'); allowed: %s", where, section,
			         key, names);
		return -1;
	}
	char what[OPTION_TEXT_BYTES];
	if (!option_parse(option, value, value_of(o, option), what)) {
		snprintf(why, OPTIONS_WHY_BYTES, "%s: %s.%s = %.64s: %s", where, section, key, value, what);
		return -1;
	}
	return 0;
}

// "section.key=value" into the first two; where the value begins, or NULL.
static const char *split(const char *assignment, char section[OPTIONS_NAME_BYTES], char key[OPTIONS_NAME_BYTES])
{
	const char *equals = strchr(assignment, '=');
	// A user's name may have a dot, a key has none.
	const char *dot = equals && override_section(assignment) ? memrchr(assignment, '.', (size_t)(equals - assignment))
	                                                         : strchr(assignment, '.');
	if (!dot || !equals || dot > equals || dot == assignment || equals == dot + 1 || dot - assignment >= OPTIONS_NAME_BYTES ||
	    equals - dot > OPTIONS_NAME_BYTES)
		return NULL;
	snprintf(section, OPTIONS_NAME_BYTES, "%.*s", (int)(dot - assignment), assignment);
	snprintf(key, OPTIONS_NAME_BYTES, "%.*s", (int)(equals - dot - 1), dot + 1);
	return equals + 1;
}

int options_assign(struct options *o, const char *where, const char *assignment, char *why)
{
	char section[OPTIONS_NAME_BYTES], key[OPTIONS_NAME_BYTES];
	const char *value = split(assignment, section, key);
	if (value)
		return options_set(o, where, section, key, value, why);
	snprintf(why, OPTIONS_WHY_BYTES, "%s: '%.64s' is not section.key=value", where, assignment);
	return -1;
}

int options_set_text(struct options *o, const char *assignment, char *why)
{
	return options_assign(o, "command line", assignment, why);
}

// ---- the file --------------------------------------------------------------------------------------------------------
struct reading {
	struct options *options;
	FILE *stream;
	const char *name;
	char *why;
	unsigned line;
	bool failed;
	void (*tell)(void *arg, const char *why); // not NULL: of each error, and then go on
	void *tell_arg;
	unsigned told;
};

// One line for inih, without leading blanks (inih would take an indented line for a continuation of the value before).
static char *read_line(char *line, int bytes, void *arg)
{
	struct reading *r = arg;
	if (r->failed || bytes < 2 || !fgets(line, bytes, r->stream))
		return NULL;
	r->line++;
	size_t n = strlen(line);
	if (n + 1 == (size_t)bytes && line[n - 1] != '\n' && !feof(r->stream)) {
		snprintf(r->why, OPTIONS_WHY_BYTES, "%s:%u: line longer than %d bytes", r->name, r->line, bytes - 2);
		r->failed = true; // the rest of the line would be taken for another one
		return NULL;
	}
	size_t blank = strspn(line, " \t");
	memmove(line, line + blank, n - blank + 1);
	return line;
}

static int set_line(void *arg, const char *section, const char *key, const char *value)
{
	struct reading *r = arg;
	char where[OPTIONS_PATH_BYTES + 16];
	snprintf(where, sizeof where, "%s:%u", r->name, r->line);
	if (r->failed || options_set(r->options, where, section, key, value, r->why) == 0)
		return !r->failed;
	if (!r->tell) {
		r->failed = true;
		return 0;
	}
	r->tell(r->tell_arg, r->why);
	r->told++;
	return 1;
}

static int read_all(struct reading *r)
{
	int line = ini_parse_stream(read_line, r, set_line, r);
	// inih goes on after a line it does not understand: the first fault in the file is the one to name.
	if (line > 0 && (!r->failed || (unsigned)line < r->line)) {
		snprintf(r->why, OPTIONS_WHY_BYTES, "%s:%d: neither [section] nor key = value", r->name, line);
		return -1;
	}
	if (r->failed)
		return -1;
	if (ferror(r->stream)) {
		snprintf(r->why, OPTIONS_WHY_BYTES, "%s: cannot read it: %m", r->name);
		return -1;
	}
	return 0;
}

int options_read_stream(struct options *o, FILE *stream, const char *name, char *why)
{
	struct reading r = {.options = o, .stream = stream, .name = name, .why = why};
	return read_all(&r);
}

unsigned options_test_file(const char *path, void (*tell)(void *arg, const char *why), void *arg)
{
	struct options o;
	char why[OPTIONS_WHY_BYTES];
	FILE *stream = fopen(path, "re");
	if (!stream) {
		snprintf(why, sizeof why, "%s: cannot open the configuration: %m", path);
		tell(arg, why);
		return 1;
	}
	options_defaults(&o);
	struct reading r = {.options = &o, .stream = stream, .name = path, .why = why, .tell = tell, .tell_arg = arg};
	int status = read_all(&r);
	fclose(stream);
	char where[OPTIONS_WHY_BYTES + OPTIONS_PATH_BYTES];
	if (status == 0 && options_check(&o, why) != 0) {
		snprintf(where, sizeof where, "%s: %s", path, why);
		tell(arg, where);
		r.told++;
	} else if (status != 0) {
		tell(arg, why);
		r.told++;
	}
	return r.told;
}

int options_read_file(struct options *o, const char *path, char *why)
{
	FILE *stream = fopen(path, "re");
	if (!stream) {
		snprintf(why, OPTIONS_WHY_BYTES, "%s: cannot open the configuration: %m", path);
		return -1;
	}
	snprintf(o->config_file, sizeof o->config_file, "%s", path);
	int status = options_read_stream(o, stream, path, why);
	fclose(stream);
	return status;
}

// ---- what depends on other options -----------------------------------------------------------------------------------
static int resolve_socket(struct options *o, char *why)
{
	if (o->daemon.socket[0])
		return 0;
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n;
	if (geteuid() == 0)
		n = snprintf(o->daemon.socket, sizeof o->daemon.socket, "/run/magicpig/magicpigd.sock");
	else if (runtime && runtime[0] == '/')
		n = snprintf(o->daemon.socket, sizeof o->daemon.socket, "%s/magicpig/magicpigd.sock", runtime);
	else {
		snprintf(why, OPTIONS_WHY_BYTES,
		         "no place for the control socket: XDG_RUNTIME_DIR is not set; set it, or give daemon.socket");
		return -1;
	}
	if (n < 0 || (size_t)n >= sizeof o->daemon.socket) {
		snprintf(why, OPTIONS_WHY_BYTES,
		         "XDG_RUNTIME_DIR is too long for a socket (at most %zu bytes in all); give daemon.socket",
		         sizeof o->daemon.socket - 1);
		return -1;
	}
	return 0;
}

static int resolve_stats(struct options *o, char *why)
{
	if (o->daemon.stats[0])
		return 0;
	const char *slash = strrchr(o->daemon.socket, '/');
	int dir = slash ? (int)(slash - o->daemon.socket) + 1 : 0;
	int n = snprintf(o->daemon.stats, sizeof o->daemon.stats, "%.*s%s.stats", dir, o->daemon.socket, o->daemon.instance);
	if (n < 0 || (size_t)n >= sizeof o->daemon.stats) {
		snprintf(why, OPTIONS_WHY_BYTES, "the path of the statistics file is too long; give daemon.stats");
		return -1;
	}
	return 0;
}

static int resolve_profiles(struct options *o, char *why)
{
	if (o->daemon.profiles[0])
		return 0;
	const char *state = getenv("STATE_DIRECTORY"); // of systemd; several are separated by colons
	const char *slash = strrchr(o->daemon.socket, '/');
	int dir = slash ? (int)(slash - o->daemon.socket) + 1 : 0, n;
	if (state && state[0] == '/')
		n = snprintf(o->daemon.profiles, sizeof o->daemon.profiles, "%.*s/profiles", (int)strcspn(state, ":"), state);
	else
		n = snprintf(o->daemon.profiles, sizeof o->daemon.profiles, "%.*s%s.profiles", dir, o->daemon.socket,
		             o->daemon.instance);
	if (n < 0 || (size_t)n >= sizeof o->daemon.profiles) {
		snprintf(why, OPTIONS_WHY_BYTES, "the path of the directory of profiles is too long; give daemon.profiles");
		return -1;
	}
	return 0;
}

int options_check(const struct options *o, char *why)
{
	if (o->engine.budget_floor > o->engine.budget_cap) {
		snprintf(why, OPTIONS_WHY_BYTES,
		         "engine.budget_floor = %g is above engine.budget_cap = %g; lower the one or raise the other",
		         (double)o->engine.budget_floor, (double)o->engine.budget_cap);
		return -1;
	}
	if (o->disk.evict_low > o->disk.evict_high) {
		snprintf(why, OPTIONS_WHY_BYTES,
		         "disk.evict_low = %g is above disk.evict_high = %g; lower the one or raise the other",
		         (double)o->disk.evict_low, (double)o->disk.evict_high);
		return -1;
	}
	return 0;
}

int options_resolve(struct options *o, char *why)
{
	if (!o->daemon.instance[0]) {
		snprintf(why, OPTIONS_WHY_BYTES, "daemon.instance is empty; give the daemon a name");
		return -1;
	}
	if (resolve_socket(o, why) != 0 || resolve_stats(o, why) != 0 || resolve_profiles(o, why) != 0)
		return -1;
	if (options_check(o, why) != 0)
		return -1;
	o->disk.chunk = o->disk.chunk / 4096 * 4096;
	if (!o->pool.dir[0])
		snprintf(o->pool.dir, sizeof o->pool.dir, "/dev/shm/magicpig-%s", o->daemon.instance);
	const char *mask = getenv("MAGICPIG_CPU_MASK");
	if (!o->engine.cpu_mask[0])
		snprintf(o->engine.cpu_mask, sizeof o->engine.cpu_mask, "%s", mask && *mask ? mask : "all");
	return 0;
}

// ---- printing --------------------------------------------------------------------------------------------------------
size_t options_format(const struct options *o, char *text, size_t bytes)
{
	size_t used = 0;
	if (bytes)
		text[0] = '\0';
	for (size_t i = 0; i < OPTIONS; i++) {
		char value[OPTION_TEXT_BYTES];
		option_format(&table[i], value_in(o, &table[i]), value, sizeof value);
		size_t room = used < bytes ? bytes - used : 0;
		int n = snprintf(room ? text + used : NULL, room, "%s.%s = %s\n", table[i].section, table[i].key, value);
		used += n < 0 ? 0 : (size_t)n;
	}
	char name[OPTION_TEXT_BYTES], value[OPTION_TEXT_BYTES];
	for (size_t i = 0; override_view(&o->overrides, i, name, sizeof name, value, sizeof value); i++) {
		size_t room = used < bytes ? bytes - used : 0;
		int n = snprintf(room ? text + used : NULL, room, "%s = %s\n", name, value);
		used += n < 0 ? 0 : (size_t)n;
	}
	return used;
}

bool options_view(const struct options *o, size_t index, struct option_view *view)
{
	if (index >= OPTIONS)
		return false;
	const struct option *option = &table[index];
	static_assert(sizeof view->value == OPTION_TEXT_BYTES && sizeof view->allowed == OPTION_TEXT_BYTES, "the same texts");
	*view = (struct option_view){.section = option->section,
	                             .key = option->key,
	                             .fallback = option->fallback,
	                             .help = option->help,
	                             .live = option->live};
	option_describe(option, view->allowed, sizeof view->allowed);
	option_format(option, value_in(o, option), view->value, sizeof view->value);
	return true;
}

void options_print_sample(FILE *out)
{
	fprintf(out, "# magicpigd.conf: every option with its default. This file is the output of `magicpigd --print-config`.\n");
	fprintf(out, "# Sizes take K, M, G, T (powers of 1024); durations us, ms, s. The command line's --section.key=value "
	             "comes after this file.\n");
	const char *last = "";
	for (size_t i = 0; i < OPTIONS; i++) {
		char allowed[OPTION_TEXT_BYTES];
		option_describe(&table[i], allowed, sizeof allowed);
		if (strcmp(last, table[i].section) != 0)
			fprintf(out, "\n[%s]\n", table[i].section);
		last = table[i].section;
		if (strcmp(table[i].section, "limits") == 0 && strcmp(table[i].key, "bytes_per_uid") == 0)
			fprintf(out, "# One user or group can have its own instead, by name or number, in a section of its own:\n"
			             "#   [limits user alice]\n#   bytes = 64G\n#   [limits group interns]\n#   requests = 2000\n"
			             "# Keys: bytes, contexts, clients, queues, requests. 0: no limit.\n");
		fprintf(out, "# %s\n# %s%s\n#%s = %s\n", table[i].help, allowed,
		        table[i].live ? "; can change while running (SIGHUP)" : "", table[i].key, table[i].fallback);
	}
}

void options_print_help(FILE *out)
{
	for (size_t i = 0; i < OPTIONS; i++) {
		char name[64], allowed[OPTION_TEXT_BYTES];
		snprintf(name, sizeof name, "--%s.%s=%s", table[i].section, table[i].key, table[i].fallback);
		option_describe(&table[i], allowed, sizeof allowed);
		fprintf(out, "  %-38s %s\n  %-38s (%s)\n", name, table[i].help, "", allowed);
	}
}

// ---- changing --------------------------------------------------------------------------------------------------------
static bool differs(const struct options *a, const struct options *b, const struct option *option)
{
	return memcmp(value_in(a, option), value_in(b, option), option->bytes) != 0;
}

// What `set` has of the option of that name, or "not set".
static void override_value(const struct overrides *set, const char *wanted, char value[OPTION_TEXT_BYTES])
{
	char name[OPTION_TEXT_BYTES];
	for (size_t i = 0; override_view(set, i, name, sizeof name, value, OPTION_TEXT_BYTES); i++)
		if (strcmp(name, wanted) == 0)
			return;
	strcpy(value, "not set");
}

// Lines for what one set has and the other has not, or otherwise. `gone`: those that are only in the old one.
static size_t override_differences(const struct overrides *old, const struct overrides *fresh, bool gone, char *text,
                                   size_t bytes)
{
	char name[OPTION_TEXT_BYTES], has[OPTION_TEXT_BYTES], other[OPTION_TEXT_BYTES];
	size_t used = 0;
	for (size_t i = 0; override_view(gone ? old : fresh, i, name, sizeof name, has, sizeof has); i++) {
		override_value(gone ? fresh : old, name, other);
		if (strcmp(has, other) == 0 || (gone && strcmp(other, "not set") != 0))
			continue;
		int n = snprintf(text + used, bytes - used, "%s = %s (was %s)\n", name, gone ? other : has, gone ? has : other);
		if (n < 0 || (size_t)n >= bytes - used) {
			text[used] = '\0';
			return used;
		}
		used += (size_t)n;
	}
	return used;
}

void options_differences(const struct options *old, const struct options *fresh, char *text, size_t bytes)
{
	size_t used = 0;
	text[0] = '\0';
	for (size_t i = 0; i < OPTIONS; i++) {
		char was[OPTION_TEXT_BYTES], is[OPTION_TEXT_BYTES];
		if (!differs(old, fresh, &table[i]))
			continue;
		option_format(&table[i], value_in(old, &table[i]), was, sizeof was);
		option_format(&table[i], value_in(fresh, &table[i]), is, sizeof is);
		int n = snprintf(text + used, bytes - used, "%s%s.%s = %s (was %s)\n",
		                 table[i].live ? "" : "needs a restart: ", table[i].section, table[i].key, is, was);
		if (n < 0 || (size_t)n >= bytes - used) {
			text[used] = '\0';
			return;
		}
		used += (size_t)n;
	}
	used += override_differences(&old->overrides, &fresh->overrides, false, text + used, bytes - used);
	override_differences(&old->overrides, &fresh->overrides, true, text + used, bytes - used);
}

void options_take_live(struct options *to, const struct options *from)
{
	to->overrides = from->overrides;
	for (size_t i = 0; i < OPTIONS; i++)
		if (table[i].live)
			memcpy(value_of(to, &table[i]), value_in(from, &table[i]), table[i].bytes);
}

bool options_text_is_live(const char *assignment)
{
	char section[OPTIONS_NAME_BYTES], key[OPTIONS_NAME_BYTES];
	bool known;
	if (!split(assignment, section, key))
		return false;
	const struct option *option = find(section, key, &known);
	return override_section(section) || (option && option->live);
}
