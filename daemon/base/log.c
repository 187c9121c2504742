#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"

#define LINE_BYTES 1024

const char *const log_level_names[4] = {"error", "warn", "info", "debug"};
static const char *const priorities[4] = {"<3>", "<4>", "<6>", "<7>"};

static atomic_int current_level = LOG_LEVEL_INFO;
static atomic_bool journal;
static log_journal_fn *_Atomic journal_fn;

// Drawn once, never changed: people filter by them.
const char *const log_event_ids[LOG_EVENTS] = {
	[LOG_EVENT_READY] = "62fef7830b46469aac18524651887dbc",
	[LOG_EVENT_STOPPING] = "b84e98016f0540bda5e48342cd3e5908",
	[LOG_EVENT_STOPPED] = "47fec70e85624ff1a9937300439c0d50",
	[LOG_EVENT_RELOADED] = "9aa4083a9a4e46d988a69ddf68f71d79",
	[LOG_EVENT_RELOAD_REFUSED] = "704c75f121b3458ea1c7b4a2efea8f6c",
	[LOG_EVENT_DAMAGED] = "49f800b524bb4e93aab364027b2e5204",
	[LOG_EVENT_NOT_SAVED] = "34769bfe74f743e0a8bcefe90191613b",
	[LOG_EVENT_STUCK] = "c627990c260a47cf84efcd687302f2e8",
};

// The variable is inherited by whatever a service starts; only the file's identity says that stderr still is the journal.
static bool stderr_is_the_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;
	int end = 0;
	return stream && sscanf(stream, "%llu:%llu%n", &device, &inode, &end) == 2 && !stream[end] &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

void log_init(enum log_level level)
{
	atomic_store_explicit(&journal, stderr_is_the_journal(), memory_order_relaxed);
	log_set_level(level);
}

void log_set_journal(log_journal_fn *fn)
{
	atomic_store_explicit(&journal_fn, fn, memory_order_relaxed);
}

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return (enum log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

static size_t put_prefix(enum log_level level, char *line, size_t bytes)
{
	if (atomic_load_explicit(&journal, memory_order_relaxed))
		return (size_t)snprintf(line, bytes, "%s", priorities[level]);
	uint64_t now = real_ns();
	time_t seconds = (time_t)(now / UINT64_C(1000000000));
	struct tm tm;
	localtime_r(&seconds, &tm);
	size_t n = strftime(line, bytes, "%Y-%m-%d %H:%M:%S", &tm);
	return n + (size_t)snprintf(line + n, bytes - n, ".%03u %-5s ", (unsigned)(now / 1000000 % 1000), log_level_names[level]);
}

static void make_printable(char *text, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			text[i] = '?';
}

static void __attribute__((format(printf, 3, 0)))
log_va(enum log_level level, uint32_t left_out, const char *format, va_list args)
{
	char line[LINE_BYTES];
	size_t prefix = put_prefix(level, line, sizeof line), room = sizeof line - prefix - 1;
	int wanted = vsnprintf(line + prefix, room, format, args);
	size_t n = prefix + (wanted < 0 ? 0 : (size_t)wanted < room ? (size_t)wanted : room - 1);
	if (left_out && n + 1 < sizeof line) {
		int more = snprintf(line + n, sizeof line - n - 1, " (%u similar lines left out)", left_out);
		size_t left = sizeof line - n - 1;
		n += (size_t)more < left ? (size_t)more : left - 1;
	}
	make_printable(line + prefix, n - prefix);
	line[n++] = '\n';
	// One write per line, so that lines of different threads do not mix. A full pipe loses the line, not the daemon.
	ssize_t written = write(STDERR_FILENO, line, n);
	(void)written;
}

void log_line(enum log_level level, const char *format, ...)
{
	if ((int)level > atomic_load_explicit(&current_level, memory_order_relaxed))
		return;
	va_list args;
	va_start(args, format);
	log_va(level, 0, format, args);
	va_end(args);
}

void log_event(enum log_event event, enum log_level level, const char *format, ...)
{
	if ((int)level > atomic_load_explicit(&current_level, memory_order_relaxed))
		return;
	char text[LINE_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	make_printable(text, strlen(text));
	log_journal_fn *fn = atomic_load_explicit(&journal_fn, memory_order_relaxed);
	bool in_journal = fn && atomic_load_explicit(&journal, memory_order_relaxed) && fn(level, log_event_ids[event], text);
	if (!in_journal)
		log_line(level, "%s", text);
}

bool log_limit_pass(struct log_limit *limit, uint64_t now_ns, uint32_t *left_out)
{
	uint64_t start = atomic_load_explicit(&limit->window_start, memory_order_relaxed);
	if (now_ns - start >= limit->window_ns &&
	    atomic_compare_exchange_strong_explicit(&limit->window_start, &start, now_ns, memory_order_relaxed,
	                                            memory_order_relaxed))
		atomic_store_explicit(&limit->used, 0, memory_order_relaxed);
	if (atomic_fetch_add_explicit(&limit->used, 1, memory_order_relaxed) >= limit->burst) {
		atomic_fetch_add_explicit(&limit->left_out, 1, memory_order_relaxed);
		return false;
	}
	*left_out = atomic_exchange_explicit(&limit->left_out, 0, memory_order_relaxed);
	return true;
}

void log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
	uint32_t left_out = 0;
	if ((int)level > atomic_load_explicit(&current_level, memory_order_relaxed) ||
	    !log_limit_pass(limit, mono_ns(), &left_out))
		return;
	va_list args;
	va_start(args, format);
	log_va(level, left_out, format, args);
	va_end(args);
}
