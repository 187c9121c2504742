#include "tests/lib/power.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/disk/io.h"

#define SECTOR 512u
#define MOST_FILES 8192u
#define MOST_CHANGES 65536u
#define ARENA (UINT64_C(1) << 30)
#define NEVER UINT64_MAX
#define NOBODY UINT32_MAX

const char *const power_mode_name[POWER_MODES] = {
	"nothing", "all", "random", "names only", "data only", "one lost", "one kept", "ordered",
};

#define must(condition)                                                                                                          \
	do {                                                                                                                     \
		if (!(condition))                                                                                                \
			ck_abort_msg("%s:%d: %s", __FILE__, __LINE__, #condition);                                               \
	} while (0)

struct file {
	ino_t number; // of the real one; later files may have it again
	bool directory;
};
struct entry { // a name, from here on that of `target`, or nobody's
	uint32_t dir, target;
	char name[72];
};
struct change {
	uint64_t begin, end;  // events; NEVER: it failed, or has not ended
	uint64_t durable[2];  // a name's: for each entry
	uint32_t entries;     // 0: of a file's data
	uint32_t file, bytes; // data: a write, or if `cut` everything is gone
	bool cut;
	uint64_t offset, data; // data: in the arena
	struct entry entry[2];
};
static struct record {
	uint64_t events, used; // used: bytes of the arena
	uint32_t files, changes;
	struct file file[MOST_FILES];
	struct change change[MOST_CHANGES];
	uint8_t arena[];
} * record;

// ---- recording -------------------------------------------------------------------------------------------------------

static uint32_t add_file(ino_t number, bool directory)
{
	must(record->files < MOST_FILES);
	record->file[record->files] = (struct file){number, directory};
	return record->files++;
}

static uint32_t file_of(int fd)
{
	struct stat st;
	must(fstat(fd, &st) == 0);
	for (uint32_t i = record->files; i-- > 0;)
		if (record->file[i].number == st.st_ino)
			return i;
	return NOBODY;
}

static uint32_t look_up(uint32_t dir, const char *name)
{
	for (uint32_t i = record->changes; i-- > 0;)
		for (uint32_t k = record->change[i].entries; k-- > 0;) {
			const struct entry *e = &record->change[i].entry[k];
			if (e->dir == dir && !strcmp(e->name, name) && record->change[i].begin != NEVER)
				return e->target;
		}
	return NOBODY;
}

// The directory that holds a name, and its last part.
static uint32_t directory_of(int dir, const char *path, const char **name)
{
	const char *slash = strrchr(path, '/');
	*name = slash ? slash + 1 : path;
	if (dir == AT_FDCWD)
		return 0;
	uint32_t at = file_of(dir);
	char part[72];
	for (const char *next; at != NOBODY && (next = strchr(path, '/')); path = next + 1) {
		snprintf(part, sizeof part, "%.*s", (int)(next - path), path);
		at = look_up(at, part);
	}
	must(at != NOBODY);
	return at;
}

static struct change *add_change(void)
{
	must(record->changes < MOST_CHANGES);
	struct change *c = &record->change[record->changes++];
	*c = (struct change){.begin = record->events, .end = NEVER, .durable = {NEVER, NEVER}};
	return c;
}

static void set_entry(struct change *c, uint32_t dir, const char *name, uint32_t target)
{
	struct entry *e = &c->entry[c->entries++];
	must(strlen(name) < sizeof e->name);
	*e = (struct entry){.dir = dir, .target = target};
	strcpy(e->name, name);
}

static void opened(const struct disk_call *call)
{
	const char *name;
	if (!(call->flags & O_CREAT) || call->result < 0)
		return;
	uint32_t dir = directory_of(call->dir, call->file, &name), file = look_up(dir, name);
	struct stat st;
	struct change *c;
	must(fstat(call->fd, &st) == 0);
	if (file == NOBODY) {
		file = add_file(st.st_ino, false);
		c = add_change();
		set_entry(c, dir, name, file);
	} else {
		must(call->flags & O_TRUNC);
		c = add_change();
		c->file = file;
		c->cut = true;
	}
	c->end = record->events;
}

static void made_directory(const struct disk_call *call)
{
	const char *name;
	struct stat st;
	uint32_t dir = directory_of(call->dir, call->file, &name);
	if (call->result || look_up(dir, name) != NOBODY)
		return;
	must(fstatat(call->dir, call->file, &st, 0) == 0);
	struct change *c = add_change();
	set_entry(c, dir, name, add_file(st.st_ino, true));
	c->end = record->events;
}

static void begin_write(const struct disk_call *call)
{
	struct change *c = add_change();
	c->file = file_of(call->fd);
	must(c->file != NOBODY && record->used + call->bytes <= ARENA);
	c->offset = call->offset;
	c->bytes = call->bytes;
	c->data = record->used;
	memcpy(record->arena + record->used, call->data, call->bytes);
	record->used += call->bytes;
}

static void end_write(const struct disk_call *call)
{
	uint32_t file = file_of(call->fd);
	for (uint32_t i = record->changes; i-- > 0;) {
		struct change *c = &record->change[i];
		if (c->entries || c->cut || c->file != file || c->offset != call->offset || c->end != NEVER)
			continue;
		if (call->result >= 0)
			c->end = record->events;
		return;
	}
	must(false && "a write ended that had not begun");
}

static uint64_t sync_began;

static void synced(const struct disk_call *call)
{
	uint32_t file = file_of(call->fd);
	if (call->result || file == NOBODY)
		return;
	for (uint32_t i = 0; i < record->changes; i++) {
		struct change *c = &record->change[i];
		if (c->end >= sync_began)
			continue;
		if (!c->entries && c->file == file && c->durable[0] == NEVER)
			c->durable[0] = record->events;
		for (uint32_t k = 0; k < c->entries; k++)
			if (c->entry[k].dir == file && c->durable[k] == NEVER)
				c->durable[k] = record->events;
	}
}

static void begin_name(const struct disk_call *call)
{
	const char *name, *from;
	uint32_t dir = directory_of(call->dir, call->file, &name);
	struct change *c = add_change();
	if (!strcmp(call->call, "link")) {
		set_entry(c, file_of(call->to_dir), name, look_up(dir, name));
	} else if (!strcmp(call->call, "rename")) {
		uint32_t from_dir = directory_of(call->dir, call->from, &from);
		set_entry(c, dir, name, look_up(from_dir, from));
		set_entry(c, from_dir, from, NOBODY);
	} else { // unlink, rmdir
		set_entry(c, dir, name, NOBODY);
	}
}

// The last name that was begun; only one thread changes names.
static void end_name(const struct disk_call *call)
{
	for (uint32_t i = record->changes; i-- > 0;) {
		struct change *c = &record->change[i];
		if (!c->entries || c->end != NEVER)
			continue;
		c->end = record->events;
		c->begin = call->result ? NEVER : c->begin;
		return;
	}
}

void power_died(void)
{
	for (uint32_t i = 0; i < record->changes; i++)
		if (record->change[i].entries && record->change[i].end == NEVER)
			record->change[i].end = record->events;
}

static int power_hook(const struct disk_call *call, int after)
{
	bool name = !strcmp(call->call, "link") || !strcmp(call->call, "rename") || !strcmp(call->call, "unlink") ||
	            !strcmp(call->call, "rmdir");
	record->events++;
	if (name)
		(after ? end_name : begin_name)(call);
	else if (!strcmp(call->call, "open") && after)
		opened(call);
	else if (!strcmp(call->call, "mkdir") && after)
		made_directory(call);
	else if (!strcmp(call->call, "write"))
		(after ? end_write : begin_write)(call);
	else if (!strcmp(call->call, "fsync") && !after)
		sync_began = record->events;
	else if (!strcmp(call->call, "fsync"))
		synced(call);
	return 0;
}

void power_begin(const char *top)
{
	struct stat st;
	must(stat(top, &st) == 0);
	record = mmap(NULL, sizeof *record + ARENA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(record != MAP_FAILED);
	add_file(st.st_ino, true);
	disk_hook = power_hook;
}

void power_end(void)
{
	disk_hook = NULL;
	munmap(record, sizeof *record + ARENA);
	record = NULL;
}

uint64_t power_now(void)
{
	return record->events;
}

// ---- what may be there afterwards ------------------------------------------------------------------------------------

static bool is_durable(const struct change *c, uint64_t event)
{
	return c->durable[0] <= event && (c->entries < 2 || c->durable[1] <= event);
}

static bool is_pending(const struct change *c, uint64_t event)
{
	return c->begin <= event && !is_durable(c, event);
}

uint64_t power_pending(uint64_t event)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < record->changes; i++)
		n += is_pending(&record->change[i], event);
	return n;
}

static uint64_t draw(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	return *random ^= *random << 17;
}

uint64_t power_tense(uint64_t *random)
{
	*random |= *random == 0;
	for (;;) {
		const struct change *c = &record->change[draw(random) % record->changes];
		uint64_t end = c->durable[0] < record->events ? c->durable[0] : record->events;
		if (c->entries && c->begin < end)
			return c->begin + draw(random) % (end - c->begin);
	}
}

enum fate { LOST, KEPT, TORN };
struct state {
	uint64_t event, *random;
	uint8_t fate[MOST_CHANGES];
	uint32_t target[MOST_CHANGES * 2]; // by entry of a change: what it names at last, NOBODY
	bool made[MOST_FILES];
	char place[MOST_FILES][PATH_MAX / 8];
};

static uint8_t decide(const struct state *s, const struct change *c, enum power_mode mode, uint64_t number, uint64_t chosen,
                      uint64_t moment)
{
	uint64_t coin = draw(s->random) % 3;
	switch (mode) {
	case POWER_NOTHING:
	case POWER_MODES:
		return LOST;
	case POWER_ALL:
		return KEPT;
	case POWER_RANDOM:
		return c->entries ? coin != 0 : (uint8_t)coin;
	case POWER_NAMES:
		return c->entries ? KEPT : LOST;
	case POWER_DATA:
		return c->entries ? LOST : KEPT;
	case POWER_ONE_LOST:
		return number == chosen ? LOST : KEPT;
	case POWER_ONE_KEPT:
		return number == chosen ? KEPT : LOST;
	case POWER_ORDERED:
		return c->entries ? c->begin <= moment : (uint8_t)coin;
	}
	return LOST;
}

static void decide_all(struct state *s, enum power_mode mode)
{
	uint64_t pending = power_pending(s->event), chosen = pending ? draw(s->random) % pending : 0, number = 0;
	uint64_t moment = s->event - (pending ? draw(s->random) % (2 * pending + 1) : 0);
	for (uint32_t i = 0; i < record->changes; i++) {
		const struct change *c = &record->change[i];
		bool pends = is_pending(c, s->event);
		s->fate[i] = c->begin > s->event ? LOST : !pends ? KEPT : decide(s, c, mode, number, chosen, moment);
		number += pends;
	}
}

static void tear(const struct state *s, const struct change *c, uint8_t *data)
{
	for (uint32_t at = 0; at < c->bytes; at += SECTOR) {
		uint32_t n = c->bytes - at < SECTOR ? c->bytes - at : SECTOR;
		switch (draw(s->random) % 4) {
		case 0:
		case 1:
			memcpy(data + at, record->arena + c->data + at, n);
			break;
		case 2:
			memset(data + at, (int)(draw(s->random) % 2 * 0xa5), n); // zeros, or what somebody else left there
			break;
		default: // what was there before
			break;
		}
	}
}

static uint8_t *content(const struct state *s, uint32_t file, uint64_t *bytes)
{
	uint64_t room = 0, size = 0;
	for (uint32_t i = 0; i < record->changes; i++) {
		const struct change *c = &record->change[i];
		if (!c->entries && c->file == file && c->offset + c->bytes > room)
			room = c->offset + c->bytes;
	}
	uint8_t *data = calloc(1, room + 1);
	must(data);
	for (uint32_t i = 0; i < record->changes; i++) {
		const struct change *c = &record->change[i];
		if (c->entries || c->file != file || c->begin > s->event)
			continue;
		uint64_t end = c->offset + c->bytes;
		if (c->cut && s->fate[i]) {
			memset(data, 0, room);
			size = 0;
		} else if (s->fate[i] == KEPT) {
			memcpy(data + c->offset, record->arena + c->data, c->bytes);
			size = end > size ? end : size;
		} else if (s->fate[i] == TORN) {
			tear(s, c, data + c->offset);
			end -= draw(s->random) % 4 ? 0 : draw(s->random) % c->bytes;
			size = end > size ? end : size;
		}
	}
	memset(data + size, 0, room - size);
	*bytes = size;
	return data;
}

static void make_file(struct state *s, uint32_t file, const char *path)
{
	if (s->made[file]) {
		must(link(s->place[file], path) == 0);
		return;
	}
	uint64_t bytes, at = 0;
	uint8_t *data = content(s, file, &bytes);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	must(fd >= 0);
	for (ssize_t n; at < bytes; at += (uint64_t)n)
		must((n = write(fd, data + at, bytes - at)) > 0);
	close(fd);
	free(data);
	s->made[file] = true;
	must(strlen(path) < sizeof s->place[file]);
	strcpy(s->place[file], path);
}

// Whether entry k of change i is the last word on its name.
static bool stands(const struct state *s, uint32_t i, uint32_t k)
{
	const struct entry *e = &record->change[i].entry[k];
	for (uint32_t j = i + 1; j < record->changes; j++)
		for (uint32_t l = 0; s->fate[j] && l < record->change[j].entries; l++) {
			const struct entry *later = &record->change[j].entry[l];
			if (later->dir == e->dir && !strcmp(later->name, e->name))
				return false;
		}
	return true;
}

static void make_directory(struct state *s, uint32_t dir, const char *path)
{
	char inside[PATH_MAX / 8];
	must(mkdir(path, 0700) == 0);
	for (uint32_t i = 0; i < record->changes; i++) {
		const struct change *c = &record->change[i];
		for (uint32_t k = 0; s->fate[i] && k < c->entries; k++) {
			const struct entry *e = &c->entry[k];
			if (e->dir != dir || e->target == NOBODY || !stands(s, i, k))
				continue;
			must((size_t)snprintf(inside, sizeof inside, "%s/%s", path, e->name) < sizeof inside);
			if (record->file[e->target].directory)
				make_directory(s, e->target, inside);
			else
				make_file(s, e->target, inside);
		}
	}
}

void power_make(uint64_t event, enum power_mode mode, uint64_t *random, const char *into)
{
	struct state *s = calloc(1, sizeof *s);
	must(s);
	s->event = event;
	s->random = random;
	*random |= *random == 0;
	decide_all(s, mode);
	make_directory(s, 0, into);
	free(s);
}
