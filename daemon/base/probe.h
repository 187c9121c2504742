// Static probes (USDT): points that perf, bpftrace and SystemTap can attach to while the daemon runs. Each is one no-operation until then.
// Provider `magicpigd`; names and arguments are a promise, in daemon/server/README.md. Without <sys/sdt.h> they are compiled out.
#ifndef MPIG_BASE_PROBE_H
#define MPIG_BASE_PROBE_H

#if !defined(MPIG_NO_PROBES) && defined(__has_include)
#if __has_include(<sys/sdt.h>)
#define MPIG_PROBES 1
#endif
#endif

#ifdef MPIG_PROBES
#include <sys/sdt.h>
#define PROBE3(name, a, b, c) DTRACE_PROBE3(magicpigd, name, a, b, c)
#define PROBE4(name, a, b, c, d) DTRACE_PROBE4(magicpigd, name, a, b, c, d)
#define PROBE5(name, a, b, c, d, e) DTRACE_PROBE5(magicpigd, name, a, b, c, d, e)
#else // evaluated never, checked all the same
#define PROBE5(name, a, b, c, d, e)                                                                                              \
	do {                                                                                                                     \
		if (0)                                                                                                           \
			(void)(a), (void)(b), (void)(c), (void)(d), (void)(e);                                                   \
	} while (0)
#define PROBE4(name, a, b, c, d) PROBE5(name, a, b, c, d, 0)
#define PROBE3(name, a, b, c) PROBE5(name, a, b, c, 0, 0)
#endif

#endif
