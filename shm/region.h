// Sealed memory regions: memfds whose size nobody can change, so that touching them never raises SIGBUS.
#ifndef MPIG_SHM_REGION_H
#define MPIG_SHM_REGION_H

#include <stddef.h>
#include <stdint.h>

// Creates a memfd of `bytes`, allocated (fallocate, so that a full machine is refused here) and sealed SHRINK|GROW|SEAL,
// close-on-exec, MFD_NOEXEC_SEAL where the kernel knows it. Returns 0 and the fd, or MPIG_ENOMEM / MPIG_EIO (errno kept).
int mpig_region_create(const char *name, uint64_t bytes, int *fd);
// Memory that the kernel can hand out without swapping, or UINT64_MAX if it does not say. An allocation beyond it would not fail but wake the OOM
// killer.
uint64_t mpig_available_bytes(void);
// Checks that an fd from outside is a tmpfs memfd with exactly the seals above (F_SEAL_EXEC allowed) and its size equals `bytes`
// (0: any, up to `limit`). Returns 0 and the size, or MPIG_EINVAL.
int mpig_region_check(int fd, uint64_t bytes, uint64_t limit, uint64_t *size);
// Removes the pages of a region that is mapped whole, from the file itself: who touches it again, by whichever mapping, gets new pages of zeros,
// and is charged for them. Takes the file's lock, which everybody who has the file open can hold. Returns 0 or MPIG_EIO (errno kept).
int mpig_region_empty(void *base, uint64_t bytes);
// Maps it shared, read-write; MADV_DONTFORK if `dontfork`. Returns 0 or MPIG_ENOMEM. Unmap with munmap(base, bytes).
int mpig_region_map(int fd, uint64_t bytes, int dontfork, void **base);

#endif
