// Text in a page.
#ifndef MAGICPIGCTL_HTML_H
#define MAGICPIGCTL_HTML_H

#include <stdio.h>

void html_text(FILE *out, const char *text); // what means something in HTML is escaped, in attributes, too

#endif
