#include <stdlib.h>
#include <string.h>

#include "text.h"

struct table {
	size_t columns, cells, room;
	const char *const *titles;
	char **cell;
};

static void *check_memory(void *memory)
{
	if (!memory) {
		fputs("magicpigctl: out of memory\n", stderr);
		exit(1);
	}
	return memory;
}

struct table *table_create(size_t columns, const char *const *titles)
{
	struct table *table = check_memory(calloc(1, sizeof(*table)));
	table->columns = columns;
	table->titles = titles;
	return table;
}

void table_cell(struct table *table, const char *text)
{
	if (table->cells == table->room) {
		table->room = table->room ? table->room * 2 : 64;
		table->cell = check_memory(reallocarray(table->cell, table->room, sizeof(*table->cell)));
	}
	table->cell[table->cells++] = check_memory(strdup(text));
}

static bool right_aligned(const struct table *table, size_t column)
{
	return table->titles[column][0] == '>';
}

static const char *title(const struct table *table, size_t column)
{
	return table->titles[column] + right_aligned(table, column);
}

static size_t column_width(const struct table *table, size_t column)
{
	size_t width = text_width(title(table, column));
	for (size_t i = column; i < table->cells; i += table->columns) {
		size_t cell = text_width(table->cell[i]);
		width = cell > width ? cell : width;
	}
	return width;
}

static void pad(FILE *file, size_t columns)
{
	while (columns--)
		putc(' ', file);
}

static void print_cell(const struct table *table, FILE *file, size_t column, const char *text, size_t width)
{
	size_t fill = width - text_width(text);
	bool last = column + 1 == table->columns;
	if (right_aligned(table, column))
		pad(file, fill);
	fputs(text, file);
	if (!right_aligned(table, column) && !last)
		pad(file, fill);
	fputs(last ? "\n" : "  ", file);
}

void table_print(const struct table *table, FILE *file)
{
	size_t *widths = check_memory(calloc(table->columns, sizeof(*widths)));
	for (size_t c = 0; c < table->columns; c++)
		widths[c] = column_width(table, c);
	fputs(text_on(TEXT_DIM), file);
	for (size_t c = 0; c < table->columns; c++)
		print_cell(table, file, c, title(table, c), widths[c]);
	fputs(text_off(), file);
	for (size_t i = 0; i < table->cells; i++)
		print_cell(table, file, i % table->columns, table->cell[i], widths[i % table->columns]);
	free(widths);
}

void table_destroy(struct table *table)
{
	if (!table)
		return;
	for (size_t i = 0; i < table->cells; i++)
		free(table->cell[i]);
	free(table->cell);
	free(table);
}
