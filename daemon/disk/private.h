// What the files of daemon/disk share.
#ifndef MPIG_DISK_PRIVATE_H
#define MPIG_DISK_PRIVATE_H

#include <dirent.h>
#include <pthread.h>

#include "daemon/disk/disk.h"
#include "daemon/disk/format.h"
#include "daemon/disk/io.h"

struct disk {
	struct disk_options options;
	int root, contexts, segments; // directories
	char dir[256];
	struct store *store;  // that is told what is on disk; NULL: none
	atomic_bool known;    // disk_recognise has ended
	pthread_mutex_t lock; // of what is saved
	struct disk_saved *saved;
	size_t saved_count, saved_capacity;
	uint64_t saved_bytes; // of them all
};

#define FILE_NAME_BYTES 48
void segment_name(char name[FILE_NAME_BYTES], const uint8_t id[IMAGE_ID_BYTES], bool sealed);
__attribute__((format(printf, 3, 4))) int disk_fail(char *why, int status, const char *format, ...);
int disk_errno(char *why, int error, const char *what, const char *file); // error: -errno; a status
int check_name(const char *name, char *why);                              // before it becomes a part of a path: 0 or MPIG_EINVAL
DIR *list_directory(int dir); // from its beginning, the caller closes it; NULL: an error, or no memory
uint64_t spec_hash(const struct mpig_wire_layer *layer, uint32_t count);
static inline uint64_t page_round(uint64_t bytes)
{
	return (bytes + DISK_PAGE - 1) & ~(uint64_t)(DISK_PAGE - 1);
}
// 0 or -errno; what is not a regular file has none. changed_ns: the time of modification, or NULL.
int file_bytes(int fd, uint64_t *bytes, uint64_t *changed_ns);
int io_move(struct io *io, int fd, const char *file, bool write, uint64_t offset, void *data, uint64_t bytes); // 0 or -errno

// Removes the files of a context's directory that its manifest does not name, and those of them that no other context has.
void disk_tidy(struct disk *d, int dir, const struct disk_segment_ref *ref, uint32_t count);

// A damaged context is moved to damaged/, so that nobody takes it for good again; its name is free. Its segments' files are linked no more,
// and what is in memory of it, or shares them, is not on disk (s may be NULL).
void disk_put_aside(struct disk *d, struct store *s, const char *name);

// segment_file.c
struct segment_file { // opened and checked
	int fd;
	char name[FILE_NAME_BYTES];
	struct disk_segment_header header;
	struct disk_section *section;
};
struct segment_written {
	uint64_t file_bytes, header_checksum;
};
int segment_file_write(struct io *io, const struct image *image, uint32_t segment, int dir, const char *name,
                       const uint8_t id[IMAGE_ID_BYTES], struct disk_progress *progress, struct segment_written *out, char *why);
// Header and index; fills rows, flags and blocks of *out, which the caller frees.
int segment_file_open(struct io *io, int dir, const struct disk_segment_ref *ref, uint64_t hash, struct segment_file *file,
                      struct image_segment *out, char *why);
// Sections in order, each checked before it is handed over (m NULL: only checked).
int segment_file_read(struct io *io, const struct segment_file *file, struct making *m, uint32_t segment,
                      struct disk_progress *progress, char *why);
// The ids of the first `used` tokens of a segment, in order and in pieces; what `put` answers ends it.
int segment_file_tokens(struct io *io, const struct segment_file *file, const struct image_segment *shape, uint32_t used,
                        int (*put)(void *arg, uint32_t row, const uint32_t *tokens, uint32_t n), void *arg, char *why);
void segment_file_close(struct segment_file *file);

static inline uint32_t segment_flags(const struct image_segment *seg)
{
	return (seg->sealed ? DISK_SEALED : 0) | (seg->indexed ? DISK_INDEXED : 0) | (seg->has_tables ? DISK_TABLES : 0) |
	       (seg->has_upper ? DISK_UPPER : 0);
}
static inline void segment_take_flags(struct image_segment *seg, uint32_t flags)
{
	seg->sealed = flags & DISK_SEALED;
	seg->indexed = flags & DISK_INDEXED;
	seg->has_tables = flags & DISK_TABLES;
	seg->has_upper = flags & DISK_UPPER;
}
static inline struct disk_block block_to_disk(const struct image_block *b)
{
	return (struct disk_block){b->first_row, b->rows, b->has_codes, 0, b->content, b->codes_content};
}
static inline struct image_block block_from_disk(const struct disk_block *b)
{
	return (struct image_block){b->first_row, b->rows, b->has_codes, 0, b->content, b->codes_content};
}
// What it brings of sums is of another definition.
static inline void segment_without_sums(struct image_segment *seg)
{
	seg->table_content = 0;
	for (uint32_t b = 0; b < seg->block_count; b++)
		seg->block[b].content = seg->block[b].codes_content = 0;
}

// manifest.c
struct manifest {
	struct image_context context; // segments without blocks
	struct disk_segment_ref *segment;
	uint8_t pool_id[16];
	uint64_t saved_ns, file_bytes;
	uint64_t used_ns; // the latest that is known of the context's last use
};
uint8_t *manifest_encode(const struct manifest *m, uint64_t *bytes); // the caller frees it; NULL without memory
// `of`: whose it should be, for the texts.
int manifest_decode(const uint8_t *data, uint64_t bytes, const char *of, struct manifest *m, char *why);
int manifest_write(struct io *io, int dir, const struct manifest *m, char *why);
int manifest_read(struct io *io, int dir, const char *name, struct manifest *m, char *why); // MPIG_ENOENT: there is none
void manifest_free(struct manifest *m);

// catalogue.c
void catalogue_put(struct disk *d, const struct manifest *m);
void catalogue_remove(struct disk *d, const char *name);
void catalogue_used(struct disk *d, const char *name, uint64_t used_ns); // since then at the earliest
// The next entry after `after` ("": the first) that is to be erased when its time is over.
bool catalogue_next_mortal(struct disk *d, const char *after, struct disk_saved *out);

#endif
