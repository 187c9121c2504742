// How magicpigctl writes for people: sizes, times, colours, tables.
#ifndef MAGICPIGCTL_TEXT_H
#define MAGICPIGCTL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TEXT_SHORT 64 // bytes that every text_* below needs at most

// Decides once whether standard output gets colours: a terminal, TERM is not "dumb", NO_COLOR is unset or empty.
void text_init(void);

enum text_style { TEXT_PLAIN, TEXT_BOLD, TEXT_DIM, TEXT_GOOD, TEXT_WARN, TEXT_BAD };
const char *text_on(enum text_style style); // escape sequences, or ""
const char *text_off(void);

char *text_bytes(char out[TEXT_SHORT], uint64_t bytes);                  // "12.3 GiB"
char *text_count(char out[TEXT_SHORT], uint64_t count);                  // "6,412"
char *text_rate(char out[TEXT_SHORT], double per_second);                // "3.42 k"
char *text_duration(char out[TEXT_SHORT], uint64_t ns);                  // "2 h 5 min"
char *text_latency(char out[TEXT_SHORT], double ns);                     // "4.2 us"
char *text_ago(char out[TEXT_SHORT], uint64_t then_ns, uint64_t now_ns); // "3 min ago", "never" for 0
char *text_share(char out[TEXT_SHORT], double share);                    // "4.1 %"
char *text_uid(char out[TEXT_SHORT], uint32_t uid);                      // the name, or the number
char *text_gid(char out[TEXT_SHORT], uint32_t gid);
char *text_utc(char out[TEXT_SHORT], uint64_t realtime_ns); // "2026-01-31 17:05:09 UTC"

// Copies at most `bytes` - 1 bytes of a text from outside, with '?' for whatever this locale's terminal would not print.
char *text_printable(char *out, size_t bytes, const char *text);
// Columns it takes on a terminal.
size_t text_width(const char *text);

// A bar of `cells` characters between brackets, on one line, no newline.
void text_bar(FILE *file, double share, int cells);

// A table whose columns are as wide as their widest cell. Cells are copied; a title that begins with '>' makes its column
// right-aligned. Memory that runs out ends the process with a message.
struct table;
struct table *table_create(size_t columns, const char *const *titles);
void table_cell(struct table *table, const char *text);                                                // row by row
__attribute__((format(printf, 2, 3))) void table_format(struct table *table, const char *format, ...); // at most TEXT_SHORT
void table_print(const struct table *table, FILE *file);
void table_destroy(struct table *table); // NULL is allowed

#endif
