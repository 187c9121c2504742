// A file in which a program leaves what it has worked on for minutes: that it can be written is known before the work, and the file that was there
// stays until the new one is whole.
#ifndef TOOLS_COMMON_OUTPUT_H
#define TOOLS_COMMON_OUTPUT_H

#include <stdio.h>

// Whether output_write could write `path` now: makes a file beside it and removes it again. 0, or -1 with errno. `path` itself is not touched.
int output_check(const char *path);
// Calls write(out, argument) on a file beside `path`, syncs it and renames it into place, with the mode of the file it replaces. What is not a regular
// file (a pipe, /dev/stdout) is written to as it is; of a symbolic link, what it points to is replaced. 0, or -1 with errno, with everything as it was.
int output_write(const char *path, void (*write)(FILE *out, const void *argument), const void *argument);

#endif
