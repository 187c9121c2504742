// The daemon's configuration: one table (options.c) says for every option its section, key, type, default, limits and help. The
// INI parser, --help, --print-config, --set, CONFIG_GET and the sample file are all made from it.
//
// Values as text:
//   size      bytes, or with K, M, G or T (powers of 1024); 0 where the help says what 0 means
//   duration  a number with us, ms or s; a bare number is microseconds
//   share     a decimal fraction
//   list      CPUs, "0-3,6"
//   mode      octal permission bits
//   bool      yes/no, true/false, on/off, 1/0
#ifndef MPIG_CONFIG_OPTIONS_H
#define MPIG_CONFIG_OPTIONS_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "config/overrides.h"

#define OPTIONS_PATH_BYTES 256
#define OPTIONS_SOCKET_BYTES 108 // sun_path
#define OPTIONS_NAME_BYTES 64
#define OPTIONS_WHY_BYTES 512

enum option_restart { RESTART_ATTACH, RESTART_FRESH };
enum option_persist { PERSIST_NONE, PERSIST_SHUTDOWN, PERSIST_IDLE, PERSIST_COMMIT };
enum option_verify { OPTION_VERIFY_NONE, OPTION_VERIFY_HEADER, OPTION_VERIFY_FULL };

struct options {
	struct {
		char instance[OPTIONS_NAME_BYTES];
		char socket[OPTIONS_SOCKET_BYTES]; // "" until options_resolve
		uint32_t socket_mode;
		char socket_group[OPTIONS_NAME_BYTES]; // "" = the process's
		int log_level;                         // enum log_level
		char admin_group[OPTIONS_NAME_BYTES];  // "" = none
		char stats[OPTIONS_PATH_BYTES];        // "" until options_resolve; "none"
		char profiles[OPTIONS_PATH_BYTES];     // "" until options_resolve
	} daemon;
	struct {
		char dir[OPTIONS_PATH_BYTES]; // "" until options_resolve
		uint64_t size;                // bytes; 0 = half of MemAvailable
		bool lock_memory, huge_pages;
		uint64_t ready;
		int restart; // enum option_restart
		bool keep;
		int verify; // enum option_verify
	} pool;
	struct {
		uint32_t count; // 0 = one per CPU of `cpus`
		cpu_set_t cpus; // empty = one per core, the first core left to the clients
		uint64_t spin_ns, awake_ns, look_ns;
		float prefetch; // share of its L2 cache; 0: no reading ahead
	} workers;
	struct {
		float error_target, budget_floor, budget_cap, default_budget, reindex_drift;
		uint32_t upper_rows; // 0: no upper layers
		char cpu_mask[OPTIONS_NAME_BYTES];
	} engine;
	struct {
		uint64_t bytes_per_uid, bytes_per_gid;
		uint32_t contexts_per_uid, contexts_per_gid, clients_per_uid, clients_per_gid, queues_per_uid, queues_per_gid;
		uint64_t region_bytes_per_uid, region_keep_ns;
		uint32_t requests_per_uid, requests_per_gid; // a second
		uint32_t attend_max_tokens;
	} limits;
	struct {
		char dir[OPTIONS_PATH_BYTES]; // "" = nothing is kept on disk
		uint32_t queue_depth;
		uint64_t chunk, rate;
		int persist; // enum option_persist
		uint64_t idle_ns;
		bool load_on_open;
		float evict_high, evict_low;
	} disk;
	struct overrides overrides;           // of limits
	char config_file[OPTIONS_PATH_BYTES]; // as given; "" without one
};

// Every option at its default.
void options_defaults(struct options *o);
// Reads an INI file over what is in *o. 0 or -1; `why` (OPTIONS_WHY_BYTES) then says "FILE:LINE: section.key = value: what is
// allowed".
int options_read_file(struct options *o, const char *path, char *why);
int options_read_stream(struct options *o, FILE *stream, const char *name, char *why);
// Reads the file as a daemon would, but goes on after errors and tells each of them. How many there were.
unsigned options_test_file(const char *path, void (*tell)(void *arg, const char *why), void *arg);
// One option: "section.key=value" (as on the command line), or its parts. `where` begins the error text.
int options_set_text(struct options *o, const char *assignment, char *why);
int options_assign(struct options *o, const char *where, const char *assignment, char *why);
int options_set(struct options *o, const char *where, const char *section, const char *key, const char *value, char *why);
// Options that are allowed alone but not together: 0, or -1 and why.
int options_check(const struct options *o, char *why);
// Fills in what depends on other options and on the environment: socket, statistics file, pool directory, CPU mask. -1: see why.
int options_resolve(struct options *o, char *why);

// The table, for those who show it.
struct option_view {
	const char *section, *key, *fallback, *help;
	char allowed[256], value[256]; // what may be given; what *o has
	bool live;                     // can change while the daemon runs
};
bool options_view(const struct options *o, size_t index, struct option_view *view); // false behind the last

// Values in force as "section.key = value\n" lines. Returns the length needed without the zero; writes at most `bytes`,
// terminated.
size_t options_format(const struct options *o, char *text, size_t bytes);
// The sample file: every option with its help, type, limits and default, commented out.
void options_print_sample(FILE *out);
// The same as a table for --help.
void options_print_help(FILE *out);
// What differs between two sets, a line each: "section.key = new (was old)\n", after "needs a restart: " where the option cannot change
// while the daemon runs. Terminated, cut off after a whole line.
void options_differences(const struct options *old, const struct options *fresh, char *text, size_t bytes);
// Copies the options that can change while the daemon runs.
void options_take_live(struct options *to, const struct options *from);
bool options_text_is_live(const char *assignment); // of "section.key=value"; false for what is unknown

#endif
