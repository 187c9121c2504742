// What the daemon tells the service manager, and what it gets from it: readiness, status, the watchdog, more time, the control
// socket. Everything here does nothing where there is no service manager ($NOTIFY_SOCKET, $LISTEN_FDS, $WATCHDOG_USEC). libsystemd
// is used here and nowhere else. Control thread only, but for service_progress.
#ifndef MPIG_SERVER_SERVICE_H
#define MPIG_SERVER_SERVICE_H

#include <stdint.h>

#define SERVICE_WHY_BYTES 512

// Events go to the journal with their MESSAGE_ID from now on.
void service_init(void);
// The listening socket that was passed on; it must be the one of `path`. -1: none was; -2: see why (SERVICE_WHY_BYTES).
// $LISTEN_FDS is unset: children do not inherit it.
int service_socket(const char *path, char *why);

void service_status(const char *format, ...) __attribute__((format(printf, 1, 2))); // one line, shown by `systemctl status`
void service_ready(void);
void service_reloading(void); // followed by service_ready
void service_stopping(void);
// Something that takes long, starting or stopping, has moved on: the manager waits for EXTEND_NS more. Call it as often as you like, and
// only when there was progress; at most one message a second is sent. Any one thread.
#define SERVICE_EXTEND_NS UINT64_C(120000000000)
void service_progress(void *unused);

// How often the manager wants to hear from the daemon, in ns; 0: it does not.
uint64_t service_watchdog_ns(void);
void service_alive(void);

#endif
