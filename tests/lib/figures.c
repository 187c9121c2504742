#include "tests/lib/figures.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

// What each test of this program is doing, in memory that the program shares with the tests it forks.
#define MOST 64
static struct doing {
	pid_t pid;
	char text[200];
} * doing;
static pid_t program;

static void say(char kind, const char *name, double value)
{
	const char *path = getenv("MPIG_FIGURES");
	char line[200];
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
	if (fd < 0)
		return;
	int n = snprintf(line, sizeof line, "%c %.10g %s\n", kind, value, name);
	if (write(fd, line, (size_t)n) != n)
		perror(path);
	close(fd);
}

void figures_add(const char *name, double value)
{
	say('+', name, value);
}

void figures_put(const char *name, double value)
{
	say('=', name, value);
}

static void tell(void)
{
	for (int i = 0; getpid() == program && i < MOST; i++)
		if (doing[i].pid)
			fprintf(stderr, "a test ended at %s\n", doing[i].text);
}

__attribute__((constructor)) static void begin(void)
{
	void *memory = mmap(NULL, MOST * sizeof *doing, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return;
	doing = memory;
	program = getpid();
	atexit(tell);
}

void figures_doing(const char *format, ...)
{
	int i = 0;
	while (doing && i < MOST && doing[i].pid != getpid())
		i++;
	if (i == MOST)
		for (i = 0; i < MOST && doing[i].pid; i++)
			;
	if (!doing || i == MOST)
		return;
	va_list args;
	va_start(args, format);
	vsnprintf(doing[i].text, sizeof doing[i].text, format, args);
	va_end(args);
	doing[i].pid = doing[i].text[0] ? getpid() : 0;
}
