// One page, nothing loaded from elsewhere: what was gained, the curves as a drawing, and the layers.
#include <inttypes.h>
#include <math.h>

#include "html.h"
#include "tune.h"

// ---- the drawing -----------------------------------------------------------------------------------------------------
enum { WIDE = 640, HIGH = 400, LEFT = 70, RIGHT = 20, TOP = 20, BOTTOM = 50 };
struct frame {
	double x0, x1, y0, y1; // decimal logarithms
};

static bool drawable(struct tune_total total)
{
	return total.ms > 0 && total.error2 > 0;
}

static void widen(struct frame *f, struct tune_total total)
{
	if (!drawable(total))
		return;
	f->x0 = fmin(f->x0, log10(total.ms));
	f->x1 = fmax(f->x1, log10(total.ms));
	f->y0 = fmin(f->y0, log10(total.error2) / 2);
	f->y1 = fmax(f->y1, log10(total.error2) / 2);
}

static double place_x(const struct frame *f, double log_ms)
{
	return LEFT + (log_ms - f->x0) / (f->x1 - f->x0) * (WIDE - LEFT - RIGHT);
}

static double place_y(const struct frame *f, double log_error)
{
	return TOP + (f->y1 - log_error) / (f->y1 - f->y0) * (HIGH - TOP - BOTTOM);
}

static void draw_line(FILE *out, const struct frame *f, const struct tune_total *total, int count, const char *class)
{
	bool any = false;
	for (int i = 0; i < count; i++) {
		if (!drawable(total[i]))
			continue;
		fprintf(out, "%s%.1f,%.1f", any ? " " : "<polyline points=\"", place_x(f, log10(total[i].ms)),
		        place_y(f, log10(total[i].error2) / 2));
		any = true;
	}
	if (any)
		fprintf(out, "\" class=\"%s\"/>\n", class);
	for (int i = 0; i < count; i++)
		if (drawable(total[i]))
			fprintf(out,
			        "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" class=\"%s\"><title>%.3g ms, %.3g "
			        "%%</title></circle>\n",
			        place_x(f, log10(total[i].ms)), place_y(f, log10(total[i].error2) / 2), class, total[i].ms,
			        100 * sqrt(total[i].error2));
}

static void draw_point(FILE *out, const struct frame *f, struct tune_total total, const char *name)
{
	if (!drawable(total))
		return;
	double x = place_x(f, log10(total.ms)), y = place_y(f, log10(total.error2) / 2);
	fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"6\" class=\"%s\"/><text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x, y, name,
	        x + 10, y - 6, name);
}

// Ticks at 1, 2 and 5 of every power of ten.
static void draw_ticks(FILE *out, const struct frame *f, bool x)
{
	double from = x ? f->x0 : f->y0, to = x ? f->x1 : f->y1;
	static const double digits[] = {1, 2, 5};
	for (int power = (int)floor(from) - 1; power <= (int)ceil(to); power++)
		for (int d = 0; d < 3; d++) {
			double value = digits[d] * pow(10, power), at = log10(value);
			if (at < from || at > to)
				continue;
			if (x)
				fprintf(out,
				        "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"grid\"/><text x=\"%.1f\" "
				        "y=\"%d\" "
				        "text-anchor=\"middle\">%.3g</text>\n",
				        place_x(f, at), TOP, place_x(f, at), HIGH - BOTTOM, place_x(f, at), HIGH - BOTTOM + 16,
				        value);
			else
				fprintf(out,
				        "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" class=\"grid\"/><text x=\"%d\" "
				        "y=\"%.1f\" "
				        "text-anchor=\"end\">%.3g %%</text>\n",
				        LEFT, place_y(f, at), WIDE - RIGHT, place_y(f, at), LEFT - 6, place_y(f, at) + 4,
				        100 * value);
		}
}

static void draw(FILE *out, const struct tune_result *r)
{
	struct frame f = {INFINITY, -INFINITY, INFINITY, -INFINITY};
	for (int i = 0; i < r->uniform_count; i++)
		widen(&f, r->uniform[i]);
	for (int i = 0; i < r->tuned_count; i++)
		widen(&f, r->tuned[i]);
	widen(&f, r->before.check);
	widen(&f, r->after.check);
	if (!isfinite(f.x0)) {
		fputs("<p>All answers are exact: there is no curve.</p>\n", out);
		return;
	}
	f.x0 -= .03, f.x1 += .03, f.y0 -= .03, f.y1 += .03;
	fprintf(out,
	        "<figure><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"error against time\">\n"
	        "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" class=\"frame\"/>\n",
	        WIDE, HIGH, LEFT, TOP, WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM);
	draw_ticks(out, &f, true);
	draw_ticks(out, &f, false);
	fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">ms a token</text>\n", (WIDE + LEFT - RIGHT) / 2, HIGH - 12);
	draw_line(out, &f, r->uniform, r->uniform_count, "uniform");
	draw_line(out, &f, r->tuned, r->tuned_count, "tuned");
	draw_point(out, &f, r->before.check, "before");
	draw_point(out, &f, r->after.check, "after");
	fputs("</svg><figcaption>Error of the merged output, root mean square over layers, heads and queries that nothing was "
	      "chosen by. Grey: "
	      "all layers by the daemon's rule, at one error target after the other. Blue: tuned for as much "
	      "time.</figcaption></figure>\n",
	      out);
}

// ---- the table -------------------------------------------------------------------------------------------------------
static void way_cells(FILE *out, const struct tune *t, int layer, int way)
{
	char text[64];
	struct tune_point p = tune_point_of(t, layer, way, -1, TUNE_CHECK);
	fprintf(out, "<td class=\"how\">%s</td><td>%.3g %%</td><td>%.3g %%</td><td>%.3g</td>",
	        tune_way_text(&t->layer[layer].way[way], text), 100 * tune_share(t, layer, way), 100 * sqrt(p.error2), p.ms);
}

static void draw_layers(FILE *out, const struct tune *t, const struct tune_result *r)
{
	fputs("<h2>Layers</h2>\n<table><thead><tr><th>layer</th><th "
	      "class=\"how\">before</th><th>rows</th><th>error</th><th>ms</th><th class=\"how\">"
	      "after</th>"
	      "<th>rows</th><th>error</th><th>ms</th><th>rows, by seed</th></tr></thead><tbody>\n",
	      out);
	for (int i = 0; i < t->layers; i++) {
		double least = 1, most = 0;
		for (int s = 0; s < t->seeds; s++) {
			least = fmin(least, tune_share(t, i, r->of_seed[s].way[i]));
			most = fmax(most, tune_share(t, i, r->of_seed[s].way[i]));
		}
		fprintf(out, "<tr><th>%d</th>", t->layer[i].number);
		way_cells(out, t, i, r->before.way[i]);
		way_cells(out, t, i, r->after.way[i]);
		if (most > least)
			fprintf(out, "<td>%.3g to %.3g %%</td></tr>\n", 100 * least, 100 * most);
		else
			fprintf(out, "<td>%.3g %%</td></tr>\n", 100 * most);
	}
	fputs("</tbody></table>\n", out);
}

void tune_html(FILE *out, const struct tune *t, const struct tune_result *r)
{
	fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
	      "content=\"width=device-width\"><title>",
	      out);
	html_text(out, t->info.name);
	fputs(" &ndash; magicpigctl tune</title>\n<style>\n"
	      "body{font:15px/1.45 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:60em;margin:2em auto;padding:0 "
	      "1em}\n"
	      "h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.1em;margin:1.5em 0 .3em}figure{margin:1em 0}\n"
	      "figcaption{color:#444;max-width:45em}svg{max-width:46em;width:100%}svg text{font:12px "
	      "system-ui,sans-serif;fill:#444}\n"
	      ".frame{fill:none;stroke:#999}.grid{stroke:#e6e6e6}polyline{fill:none;stroke-width:1.5}\n"
	      "polyline.uniform{stroke:#8a8a8a}polyline.tuned{stroke:#2b6cb0}circle.uniform{fill:#8a8a8a}circle.tuned{fill:#"
	      "2b6cb0}\n"
	      "circle.before{fill:none;stroke:#1b1b1b;stroke-width:2}circle.after{fill:#d9822b}\n"
	      "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.15em .6em;text-align:right}\n"
	      "th{font-weight:normal;color:#555}.how{text-align:left}\n"
	      "td{white-space:nowrap}.answer{font-size:1.1em;border-left:4px solid #4a7ab5;padding:.3em "
	      ".8em;background:#f2f6fb}\n"
	      "</style></head><body>\n<h1>",
	      out);
	html_text(out, t->info.name);
	fprintf(out,
	        "</h1>\n<p>%" PRIu64
	        " tokens, %d layers, %d seeds from %u.</p>\n<p class=\"answer\">%sBefore: error %.3g %%, %.3g ms a "
	        "token. <b>After: error %.3g %%, %.3g ms.</b></p>\n",
	        t->info.committed, t->layers, t->seeds, t->seed, r->reached ? "" : "Not reached; this is the best. ",
	        100 * sqrt(r->before.check.error2), r->before.check.ms, 100 * sqrt(r->after.check.error2), r->after.check.ms);
	draw(out, r);
	draw_layers(out, t, r);
	fprintf(out,
	        "<p>Times are reckoned at %.3g us a request, %.3g ns a row attended densely, %.3g ns a row looked at, %.3g ns a "
	        "row read, "
	        "%.3g ns a hash bit of a query (each row for each KV head).</p>\n</body></html>\n",
	        t->rates.request / 1e3, t->rates.dense, t->rates.scan, t->rates.read, t->rates.lookup);
}
