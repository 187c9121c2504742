// Writes the options of the daemon as a part of magicpigd.conf(5), in scdoc, from the table in config/options.c.
#include <stdio.h>
#include <string.h>

#include "config/options.h"

static void put(const char *text)
{
	for (; *text; text++) {
		if (strchr("_*`\\", *text))
			putchar('\\');
		putchar(*text);
	}
}

int main(void)
{
	struct options defaults;
	struct option_view option;
	const char *section = "";
	options_defaults(&defaults);
	for (size_t i = 0; options_view(&defaults, i, &option); i++) {
		if (strcmp(section, option.section) != 0)
			printf("## [%s]\n", option.section);
		section = option.section;
		printf("\n*");
		put(option.key);
		printf("* = ");
		put(option.fallback);
		printf("\n\t");
		put(option.help);
		printf(" Allowed: ");
		put(option.allowed);
		printf(".%s\n\n", option.live ? " Can change while the daemon runs." : "");
	}
	return 0;
}
