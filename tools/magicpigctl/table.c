#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

struct cell {
	size_t at; // in `text`
	uint32_t bytes, width;
};

struct table {
	size_t columns, cells, room;
	const char *const *titles;
	struct cell *cell;
	char *text; // of all cells: thousands of them are no thousands of allocations
	size_t text_bytes, text_room;
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
	size_t bytes = strlen(text);
	if (table->cells == table->room) {
		table->room = table->room ? table->room * 2 : 64;
		table->cell = check_memory(reallocarray(table->cell, table->room, sizeof(*table->cell)));
	}
	if (bytes > table->text_room - table->text_bytes) {
		table->text_room = 2 * (table->text_room + bytes);
		table->text = check_memory(realloc(table->text, table->text_room));
	}
	memcpy(table->text + table->text_bytes, text, bytes);
	table->cell[table->cells++] =
		(struct cell){.at = table->text_bytes, .bytes = (uint32_t)bytes, .width = (uint32_t)text_width(text)};
	table->text_bytes += bytes;
}

void table_format(struct table *table, const char *format, ...)
{
	char text[TEXT_SHORT];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	table_cell(table, text);
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
	for (size_t i = column; i < table->cells; i += table->columns)
		width = table->cell[i].width > width ? table->cell[i].width : width;
	return width;
}

static void pad(FILE *file, size_t columns)
{
	static const char spaces[] = "                                                                ";
	for (size_t n; columns; columns -= n) {
		n = columns < sizeof(spaces) - 1 ? columns : sizeof(spaces) - 1;
		fwrite(spaces, 1, n, file);
	}
}

static void print_cell(const struct table *table, FILE *file, size_t column, const char *text, const struct cell *cell,
                       size_t width)
{
	size_t fill = width - cell->width;
	bool last = column + 1 == table->columns, right = right_aligned(table, column);
	if (right)
		pad(file, fill);
	fwrite(text, 1, cell->bytes, file);
	if (last)
		putc('\n', file);
	else
		pad(file, (right ? 0 : fill) + 2);
}

void table_print(const struct table *table, FILE *file)
{
	size_t *widths = check_memory(calloc(table->columns, sizeof(*widths)));
	for (size_t c = 0; c < table->columns; c++)
		widths[c] = column_width(table, c);
	fputs(text_on(TEXT_DIM), file);
	for (size_t c = 0; c < table->columns; c++) {
		const char *text = title(table, c);
		struct cell cell = {.bytes = (uint32_t)strlen(text), .width = (uint32_t)text_width(text)};
		print_cell(table, file, c, text, &cell, widths[c]);
	}
	fputs(text_off(), file);
	for (size_t i = 0; i < table->cells; i++)
		print_cell(table, file, i % table->columns, table->text + table->cell[i].at, &table->cell[i],
		           widths[i % table->columns]);
	free(widths);
}

void table_destroy(struct table *table)
{
	if (!table)
		return;
	free(table->cell);
	free(table->text);
	free(table);
}
