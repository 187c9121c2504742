// In a daemon: the points of the whole process, from its environment. $MPIG_POINTS names a file that holds struct points, $MPIG_KILL_AT
// the number of the point at which it is killed (0: none).
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/lib/points.h"

void points_of_environment(void);
__attribute__((constructor)) void points_of_environment(void)
{
	const char *path = getenv("MPIG_POINTS"), *at = getenv("MPIG_KILL_AT");
	if (!path || !at)
		return;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct points *points = MAP_FAILED;
	if (fd >= 0 && ftruncate(fd, sizeof *points) == 0)
		points = mmap(NULL, sizeof *points, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (points == MAP_FAILED) {
		perror(path);
		_exit(127);
	}
	close(fd);
	points_arm(points, strtoull(at, NULL, 10));
}
