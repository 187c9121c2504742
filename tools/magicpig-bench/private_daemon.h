// A daemon of the benchmark's own: its directory is in /dev/shm and gone afterwards.
#ifndef MPIG_BENCH_PRIVATE_DAEMON_H
#define MPIG_BENCH_PRIVATE_DAEMON_H

#include <magicpig.h>
#include <stdint.h>
#include <sys/types.h>

struct private_daemon {
	char dir[32];
	pid_t pid;
	mpig_client *client;
};

// Starts `program` and connects. 0, or -1 with a message on stderr and nothing left behind.
int private_daemon_start(struct private_daemon *d, const char *program, unsigned workers, uint64_t pool_bytes);
// The same with lines at the end of the configuration, sections and keys.
int private_daemon_start_with(struct private_daemon *d, const char *program, unsigned workers, uint64_t pool_bytes,
                              const char *lines);
uint64_t private_daemon_resident(const struct private_daemon *d); // bytes of its pool that are mapped
double private_daemon_cpu(const struct private_daemon *d);        // seconds it has used
double private_daemon_huge(const struct private_daemon *d);       // share of its pool's pages that are huge
// Waits, at most a minute, until the daemon has done its idle work (huge pages).
void private_daemon_settle(const struct private_daemon *d);
void private_daemon_stop(struct private_daemon *d);

#endif
