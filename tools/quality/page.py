"""One HTML page with everything in it: tables and inline SVG, no scripts, no network."""

from __future__ import annotations

import html
import math
from typing import Iterable, Sequence

from targets import Line

PALETTE = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8a5fbf", "#c98a1b", "#4c8c99", "#7a4a2b", "#c2559d", "#5b6770", "#93a13a", "#2b4a9b", "#b5651d")
W, H = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 42

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d5dae0;--soft:#667}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--paper:#15181c;--line:#3a4048;--soft:#99a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1440px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.7em}h2{margin-top:2em;border-bottom:1px solid var(--line)}table{border-collapse:collapse;font-size:.86em}
.wide{overflow-x:auto}td,th{padding:.15em .7em;text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}
tr:nth-child(even){background:color-mix(in srgb,var(--line) 30%,transparent)}.plots{display:flex;flex-wrap:wrap;gap:1.2em}
figure{margin:0;max-width:100%}figcaption{font-size:.9em;font-weight:600}svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:11px system-ui,sans-serif}
.yes{color:#2a9d5c;font-weight:600}.no{color:#d1495b;font-weight:600}.none{color:var(--soft)}.key{font-size:.85em;color:var(--soft)}
.key b{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .3em 0 1em}
"""


def make(report: dict) -> str:
    places = list(dict.fromkeys((line["model"], line["text"]) for line in report["summary"]))
    families = list(dict.fromkeys(line["family"] for line in report["summary"]))
    colour = {family: PALETTE[i % len(PALETTE)] for i, family in enumerate(families)}
    body = [_intro(report), "<h2>Targets</h2>", _targets(report["targets"]), _refused(report["refused"])]
    for place in places:
        lines = [line for line in report["summary"] if (line["model"], line["text"]) == place]
        body += [f"<h2>{html.escape(' '.join(place))}</h2>", _key(colour, lines), '<div class="plots">', *_plots(lines, colour)]
        body += [_heat(m) for m in report["maps"] if (m["model"], m["text"]) == place]
        body += [_scatter(e) for e in report["estimates"] if (e["model"], e["text"]) == place]
        body += ["</div>", _table(lines)]
        body += [_study(study) for study in report["studies"] if (study["model"], study["text"]) == place]
    return f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>magicpigd: quality</title><style>{STYLE}</style></head><body>{"".join(body)}</body></html>\n'


def _intro(report: dict) -> str:
    facts = "; ".join(f"{html.escape(str(k))} {html.escape(str(v))}" for k, v in report["machine"].items())
    return (
        "<h1>magicpigd: how near its answers are to full attention</h1>"
        f'<p class="key">{facts}</p><p>Error: relative L2 error of one head\'s output after the daemon\'s part is merged with the exact part (sinks and recent '
        "window), against exact attention over the same rows. Bytes: what the daemon read for one step of one layer, index included, and the exact part's rows, "
        "as a share of all rows. KL: of the next-token distribution of the whole model with full attention from the one with sampled attention. "
        "Hollow points look at every key to choose (oracles): bounds, not competitors.</p>"
    )


def _targets(lines: list[dict]) -> str:
    word = {True: ("yes", "yes"), False: ("no", "NO"), None: ("none", "not counted")}
    rows = "".join(
        f'<tr><td>{html.escape(l["what"])}</td><td>{html.escape(l["where"])}</td><td class="{word[l["met"]][0]}">{word[l["met"]][1]}</td><td>{html.escape(l["figures"])}</td></tr>'
        for l in lines
    )
    return f'<div class="wide"><table><tr><th>target</th><th>where</th><th>met</th><th>figures</th></tr>{rows}</table></div>'


def _refused(items: list[dict]) -> str:
    names = sorted({(item["setting"], item["reason"]) for item in items})
    return "".join(f'<p class="key">Not run: {html.escape(name)} ({html.escape(reason)}).</p>' for name, reason in names)


def _key(colour: dict[str, str], lines: list[dict]) -> str:
    present = dict.fromkeys(line["family"] for line in lines)
    return '<p class="key">' + "".join(f'<b style="background:{colour[f]}"></b>{html.escape(f)}' for f in present) + "</p>"


COLUMNS = ("setting", "rows", "bytes", "&micro;s", "median", "p95", "p99", "LSE RMS", "heavy rows read", "est. / true", "KL mean", "KL p95", "same top", "KL over seeds")


def _table(lines: list[dict]) -> str:
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in _cells(line)) + "</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{"".join(f"<th>{c}</th>" for c in COLUMNS)}</tr>{rows}</table></div>'


def _cells(line: dict) -> list[str]:
    err, kl, heavy, coverage = line["err"], line.get("kl"), line.get("heavy"), line.get("coverage")
    return [
        html.escape(line["setting"]), f"{line['kept']:.2%}", f"{line['bytes_share']:.1%}", f"{line['us']:.0f}",
        *(f"{err[q]:.4f}" for q in ("median", "p95", "p99")), f"{line['lse_rms']:.4f}",
        f"{heavy['found']:.2%} of {heavy['events']:,}" if heavy else "", f"{coverage['quantiles'][1]:.2f}" if coverage else "",
        *((f"{kl['mean']:.2g}", f"{kl['p95']:.2g}", f"{kl['top1']:.1%}", f"{kl['seed_spread'][0]:.2g} to {kl['seed_spread'][1]:.2g}") if kl else ("",) * 4),
    ]


def _study(study: dict) -> str:
    rows = lambda cells: "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in cells)
    inclusion = rows(
        (f"{p['pi'][0]:.5f} to {p['pi'][1]:.5f}", p["rows"], f"{p['expected']:,.0f}", f"{p['read']:,}", f"{p['z']:+.2f}") for p in study["inclusion"]
    )
    kept = rows(
        (f"{v['eps']:g}, {v['delta']:g}", f"{v['broken']:.2%} of {v['heads']}", f"{v['violations']:.2%}", f"{v['worst']:.1%}", f"{v['kept']:.1%}")
        for v in study["verified"]
    )
    bias = max(abs(b["mean"] - 1) / b["standard_error"] for b in study["mass_bias"])
    return (
        f'<p class="key">exp(LSE), b = 2 at 1 %, first document: the mean of many draws is within {bias:.1f} standard errors of the truth for each of {len(study["mass_bias"])} heads.</p>'
        f'<div class="plots"><table><tr><th>pi</th><th>rows</th><th>reads expected</th><th>read</th><th>z</th></tr>{inclusion}</table>'
        f"<table><tr><th>verified: eps, delta</th><th>heads that break it</th><th>answers</th><th>worst head</th><th>rows</th></tr>{kept}</table></div>"
    )


# ---- plots


class Axis:
    """A logarithmic axis from pixel a to pixel b."""

    def __init__(self, values: Iterable[float], a: float, b: float):
        usable = [v for v in values if v > 0] or [1.0]
        low, high = math.log10(min(usable)), math.log10(max(usable))
        pad = 0.06 * (high - low) + 0.04
        self.low, self.high, self.a, self.b = low - pad, high + pad, a, b

    def __call__(self, value: float) -> float:
        return self.a + (math.log10(value) - self.low) / (self.high - self.low) * (self.b - self.a)

    def ticks(self) -> list[float]:
        steps = (1, 2, 5) if self.high - self.low < 2.2 else (1,)
        every = [s * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1) for s in steps]
        return [t for t in every if self.low <= math.log10(t) <= self.high]


def _frame(x: Axis, y: Axis, x_title: str, y_title: str, share: bool) -> str:
    parts = []
    for t in x.ticks():
        label = f"{100 * t:g} %" if share else f"{t:g}"
        parts.append(f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{H - BOTTOM}" stroke="var(--line)"/><text x="{x(t):.1f}" y="{H - BOTTOM + 14}" text-anchor="middle">{label}</text>')
    for t in y.ticks():
        parts.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="var(--line)"/><text x="{LEFT - 5}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    parts.append(f'<text x="{(LEFT + W - RIGHT) / 2}" y="{H - 8}" text-anchor="middle">{html.escape(x_title)}</text>')
    parts.append(f'<text transform="translate(13 {(TOP + H - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_title)}</text>')
    return "".join(parts)


def _figure(caption: str, inner: str, height: float = H) -> str:
    return f'<figure><figcaption>{html.escape(caption)}</figcaption><svg viewBox="0 0 {W} {height}" width="{W}" height="{height}" role="img" aria-label="{html.escape(caption)}">{inner}</svg></figure>'


def _plots(lines: list[dict], colour: dict[str, str]) -> list[str]:
    sampled = [line for line in lines if line["kept"] > 0 and line["proposal"] != "dense"]
    error, kl = (lambda l: l["err"]["median"]), (lambda l: l["kl"]["mean"])
    with_kl = [line for line in sampled if "kl" in line]
    window = next((line["kl"]["mean"] for line in lines if line["setting"] == "window" and "kl" in line), None)
    out = [
        _curves("Error against rows", sampled, lambda l: l["kept"], error, "rows read (share)", "median error", colour),
        _curves("p95 of the error against rows", sampled, lambda l: l["kept"], lambda l: l["err"]["p95"], "rows read (share)", "p95 error", colour),
        _curves("Error against bytes read", sampled, lambda l: l["bytes_share"], error, "bytes read (share of all rows)", "median error", colour),
    ]
    if with_kl:
        out.append(_curves("KL against rows", with_kl, lambda l: l["kl"]["kept"], kl, "rows read (share)", "KL mean (nats)", colour, window))
        out.append(_curves("KL against bytes read", with_kl, lambda l: l["bytes_share"], kl, "bytes read (share of all rows)", "KL mean (nats)", colour, window))
    return out


def _curves(caption: str, lines: list[dict], cost, value, x_title: str, y_title: str, colour: dict[str, str], level: float | None = None) -> str:
    lines = [line for line in lines if cost(line) > 0 and value(line) > 0]
    if not lines:
        return ""
    x = Axis((cost(line) for line in lines), LEFT, W - RIGHT)
    y = Axis([*(value(line) for line in lines), *([level] if level else [])], H - BOTTOM, TOP)
    parts = [_frame(x, y, x_title, y_title, True)]
    if level:
        parts.append(f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="var(--soft)" stroke-dasharray="5 4"/><text x="{W - RIGHT - 3}" y="{y(level) - 4:.1f}" text-anchor="end">window alone</text>')
    for family in dict.fromkeys(line["family"] for line in lines):
        own = sorted((line for line in lines if line["family"] == family), key=cost)
        path = " ".join(f"{x(cost(line)):.1f},{y(value(line)):.1f}" for line in own)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour[family]}" stroke-width="1.6"/>')
        for line in own:
            fill = "var(--paper)" if line["oracle"] else colour[family]
            parts.append(f'<circle cx="{x(cost(line)):.1f}" cy="{y(value(line)):.1f}" r="3.6" fill="{fill}" stroke="{colour[family]}" stroke-width="1.5"><title>{html.escape(line["setting"])}: {cost(line):.2%}, {value(line):.4g}</title></circle>')
    return _figure(caption, "".join(parts))


def _scatter(points: dict) -> str:
    pairs = [(t, e) for t, e in zip(points["true"], points["estimated"]) if t > 0 and e > 0]
    if not pairs:
        return ""
    both = [value for pair in pairs for value in pair]
    x, y = Axis(both, LEFT, W - RIGHT), Axis(both, H - BOTTOM, TOP)
    low, high = 10**x.low, 10**x.high
    parts = [_frame(x, y, "true error of a head (RMS)", "estimated error (RMS)", False)]
    for factor, dash in ((1, ""), (0.7, "4 4"), (1.5, "4 4")):
        a, b = max(low, low / factor), min(high, high / factor)
        parts.append(f'<line x1="{x(a):.1f}" y1="{y(a * factor):.1f}" x2="{x(b):.1f}" y2="{y(b * factor):.1f}" stroke="var(--soft)" stroke-dasharray="{dash}"/>')
    parts += [f'<circle cx="{x(t):.1f}" cy="{y(e):.1f}" r="2.6" fill="{PALETTE[0]}" fill-opacity=".55"/>' for t, e in pairs]
    return _figure(f"Error estimate against true error, {points['setting']} (lines: 1, .7, 1.5)", "".join(parts))


def _heat(map_: dict) -> str:
    """Layers down, heads across: dark where the mass is spread over many rows, so that sampling pays."""
    rows, layers = map_["n_eff"], map_["layers"]
    cell_w = (W - LEFT - RIGHT) / len(rows[0])
    cell_h = max(11.0, min(26.0, 300 / len(rows)))
    top = math.log(max(2, map_["rows"]))
    parts = []
    for m, line in enumerate(rows):
        parts.append(f'<text x="{LEFT - 5}" y="{TOP + (m + 0.5) * cell_h + 4:.1f}" text-anchor="end">{layers[m]}</text>')
        for h, value in enumerate(line):
            depth = max(0.0, min(1.0, math.log(max(1.0, value)) / top))
            mass = map_["daemon_mass"][m][h]
            parts.append(
                f'<rect x="{LEFT + h * cell_w:.1f}" y="{TOP + m * cell_h:.1f}" width="{cell_w - 1:.1f}" height="{cell_h - 1:.1f}" fill="{PALETTE[0]}" fill-opacity="{0.06 + 0.94 * depth:.2f}">'
                f"<title>layer {layers[m]}, head {h}: {value:.0f} effective rows of {map_['rows']}; the daemon's rows hold {mass:.1%} of the mass</title></rect>"
            )
            if cell_w > 26:
                ink = "#fff" if depth > 0.55 else "var(--ink)"
                parts.append(f'<text x="{LEFT + (h + 0.5) * cell_w:.1f}" y="{TOP + (m + 0.5) * cell_h + 4:.1f}" text-anchor="middle" style="fill:{ink}">{value:.0f}</text>')
    return _figure(f"Effective rows of each head, of {map_['rows']} (layers down, heads across)", "".join(parts), TOP + cell_h * len(rows) + 8)
