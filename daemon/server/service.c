#include "daemon/server/service.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <systemd/sd-daemon.h>
#define SD_JOURNAL_SUPPRESS_LOCATION // one place logs for all
#include <systemd/sd-journal.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"

#define PROGRESS_NS UINT64_C(1000000000)

static bool to_journal(enum log_level level, const char *message_id, const char *text)
{
	static const int priorities[4] = {3, 4, 6, 7};
	return sd_journal_send("MESSAGE=%s", text, "MESSAGE_ID=%s", message_id, "PRIORITY=%d", priorities[level],
	                       "SYSLOG_IDENTIFIER=magicpigd", NULL) == 0;
}

void service_init(void)
{
	log_set_journal(to_journal);
}

// ---- the socket ------------------------------------------------------------------------------------------------------
static int fail(char *why, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(why, SERVICE_WHY_BYTES, format, args);
	va_end(args);
	return -2;
}

int service_socket(const char *path, char *why)
{
	int count = sd_listen_fds(1), fd = SD_LISTEN_FDS_START;
	if (count < 0)
		return fail(why, "cannot take over sockets from the service manager: %s", strerror(-count));
	if (count == 0)
		return -1;
	if (count > 1)
		return fail(why,
		            "the service manager passed %d sockets, one is expected: leave one ListenSequentialPacket= in the "
		            "socket unit",
		            count);
	if (sd_is_socket(fd, AF_UNIX, SOCK_SEQPACKET, 1) <= 0)
		return fail(
			why,
			"the service manager passed something else than a listening AF_UNIX socket of type SOCK_SEQPACKET: use "
			"ListenSequentialPacket=%s in the socket unit",
			path);
	if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, path, 0) <= 0)
		return fail(why,
		            "the service manager passed a socket of another path than daemon.socket = %s: give both the same",
		            path);
	return fd;
}

// ---- messages --------------------------------------------------------------------------------------------------------
void service_status(const char *format, ...)
{
	char text[256];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	sd_notifyf(0, "STATUS=%s", text);
}

void service_ready(void)
{
	sd_notify(0, "READY=1");
}

void service_reloading(void)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, mono_ns() / 1000);
}

void service_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}

void service_progress(void *unused)
{
	static atomic_uint_fast64_t last;
	uint64_t now = mono_ns();
	(void)unused;
	if (now - atomic_load(&last) < PROGRESS_NS)
		return;
	atomic_store(&last, now);
	sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, SERVICE_EXTEND_NS / 1000);
}

uint64_t service_watchdog_ns(void)
{
	uint64_t usec;
	return sd_watchdog_enabled(0, &usec) > 0 ? usec * 1000 : 0;
}

void service_alive(void)
{
	sd_notify(0, "WATCHDOG=1");
}
