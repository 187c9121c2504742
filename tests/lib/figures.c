#include "tests/lib/figures.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char doing[200];

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
	if (doing[0])
		fprintf(stderr, "it was at %s\n", doing);
}

void figures_doing(const char *format, ...)
{
	static bool registered;
	va_list args;
	va_start(args, format);
	vsnprintf(doing, sizeof doing, format, args);
	va_end(args);
	if (!registered)
		atexit(tell);
	registered = true;
}
