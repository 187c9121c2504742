// Status codes shared by the daemon, the client library and the tools. Zero is success, errors are negative.
// They have numbers of their own, not errno's: the same code means the same on every architecture and in every file format.
#ifndef MPIG_SHM_STATUS_H
#define MPIG_SHM_STATUS_H

#define MPIG_STATUS_LIST(X)                                                                                                      \
	X(OK, 0, "success")                                                                                                      \
	X(EINVAL, -1, "invalid argument")                                                                                        \
	X(ENOENT, -2, "no such context")                                                                                         \
	X(EEXIST, -3, "a context of this name exists")                                                                           \
	X(EACCES, -4, "permission denied")                                                                                       \
	X(ENOMEM, -5, "out of memory in this process")                                                                           \
	X(ENOSPC, -6, "the pool is full")                                                                                        \
	X(EQUOTA, -7, "over quota")                                                                                              \
	X(EBUSY, -8, "another client holds the writer lease, or the object is in use")                                           \
	X(EPROTO, -9, "malformed message or ring entry")                                                                         \
	X(EVERSION, -10, "incompatible version")                                                                                 \
	X(ERETRY, -11, "the daemon went away while this was in flight; reconnected or reconnecting, try again")                  \
	X(ENODAEMON, -12, "no daemon answers on the socket")                                                                     \
	X(ETIMEDOUT, -13, "deadline passed")                                                                                     \
	X(EFORK, -14, "this handle belongs to the parent process; open another after fork")                                      \
	X(ENAN, -15, "NaN or infinity in the input")                                                                             \
	X(ERANGE, -16, "token range or position outside the context")                                                            \
	X(EAGAIN, -17, "nothing ready, or no room in the queue")                                                                 \
	X(EIO, -18, "input/output error")                                                                                        \
	X(ELOST, -19, "the context did not survive the daemon's restart")                                                        \
	X(ELEASE, -20, "this client does not hold the context's writer lease")                                                   \
	X(ENOTSUP, -21, "not supported by this daemon or layer")                                                                 \
	X(ESHUTDOWN, -22, "the daemon is shutting down, or this queue was closed")                                               \
	X(ELIMIT, -23, "a fixed limit of the daemon is reached")                                                                 \
	X(ECORRUPT, -24, "stored data failed its checks")

enum mpig_status {
#define X(name, value, text) MPIG_##name = (value),
	MPIG_STATUS_LIST(X)
#undef X
};

// Constant text for a status ("unknown status" for others). Any thread.
const char *mpig_status_text(int status);
// The symbol ("MPIG_EINVAL"), for tools that print codes.
const char *mpig_status_name(int status);

#endif
