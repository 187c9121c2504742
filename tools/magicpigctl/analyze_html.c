// One page, nothing loaded from elsewhere: what there is to say, and four heat maps of layers by KV heads.
#include "analyze.h"

#include <inttypes.h>
#include <math.h>

#include "html.h"

struct map {
	const char *title, *about;
	double (*value)(const struct analysis *a, const struct analyzed_head *h); // what is printed
	const char *format;
	double (*goodness)(double value); // 0 bad to 1 good
};

static double clamp(double x)
{
	return x < 0 ? 0 : x > 1 ? 1 : x;
}

static double gain(const struct analysis *a, const struct analyzed_head *h)
{
	(void)a;
	return h->gain;
}

static double needed(const struct analysis *a, const struct analyzed_head *h)
{
	(void)a;
	return 100 * h->needed;
}

static double error(const struct analysis *a, const struct analyzed_head *h)
{
	(void)a;
	return 100 * h->error;
}

static double mass(const struct analysis *a, const struct analyzed_head *h)
{
	(void)a;
	return 100 * (double)h->seen->mass_1;
}

static double good_gain(double value)
{
	return clamp(log(value) / log(16));
}

static double good_needed(double value)
{
	return clamp(1 - log(value / .5) / log(100));
}

static double good_error(double value)
{
	return clamp(1 - log(value / .5) / log(40));
}

static double good_mass(double value)
{
	return clamp(value / 100);
}

static const struct map maps[] = {
	{"Gain", "How many times less is read than by dense attention, at the error asked for; from 1.5 on sampling pays.", gain,
         "%.1f", good_gain},
	{"Rows needed, %", "Share of the rows a query head reads at the error asked for.", needed, "%.1f", good_needed},
	{"Error, %", "Standard deviation of a head's mass, relative, at the budget asked about.", error, "%.1f", good_error},
	{"Mass in the largest 1 %, %", "How concentrated attention is.", mass, "%.0f", good_mass},
};

static void draw_cell(FILE *out, const struct analysis *a, const struct map *map, const struct analyzed_head *h)
{
	if (!h->known) {
		fputs("<td class=\"none\" title=\"not seen in use\">&ndash;</td>", out);
		return;
	}
	double value = map->value(a, h), good = map->goodness(value);
	// From red over a light yellow to blue, which those who do not tell red from green tell apart, too; the text is dark throughout.
	int red = (int)(good < .5 ? 244 : 244 - (good - .5) * 2 * 110),
	    blue = (int)(good < .5 ? 120 + good * 2 * 80 : 200 + (good - .5) * 90);
	int green = (int)(good < .5 ? 150 + good * 2 * 85 : 235 - (good - .5) * 2 * 40);
	fprintf(out,
	        "<td style=\"background:rgb(%d,%d,%d)\" title=\"layer %d, KV head %d: %" PRIu64
	        " rows, n_eff %.0f, %.1f %% in 1 %%, noise %.2f, ",
	        red, green, blue, h->seen->layer, h->seen->kv_head, h->seen->rows, (double)h->seen->n_eff,
	        100 * (double)h->seen->mass_1, (double)h->seen->noise);
	fprintf(out, "needs %.2f %%, gain %.2f\">", 100 * h->needed, h->gain);
	fprintf(out, map->format, value);
	fputs("</td>", out);
}

static void draw_map(FILE *out, const struct analysis *a, const struct map *map)
{
	int most = 0;
	for (int i = 0; i < a->layers; i++)
		most = a->layer[i].kv_heads > most ? a->layer[i].kv_heads : most;
	fprintf(out, "<section><h2>%s</h2><p>%s</p>\n<table class=\"map\"><thead><tr><th>layer</th>", map->title, map->about);
	for (int h = 0; h < most; h++)
		fprintf(out, "<th>%d</th>", h);
	fputs("</tr></thead><tbody>\n", out);
	for (int l = 0, at = 0; l < a->layers; l++) {
		fprintf(out, "<tr><th>%d</th>", a->layer[l].number);
		for (int h = 0; h < a->layer[l].kv_heads; h++)
			draw_cell(out, a, map, &a->head[at + h]);
		at += a->layer[l].kv_heads;
		fputs("</tr>\n", out);
	}
	fputs("</tbody></table></section>\n", out);
}

static void draw_layers(FILE *out, const struct analysis *a)
{
	fputs("<section><h2>Layers</h2><p>Medians of their heads; the error is the worst "
	      "head's.</p>\n<table><thead><tr><th>layer</th>"
	      "<th>n_eff</th><th>in 1 %</th><th>error</th><th>needs</th><th>gain</th><th>advice</th></tr></thead><tbody>\n",
	      out);
	for (int i = 0; i < a->layers; i++) {
		const struct analyzed_layer *l = &a->layer[i];
		if (l->known)
			fprintf(out,
			        "<tr><th>%d</th><td>%.0f</td><td>%.1f %%</td><td>%.2f %%</td><td>%.2f "
			        "%%</td><td>%.2f</td><td>%s</td></tr>\n",
			        l->number, l->n_eff, 100 * l->mass_1, 100 * l->error, 100 * l->needed, l->gain,
			        l->pays ? "sample" : "stay dense");
		else
			fprintf(out, "<tr><th>%d</th><td colspan=\"6\">not seen in use</td></tr>\n", l->number);
	}
	fputs("</tbody></table></section>\n", out);
}

void analyze_html(FILE *out, const struct analysis *a)
{
	fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
	      "content=\"width=device-width\"><title>",
	      out);
	html_text(out, a->info.name);
	fputs(" &ndash; magicpigctl analyze</title>\n<style>\n"
	      "body{font:15px/1.45 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:75em;margin:2em auto;padding:0 "
	      "1em}\n"
	      "h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin:0}section p{margin:.1em 0 .5em;color:#444}\n"
	      ".maps{display:flex;flex-wrap:wrap;gap:2em}section{margin-top:1.5em}.maps section{max-width:28em}\n"
	      "table{border-collapse:separate;border-spacing:2px;font-variant-numeric:tabular-nums}\n"
	      "td,th{padding:.15em .5em;text-align:right;white-space:nowrap}th{font-weight:normal;color:#555}\n"
	      ".map td{min-width:2.4em;text-align:center;border-radius:2px}.none{background:#eee;color:#777}\n"
	      ".answer{font-size:1.1em;border-left:4px solid #4a7ab5;padding:.3em .8em;background:#f2f6fb}\n"
	      "</style></head><body>\n<h1>",
	      out);
	html_text(out, a->info.name);
	fprintf(out,
	        "</h1>\n<p>%" PRIu64 " tokens committed; %d of %d KV heads were seen in use, on up to %.0f rows.</p>\n"
	        "<p class=\"answer\">At an error of %.3g %%, %.3g %% of the rows are read. <b>%d of %d layers gain by "
	        "sampling</b>; "
	        "with the others dense, attention reads <b>%.3g times</b> less than dense attention everywhere.</p>\n",
	        a->info.committed, a->known, a->heads, a->rows, 100 * a->error_target, 100 * a->needed, a->paying, a->layers,
	        a->gain);
	fputs("<div class=\"maps\">\n", out);
	for (size_t i = 0; i < sizeof(maps) / sizeof(maps[0]); i++)
		draw_map(out, a, &maps[i]);
	draw_layers(out, a);
	fprintf(out,
	        "</div>\n<p>Error: standard deviation of the mass of a head's rows, relative; asked for %.3g %%, and looked at "
	        "where "
	        "%.3g %% of the rows are read. Predicted from what answers have shown since the daemon started; each answer "
	        "carries an "
	        "estimate of its own. The error of the output is larger where values cancel out: trace replay --exact measures "
	        "it. Bytes of gathered rows count twice.</p>\n</body></html>\n",
	        100 * a->error_target, 100 * a->budget);
}
