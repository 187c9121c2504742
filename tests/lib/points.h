// The points at which the store and the disk can be stopped: before, within and after each publication to the pool, before and after each
// system call that they make. At one of them the process is killed, or one of the calls fails. A program that uses this is linked with --wrap for
// every call in points.c (Makefile: WRAPPED), so that libc's own calls and those of other libraries do not count.
#ifndef MPIG_TESTS_LIB_POINTS_H
#define MPIG_TESTS_LIB_POINTS_H

#include <stdint.h>

enum point_kind { // what counts
	POINT_PUBLICATION = 1,
	POINT_CALL = 2,  // a system call
	POINT_ALLOC = 4, // malloc and its relatives
};
struct points {
	_Atomic uint64_t passed, publications, calls; // since they were armed; passed: points of both kinds
	char last[32];                                // the name of the last one
};

// What is counted goes to *out (in memory shared with whoever wants to know, if this process is to be killed). SIGKILL at number
// kill_at from 1 on; 0: never.
void points_arm(struct points *out, uint64_t kill_at);
void points_kill_after(const char *call, uint64_t number); // instead: when that call has been made so often
// `count` calls of the kinds in `kinds`, from number `at` since now on, seem to fail with `error`, without being made.
// POINTS_SHORT: reads and writes do about half of what they were asked for, in whole sectors, other calls what they should.
#define POINTS_SHORT (-1)
void points_fail(unsigned kinds, uint64_t at, uint64_t count, int error);
uint64_t points_off(const char **name); // how many there were; *name: of the first that failed (NULL is allowed)

#endif
