// The daemon's log: one line per event on stderr. Where stderr is the journal (it is the file that $JOURNAL_STREAM names) lines
// begin with sd-daemon(3) priorities "<3>".."<7>"; otherwise with a local timestamp and the level's name. Only the program logs;
// what libraries below it know is returned. Any thread.
#ifndef MPIG_BASE_LOG_H
#define MPIG_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR = 0, LOG_LEVEL_WARN = 1, LOG_LEVEL_INFO = 2, LOG_LEVEL_DEBUG = 3 };
extern const char *const log_level_names[4]; // "error", "warn", "info", "debug"

// Decides the line format from the environment. Before it is called, lines carry timestamps and the level is info.
void log_init(enum log_level level);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

// One line; a newline at the end is added. Control characters in the text are written as '?', so that a name chosen by a client
// cannot forge a line.
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Lines that somebody may want to find or to be told of: in the journal they carry MESSAGE_ID (systemd/magicpigd.catalog explains
// each to the administrator).
enum log_event {
	LOG_EVENT_READY,
	LOG_EVENT_STOPPING,
	LOG_EVENT_STOPPED,
	LOG_EVENT_RELOADED,
	LOG_EVENT_RELOAD_REFUSED,
	LOG_EVENT_DAMAGED, // rows, an index or a file that do not have their checksum
	LOG_EVENT_NOT_SAVED,
	LOG_EVENT_STUCK, // a worker
	LOG_EVENTS
};
extern const char *const log_event_ids[LOG_EVENTS]; // 32 hexadecimal digits
void log_event(enum log_event event, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
// Who writes an event to the journal with its id; false: it could not, and the event becomes an ordinary line. NULL: nobody.
typedef bool log_journal_fn(enum log_level level, const char *message_id, const char *text);
void log_set_journal(log_journal_fn *fn);

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

// For lines that a client can cause: `burst` lines in each window of `window_ns`; what was left out is counted and told with the
// next line that passes.
struct log_limit {
	uint64_t window_ns;
	uint32_t burst;
	_Atomic uint64_t window_start;
	atomic_uint used, left_out;
};
#define LOG_LIMIT_INIT                                                                                                           \
	{                                                                                                                        \
		.window_ns = UINT64_C(10000000000), .burst = 10                                                                  \
	}
// True if a line may be written now; *left_out is how many were not since the last one that was.
bool log_limit_pass(struct log_limit *limit, uint64_t now_ns, uint32_t *left_out);
void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
