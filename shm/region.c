#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "status.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U // Linux 6.3
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020 // Linux 6.3; set by MFD_NOEXEC_SEAL
#endif

#define REGION_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int memfd_open(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) // older kernel
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

uint64_t mpig_available_bytes(void)
{
	char text[4096];
	int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	const char *line = strstr(text, "MemAvailable:");
	return line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024 : UINT64_MAX;
}

int mpig_region_create(const char *name, uint64_t bytes, int *fd)
{
	if (!bytes) {
		errno = EINVAL;
		return MPIG_EIO;
	}
	if (bytes > INT64_MAX || bytes > mpig_available_bytes()) {
		errno = ENOMEM;
		return MPIG_ENOMEM;
	}
	int new_fd = memfd_open(name);
	if (new_fd < 0)
		return errno == ENOMEM ? MPIG_ENOMEM : MPIG_EIO;
	int failed = fallocate(new_fd, 0, 0, (off_t)bytes);
	while (failed && errno == EINTR)
		failed = fallocate(new_fd, 0, 0, (off_t)bytes);
	if (failed || fcntl(new_fd, F_ADD_SEALS, REGION_SEALS)) {
		int cause = errno;
		close(new_fd);
		errno = cause;
		return cause == ENOSPC || cause == ENOMEM || cause == EFBIG ? MPIG_ENOMEM : MPIG_EIO;
	}
	*fd = new_fd;
	return MPIG_OK;
}

int mpig_region_check(int fd, uint64_t bytes, uint64_t limit, uint64_t *size)
{
	struct stat st;
	struct statfs fs;
	int access_mode = fcntl(fd, F_GETFL);
	int seals = fcntl(fd, F_GET_SEALS); // fails for what is no tmpfs or hugetlbfs file
	if (access_mode < 0 || (access_mode & O_ACCMODE) != O_RDWR || seals < 0 || fstat(fd, &st) || fstatfs(fd, &fs))
		return MPIG_EINVAL;
	// hugetlbfs has seals too, but its pages can be missing at the time of the fault.
	if (fs.f_type != TMPFS_MAGIC || !S_ISREG(st.st_mode) || (seals & ~F_SEAL_EXEC) != REGION_SEALS || st.st_size <= 0)
		return MPIG_EINVAL;
	uint64_t have = (uint64_t)st.st_size;
	if (bytes ? have != bytes : have > limit)
		return MPIG_EINVAL;
	*size = have;
	return MPIG_OK;
}

int mpig_region_empty(void *base, uint64_t bytes)
{
	return madvise(base, (size_t)bytes, MADV_REMOVE) ? MPIG_EIO : MPIG_OK;
}

int mpig_region_map(int fd, uint64_t bytes, int dontfork, void **base)
{
	if (!bytes || bytes > PTRDIFF_MAX)
		return MPIG_ENOMEM;
	void *mapped = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		return MPIG_ENOMEM;
	if (dontfork && madvise(mapped, (size_t)bytes, MADV_DONTFORK)) {
		munmap(mapped, (size_t)bytes);
		return MPIG_ENOMEM;
	}
	*base = mapped;
	return MPIG_OK;
}
