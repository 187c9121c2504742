// The full screen: drawn anew from one view each time, whatever size the terminal has at that moment.
#include <curses.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "top.h"

enum style { PLAIN, BOLD, DIM, TITLE, GOOD, WARN, BAD };

struct screen {
	struct top_source *source;
	struct top_view view;
	unsigned long delay_ms;
	enum top_sort sort;
	bool hide_operations, hide_workers, hide_contexts, hide_clients, held, help, colours;
	int y, x; // of the next character
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
	(void)number;
	interrupted = 1;
}

// ---- writing, clipped to the screen ------------------------------------------------------------------------------------
static attr_t attribute(const struct screen *s, enum style style)
{
	static const attr_t attributes[] = {
		[PLAIN] = A_NORMAL, [BOLD] = A_BOLD,   [DIM] = A_DIM,  [TITLE] = A_REVERSE,
		[GOOD] = A_NORMAL,  [WARN] = A_NORMAL, [BAD] = A_BOLD,
	};
	attr_t a = attributes[style];
	if (style >= GOOD && s->colours)
		a |= COLOR_PAIR(style - GOOD + 1);
	return a;
}

__attribute__((format(printf, 3, 4))) static void put(struct screen *s, enum style style, const char *format, ...)
{
	char text[512];
	va_list arguments;
	va_start(arguments, format);
	int n = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (n < 0 || s->y >= LINES || s->x >= COLS)
		return;
	int room = COLS - s->x;
	for (size_t length = strlen(text); length && text_width(text) > (size_t)room;) {
		do
			length--;
		while (length && ((unsigned char)text[length] & 0xc0) == 0x80); // whole characters
		text[length] = 0;
	}
	attrset(attribute(s, style));
	mvaddstr(s->y, s->x, text);
	attrset(A_NORMAL);
	s->x += (int)text_width(text);
}

static void newline(struct screen *s)
{
	s->y++;
	s->x = 0;
}

static int lines_left(const struct screen *s)
{
	return LINES - s->y;
}

static void repeat(struct screen *s, enum style style, char c, int count)
{
	char text[256];
	count = count < 0 ? 0 : count > 255 ? 255 : count;
	memset(text, c, (size_t)count);
	text[count] = 0;
	put(s, style, "%s", text);
}

static int cells_of(double share, int cells)
{
	int n = (int)(share * cells + .5);
	return n < 0 ? 0 : n > cells ? cells : n;
}

static void bar(struct screen *s, double share, int cells)
{
	int full = cells_of(share, cells);
	full = full == 0 && share > 0 ? 1 : full;
	put(s, PLAIN, "[");
	repeat(s, share < .75 ? GOOD : share < .9 ? WARN : BAD, '#', full);
	repeat(s, DIM, '.', cells - full);
	put(s, PLAIN, "]");
}

// A cell of `width` columns and two more; false: it does not fit any more, nor does what comes after it.
static bool cell(struct screen *s, enum style style, const char *text, int width, bool right)
{
	if (s->x + width > COLS)
		return s->x = COLS, false;
	int start = s->x, fill = width - (int)text_width(text);
	if (right && fill > 0)
		repeat(s, style == TITLE ? TITLE : PLAIN, ' ', fill);
	if (fill < 0) { // too long: its beginning
		char cut[256];
		snprintf(cut, sizeof(cut), "%s", text);
		for (size_t length = strlen(cut); length && text_width(cut) > (size_t)width - 1;) {
			do
				length--;
			while (length && ((unsigned char)cut[length] & 0xc0) == 0x80);
			cut[length] = 0;
		}
		put(s, style, "%s~", cut);
	} else {
		put(s, style, "%s", text);
	}
	if (style == TITLE)
		repeat(s, TITLE, ' ', start + width + 2 - s->x);
	s->x = start + width + 2;
	return true;
}

// ---- the head ----------------------------------------------------------------------------------------------------------
static void draw_title(struct screen *s)
{
	const struct top_view *v = &s->view;
	char now[16] = "", up[TEXT_SHORT], right[64];
	time_t t = time(NULL);
	struct tm tm;
	if (localtime_r(&t, &tm))
		strftime(now, sizeof(now), "%H:%M:%S", &tm);
	struct timespec real;
	clock_gettime(CLOCK_REALTIME, &real);
	uint64_t real_ns = (uint64_t)real.tv_sec * 1000000000u + (uint64_t)real.tv_nsec;
	put(s, BOLD, "magicpigd %s", v->waiting ? "" : v->head.release);
	if (!v->waiting)
		put(s, PLAIN, "  %s  pid %" PRIu64 "  up %s", v->head.instance, v->head.pid,
		    text_duration(up, real_ns > v->head.start_realtime_ns ? real_ns - v->head.start_realtime_ns : 0));
	snprintf(right, sizeof(right), "%s%s  every %.3g s", s->held ? "HELD  " : "", now, (double)s->delay_ms / 1000);
	if (s->x + 2 + (int)strlen(right) <= COLS) {
		s->x = COLS - (int)strlen(right);
		put(s, s->held ? WARN : DIM, "%s", right);
	}
	newline(s);
}

static void draw_pool(struct screen *s)
{
	const struct stats_head *h = &s->view.head;
	char share[TEXT_SHORT], used[TEXT_SHORT], all[TEXT_SHORT], saved[TEXT_SHORT];
	double part = h->pool_bytes ? (double)h->pool_used / (double)h->pool_bytes : 0;
	put(s, PLAIN, "pool  ");
	bar(s, part, COLS >= 60 ? 24 : 8);
	put(s, PLAIN, " %s: %s of %s", text_share(share, part), text_bytes(used, h->pool_used), text_bytes(all, h->pool_bytes));
	put(s, PLAIN, "  contexts %" PRIu64 ", clients %" PRIu64 ", queues %" PRIu64, h->contexts, h->clients, h->queues);
	if (h->flags & MPIG_STATS_DISK)
		put(s, PLAIN, ", on disk %" PRIu64 " (%s)", h->saved_contexts, text_bytes(saved, h->saved_bytes));
	newline(s);
}

static void draw_reading(struct screen *s)
{
	const struct top_view *v = &s->view;
	bool measured = v->limit.stream_bytes_per_s > 0;
	double limit = measured ? v->limit.stream_bytes_per_s : v->peak_bytes;
	char now[TEXT_SHORT], most[TEXT_SHORT], rows[TEXT_SHORT], requests[TEXT_SHORT], appended[TEXT_SHORT];
	put(s, PLAIN, "read  ");
	bar(s, limit > 0 ? v->bytes / limit : 0, COLS >= 60 ? 24 : 8);
	put(s, PLAIN, " %s/s of %s/s %s", text_bytes(now, (uint64_t)v->bytes), text_bytes(most, (uint64_t)limit),
	    measured      ? "that memory gives"
	    : COLS >= 100 ? "at most so far (bench measures the limit)"
	                  : "at most so far");
	newline(s);
	put(s, PLAIN, "      %s requests/s, %s rows read/s, %s rows appended/s", text_rate(requests, v->requests),
	    text_rate(rows, v->rows), text_rate(appended, v->appended));
	if (v->errors > 0)
		put(s, WARN, ", %s errors/s", text_rate(requests, v->errors));
	newline(s);
}

// ---- tables ------------------------------------------------------------------------------------------------------------
struct heading {
	const char *text;
	int width;
	bool right;
};

static void draw_heading(struct screen *s, const struct heading *headings, int count)
{
	for (int i = 0; i < count && cell(s, TITLE, headings[i].text, headings[i].width, headings[i].right); i++)
		continue;
	s->x = 0;
	mvchgat(s->y, 0, -1, A_REVERSE, 0, NULL);
	newline(s);
}

static void draw_operations(struct screen *s)
{
	static const struct heading headings[] = {{"operation", 10, false}, {"/s", 8, true},  {"p50", 8, true},
	                                          {"p90", 8, true},         {"p99", 8, true}, {"p99.9", 8, true}};
	if (s->hide_operations || lines_left(s) < 3 || !s->view.operations)
		return;
	draw_heading(s, headings, 6);
	for (uint32_t i = 0; i < s->view.operations && lines_left(s) > 0; i++) {
		const struct top_operation *o = &s->view.operation[i];
		if (o->rate == 0 && LINES < 16)
			continue;
		const double times[] = {o->p50, o->p90, o->p99, o->p999};
		char text[TEXT_SHORT];
		enum style style = o->rate > 0 ? PLAIN : DIM;
		cell(s, style, o->name, 10, false);
		cell(s, style, text_rate(text, o->rate), 8, true);
		for (int t = 0; t < 4; t++)
			cell(s, style, o->rate > 0 ? text_latency(text, times[t]) : "-", 8, true);
		newline(s);
	}
}

static void worker_bar(struct screen *s, const struct top_worker *w, int cells)
{
	int busy = cells_of(w->busy, cells), spin = cells_of(w->busy + w->spin, cells) - busy;
	busy = busy == 0 && w->busy > 0 ? 1 : busy;
	spin = busy + spin > cells ? cells - busy : spin;
	put(s, PLAIN, "[");
	repeat(s, GOOD, '#', busy);
	repeat(s, WARN, '+', spin);
	repeat(s, DIM, '.', cells - busy - spin);
	put(s, PLAIN, "]  ");
}

static void draw_workers_in_one(struct screen *s)
{
	struct top_worker all = {0};
	uint32_t stuck = 0;
	for (uint32_t i = 0; i < s->view.workers; i++) {
		const struct top_worker *w = &s->view.worker[i];
		all.busy += w->busy / s->view.workers;
		all.spin += w->spin / s->view.workers;
		all.park += w->park / s->view.workers;
		stuck += w->stuck;
	}
	char busy[TEXT_SHORT], spin[TEXT_SHORT], park[TEXT_SHORT];
	put(s, PLAIN, "%u workers ", s->view.workers);
	worker_bar(s, &all, COLS >= 70 ? 24 : 8);
	put(s, PLAIN, "%s busy, %s spin, %s park", text_share(busy, all.busy), text_share(spin, all.spin),
	    text_share(park, all.park));
	if (stuck)
		put(s, BAD, ", %u stuck", stuck);
	newline(s);
}

static int lines_wanted(const struct top_users *users, bool hidden)
{
	return hidden || !users->count ? 0 : (int)users->count + 1;
}

static void draw_workers(struct screen *s, int most)
{
	static const struct heading headings[] = {{"worker", 6, true}, {"cpu", 3, true},     {"busy # spin + park .", 26, false},
	                                          {"state", 6, false}, {"busy", 6, true},    {"spin", 6, true},
	                                          {"park", 6, true},   {"units/s", 8, true}, {"read/s", 10, true}};
	static const char *const states[] = {"spin", "busy", "parked"};
	if (s->hide_workers || lines_left(s) < 1 || !s->view.workers)
		return;
	if ((int)s->view.workers + 1 > most || COLS < 48) {
		draw_workers_in_one(s);
		return;
	}
	draw_heading(s, headings, 9);
	for (uint32_t i = 0; i < s->view.workers && lines_left(s) > 0; i++) {
		const struct top_worker *w = &s->view.worker[i];
		char text[TEXT_SHORT];
		cell(s, PLAIN, text_count(text, i), 6, true);
		cell(s, PLAIN, w->cpu == UINT64_MAX ? "-" : text_count(text, w->cpu), 3, true);
		worker_bar(s, w, 24);
		cell(s, w->stuck ? BAD : PLAIN, w->stuck ? "stuck" : w->state < 3 ? states[w->state] : "?", 6, false);
		cell(s, PLAIN, text_share(text, w->busy), 6, true);
		cell(s, PLAIN, text_share(text, w->spin), 6, true);
		cell(s, PLAIN, text_share(text, w->park), 6, true);
		cell(s, PLAIN, text_rate(text, w->units), 8, true);
		cell(s, PLAIN, text_bytes(text, (uint64_t)w->bytes), 10, true);
		newline(s);
	}
}

#define FIXED_COLUMNS (8 + 11 + 8 + 10 + 10 + 8 + 10 + 7 * 2) // of all but the name

static void draw_users(struct screen *s, const struct top_users *users, bool clients, int most)
{
	int name = COLS - FIXED_COLUMNS;
	name = name > 40 ? 40 : name < 16 ? 16 : name;
	enum top_sort by = s->sort; // its column has a star
	const struct heading headings[] = {
		{clients             ? by == TOP_BY_NAME ? "client*" : "client"
	         : by == TOP_BY_NAME ? "context*"
	                             : "context",
	         name, false},
		{clients ? "pid" : "id", 8, true},
		{by == TOP_BY_REQUESTS ? "requests/s*" : "requests/s", 11, true},
		{by == TOP_BY_ROWS ? "rows/s*" : "rows/s", 8, true},
		{by == TOP_BY_BYTES ? "read/s*" : "read/s", 10, true},
		{"appended/s", 10, true},
		{"errors/s", 8, true},
		{"user", 10, false},
	};
	if (most < 2 || !users->count)
		return;
	draw_heading(s, headings, 8);
	for (uint32_t i = 0; i < users->count && (int)i < most - 1; i++) {
		const struct top_user *u = &users->user[i];
		enum style style = u->requests > 0 ? PLAIN : DIM;
		char text[TEXT_SHORT];
		bool more = (int)i == most - 2 && i + 1 < users->count;
		if (more) {
			snprintf(text, sizeof(text), "... and %u more", users->count - i);
			cell(s, DIM, text, name, false);
			newline(s);
			break;
		}
		cell(s, style, u->name, name, false);
		snprintf(text, sizeof(text), "%" PRIu64, clients ? u->pid : u->id);
		cell(s, style, u->id ? text : "", 8, true);
		cell(s, style, text_rate(text, u->requests), 11, true);
		cell(s, style, text_rate(text, u->rows), 8, true);
		cell(s, style, text_bytes(text, (uint64_t)u->bytes), 10, true);
		cell(s, style, text_rate(text, u->appended), 10, true);
		cell(s, u->errors > 0 ? WARN : style, text_rate(text, u->errors), 8, true);
		cell(s, style, u->id ? text_uid(text, (uint32_t)u->uid) : "", 10, false);
		newline(s);
	}
}

// What is left, to both; what one does not need goes to the other.
static void draw_both(struct screen *s)
{
	int left = lines_left(s) - (LINES >= 12), contexts = lines_wanted(&s->view.contexts, s->hide_contexts),
	    clients = lines_wanted(&s->view.clients, s->hide_clients);
	if (contexts + clients > left) {
		int half = left / 2;
		if (contexts <= half)
			clients = left - contexts;
		else if (clients <= half)
			contexts = left - clients;
		else
			contexts = left - half, clients = half;
	}
	draw_users(s, &s->view.contexts, false, s->hide_contexts ? 0 : contexts);
	draw_users(s, &s->view.clients, true, s->hide_clients ? 0 : clients);
}

// The table of workers gives way to one line where it would leave too little for those who are served.
static int lines_for_workers(const struct screen *s)
{
	int users = lines_wanted(&s->view.contexts, s->hide_contexts) + lines_wanted(&s->view.clients, s->hide_clients);
	return lines_left(s) - (LINES >= 12) - (users < 8 ? users : 8);
}

static void draw_help(struct screen *s)
{
	static const char *const lines[] = {
		"q        leave",
		"s        sort contexts and clients by requests, rows, bytes, name",
		"o w c l  hide and show operations, workers, contexts, clients",
		"+ -      look less often, more often",
		"p        hold the picture",
		"space    look now",
		"",
		"Times are inside the daemon, from taking a request to its completion.",
		"Workers: # busy, + spinning while they wait for work, . asleep.",
		"(others): contexts or clients beyond those counted one by one.",
	};
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		put(s, PLAIN, "%s", lines[i]);
		newline(s);
	}
}

static void draw(struct screen *s)
{
	erase();
	s->y = s->x = 0;
	draw_title(s);
	if (s->help) {
		draw_help(s);
	} else if (s->view.waiting) {
		put(s, BAD, "%s", s->view.why);
	} else {
		if (s->view.health.reason[0]) {
			put(s, s->view.health.alive ? WARN : BAD, "%s: %s", s->view.health.alive ? "not ready" : "NOT ANSWERING",
			    s->view.health.reason);
			newline(s);
		}
		if (lines_left(s) > 1)
			draw_pool(s);
		draw_reading(s);
		draw_operations(s);
		draw_workers(s, lines_for_workers(s));
		draw_both(s);
	}
	if (LINES >= 12) {
		s->y = LINES - 1;
		s->x = 0;
		put(s, DIM, "%s",
		    s->help ? "any key: back" : "q leave  s sort  o w c l hide and show  + - delay  p hold  h help");
	}
	refresh();
}

// ---- keys --------------------------------------------------------------------------------------------------------------
static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// False: the user leaves. *look: the picture is to be taken anew.
static bool act(struct screen *s, int key, bool *look)
{
	static const unsigned long delays[] = {100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000};
	enum { DELAYS = sizeof(delays) / sizeof(delays[0]) };
	if (s->help && key != KEY_RESIZE) {
		s->help = false;
		return key != 'q';
	}
	switch (key) {
	case 'q':
	case 'Q':
		return false;
	case 's':
		s->sort = (s->sort + 1) % TOP_SORTS;
		*look = !s->held;
		break;
	case 'o':
		s->hide_operations = !s->hide_operations;
		break;
	case 'w':
		s->hide_workers = !s->hide_workers;
		break;
	case 'c':
		s->hide_contexts = !s->hide_contexts;
		break;
	case 'l':
		s->hide_clients = !s->hide_clients;
		break;
	case 'p':
		s->held = !s->held;
		break;
	case ' ':
		*look = true;
		break;
	case 'h':
	case '?':
		s->help = true;
		break;
	case '+':
		for (int i = 0; i < DELAYS; i++)
			if (delays[i] > s->delay_ms) {
				s->delay_ms = delays[i];
				break;
			}
		break;
	case '-':
		for (int i = DELAYS; i--;)
			if (delays[i] < s->delay_ms) {
				s->delay_ms = delays[i];
				break;
			}
		break;
	}
	return true;
}

// Curses learns of a new size by a signal, which is lost if it comes while curses starts.
static void fit(void)
{
	struct winsize size;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row && size.ws_col &&
	    (size.ws_row != LINES || size.ws_col != COLS))
		resizeterm(size.ws_row, size.ws_col);
}

static void show(struct screen *s)
{
	uint64_t next = 0;
	for (bool stay = true; stay && !interrupted;) {
		bool look = !s->held && now_ms() >= next;
		if (look) {
			top_look(s->source, s->sort, &s->view);
			next = now_ms() + s->delay_ms;
		}
		fit();
		draw(s);
		uint64_t now = now_ms();
		struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
		int ready = poll(&input, 1, s->held ? -1 : next > now ? (int)(next - now) : 0);
		if (ready > 0 && (input.revents & (POLLHUP | POLLERR | POLLNVAL))) // the terminal is gone
			break;
		look = false;
		for (int key = getch(); stay && key != ERR; key = getch())
			stay = act(s, key, &look);
		if (look) {
			top_look(s->source, s->sort, &s->view);
			next = now_ms() + s->delay_ms;
		}
	}
}

int top_screen(struct top_source *source, unsigned long delay_ms)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
	struct screen *s = calloc(1, sizeof(*s)); // some 50 KB
	SCREEN *terminal = s ? newterm(NULL, stdout, stdin) : NULL;
	if (!terminal) {
		fprintf(stderr, "magicpigctl top: the terminal type '%s' is not known: set TERM, or use --batch\n",
		        term ? term : "");
		free(s);
		return CTL_FAILED;
	}
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	s->source = source;
	s->delay_ms = delay_ms;
	s->colours = has_colors() && !(no_color && *no_color) && start_color() == OK && use_default_colors() == OK;
	if (s->colours) {
		init_pair(1, COLOR_GREEN, -1);
		init_pair(2, COLOR_YELLOW, -1);
		init_pair(3, COLOR_RED, -1);
	}
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	timeout(0); // poll waits
	curs_set(0);
	show(s);
	endwin();
	delscreen(terminal);
	free(s);
	return CTL_OK;
}
