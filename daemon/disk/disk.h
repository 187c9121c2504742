// Contexts on disk: a directory with a manifest each, segment files shared by hard links. See README.md and FORMAT.md. One thread uses
// it; threads that serve call disk_list and disk_has only.
#ifndef MPIG_DISK_DISK_H
#define MPIG_DISK_DISK_H

#include "daemon/store/image.h"

struct disk;
struct disk_options {
	const char *dir; // made 0700 if it is missing
	uint32_t depth;  // requests in flight, 1 to IO_SLOTS_MAX
	uint64_t chunk;  // bytes of each; at least IMAGE_PART_MAX, a multiple of 4096
	uint64_t rate;   // bytes a second; 0 = unlimited
	uint64_t (*table_bytes)(const struct layer *, uint32_t rows);
	uint8_t pool_id[16];
	bool leave;    // nothing is removed at once
	bool existing; // nothing is made: MPIG_ENOENT where there is no store
};
// MPIG_EBUSY: another daemon uses the directory; MPIG_EACCES, MPIG_EIO, MPIG_ENOMEM. What a killed daemon left unfinished is removed.
int disk_create(const struct disk_options *options, struct disk **disk, char *why);
void disk_destroy(struct disk *disk);

struct disk_progress {                // of an operation, read by others while it runs
	_Atomic uint64_t done, total; // bytes
	atomic_bool cancel;
};
struct disk_result {
	uint64_t tokens, bytes;    // of the context: all its files
	uint64_t moved;            // bytes written or read now
	uint32_t segments, shared; // shared: those that were on disk, or in memory, already
};
// Writes what is committed. On success it is on stable storage; otherwise what was saved before is as it was. The owner's business:
// MPIG_EACCES also if another owner's context of that name is on disk. MPIG_EIO, MPIG_ENOSPC, MPIG_ESHUTDOWN (cancelled), MPIG_EAGAIN (it
// changed too often), what image_take answers; without `replace` MPIG_EEXIST if another context of that name, made at another time, is on
// disk.
int disk_save(struct disk *d, struct store *s, const struct credentials *who, const char *name, bool replace,
              struct disk_progress *progress, struct disk_result *result, char *why);
// Makes the context again, for its old owner, if the caller may read it. MPIG_ENOENT: not on disk. MPIG_EVERSION: written by a later
// version. MPIG_ECORRUPT: damaged, named in `why`, and put aside under damaged/.
int disk_load(struct disk *d, struct store *s, const struct credentials *who, const char *name, struct disk_progress *progress,
              struct disk_result *result, char *why);
// Reads all files of a context and compares them with their checksums; damage as in disk_load.
int disk_check(struct disk *d, struct store *s, const struct credentials *who, const char *name, struct disk_progress *progress,
               struct disk_result *result, char *why);
// Removes what is on disk of a context; what is in memory stays. The owner's business.
int disk_erase(struct disk *d, struct store *s, const struct credentials *who, const char *name, char *why);
// Reads the token ids of a context, for searches. 0, or why not; then it is not asked for again. Set by others: hurry, it waits for the rate no
// longer; stop, it ends with MPIG_ESHUTDOWN.
int disk_place(struct disk *d, struct store *s, const struct unplaced *of, const atomic_bool *hurry, const atomic_bool *stop,
               char *why);
// What is on disk of that context, if anything, gets its policy and permissions. 0, or why not.
int disk_note_policy(struct disk *d, const struct changed_policy *changed, char *why);
// Once in a while: contexts on disk only whose time is over are erased, if that is their policy. Tells of each.
void disk_expire(struct disk *d, struct store *s, uint64_t now_ns, void (*tell)(void *arg, bool failed, const char *text),
                 void *arg);
// Whether `who` may do this to what is on disk: 0, MPIG_ENOENT, or MPIG_EACCES and why.
int disk_access(struct disk *d, const struct credentials *who, const char *name, enum access want, char *why);
void disk_set_rate(struct disk *d, uint64_t rate); // of the operations that begin from now on. The thread that does them
// Reads the manifests: what is on disk is known from here on. After a warm restart, tells the store which of its segments are.
// What a cut-off save left is removed, damaged manifests are put aside; tells of each that cannot be read, and returns how many. s and tell
// may be NULL.
uint32_t disk_recognise(struct disk *d, struct store *s, void (*tell)(void *arg, bool failed, const char *text), void *arg);

// Removes what nothing needs: files in contexts' directories that no manifest names, segment files that no context has, and damaged contexts that were
// put aside before that time (0: none of them). With nothing else at work on the disk. dry: only counts; of segments, those are counted that one removal makes
// orphans. MPIG_EIO, MPIG_EACCES, ...: not all could be removed.
struct disk_gc_options {
	bool dry;
	uint64_t damaged_before_ns;                             // CLOCK_REALTIME
	void (*tell)(void *arg, bool failed, const char *text); // of each file; NULL: nobody listens
	void *arg;
};
struct disk_gc_result {
	uint32_t leftovers, orphans, damaged; // files; files; contexts
	uint64_t bytes;                       // that are free now
};
int disk_gc(struct disk *d, const struct disk_gc_options *options, struct disk_gc_result *result, char *why);

struct disk_saved {
	char name[MPIG_NAME_BYTES];
	uint8_t fingerprint[64];
	struct identity identity;
	struct mpig_wire_policy policy;
	uint64_t created_ns, committed, bytes, saved_ns;
	uint64_t
		used_ns; // last use as far as the disk knows: of the context when it was saved or, since, of what was loaded from it
};
void disk_total(struct disk *d, uint64_t *contexts, uint64_t *bytes);     // any thread; bytes: of disk_saved, added up
bool disk_find(struct disk *d, const char *name, struct disk_saved *out); // any thread
bool disk_has(struct disk *d, const char *name);                          // any thread
bool disk_is_known(
	struct disk *d); // any thread: disk_recognise has ended; before, disk_has and disk_list do not know of all there is
// Any thread. Contexts on disk that `who` may read, by name, those after `after`.
uint32_t disk_list(struct disk *d, const struct credentials *who, const char *after, struct disk_saved *out, uint32_t max,
                   bool *more);

#endif
