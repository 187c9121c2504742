"""What must be shown, as lines: yes, no, or not measured here; with figures, and the upper end of the one-sided 95 % bootstrap interval of
each ratio. A target is met when that end is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import settings as table
from metrics import at, ratio_bound
from summary import Group

KL_COUNTS = 0.05  # a text counts where leaving the daemon out altogether costs at least this much


@dataclass
class Line:
    where: str
    what: str
    met: bool | None  # None: not measured, or does not count
    figures: str

    def __str__(self) -> str:
        return f"{ {True: 'yes', False: 'NO', None: '-'}[self.met]:<4}{self.where:<16} {self.what}: {self.figures}"


def _median(x: np.ndarray) -> float:
    return float(np.median(x))


def _p95(x: np.ndarray) -> float:
    return float(np.quantile(x, 0.95))


def _ratio(where: str, what: str, ours, theirs, limit: float, statistic=np.mean, resamples: int = 2000) -> Line:
    if ours is None or theirs is None:
        return Line(where, what, None, "not measured")
    value, bound = ratio_bound(ours, theirs, statistic, resamples)
    return Line(where, what, bound <= limit, f"{value:.3f} (95 %: {bound:.3f}), limit {limit:.3f}")


def errors(group: Group) -> list[Line]:
    where, ours, theirs = f"{group.model} {group.text}", group.units(table.MATCHED, "err"), group.units(table.REFERENCE, "err")
    return [
        _ratio(where, "median error over paper's (10,150), same rows", ours, theirs, 1 / 3, _median, 300),
        _ratio(where, "p95 error over paper's (10,150), same rows", ours, theirs, 1 / 2, _p95, 300),
    ]


def equal_bytes(group: Group, lines: dict[str, dict]) -> list[Line]:
    """Our curve (b = 2) at the bytes of each baseline's points: the worst ratio. Points for fewer bytes than our curve has are out of its
    reach, and the line says which."""
    where, out = f"{group.model} {group.text}", []
    for what, value in (("median error", _error), ("KL", _kl)):
        found = worst_ratio(lines, value)
        title = f"{what} over that of every baseline at the same bytes < 1"
        if found is None:
            out.append(Line(where, title, None, "not measured"))
            continue
        name, ratio, beyond = found
        figures = f"at worst {ratio:.2f} ({name})" + (f"; cheaper than ours can be: {', '.join(beyond)}" if beyond else "")
        out.append(Line(where, title, ratio < 1, figures))
    return out


def _error(line: dict) -> float | None:
    """None where some layers are dense: a median over exact and sampled heads says nothing of either."""
    return None if line.get("dense_layers") else line["err"]["median"]


def _kl(line: dict) -> float | None:
    return line.get("kl", {}).get("mean")


def worst_ratio(lines: dict[str, dict], value) -> tuple[str, float, list[str]] | None:
    """(baseline, ours / its at its bytes, baselines that our curve does not reach)."""
    ours = [(line["bytes"], value(line)) for line in lines.values() if line["family"] == "signature b=2" and value(line)]
    ratios, beyond = [], []
    for line in lines.values():
        if line["proposal"].startswith("signature") or line["proposal"] in ("dense", "window") or not value(line):
            continue
        mine = at(ours, line["bytes"])
        if mine is None:
            beyond.append(line["setting"])
        else:
            ratios.append((mine / value(line), line["setting"]))
    if not ratios:
        return None
    ratio, name = max(ratios)
    return name, ratio, beyond


# (text, limit of KL(signature 1 %) / KL(paper (10,150)))
_GEMMA = dict.fromkeys(("prose", "manual", "code", "facts", "words"), 1 / 4)
_KL_LIMITS = {"smollm2": {"facts": 1 / 5, "code": 1 / 3, "prose": 2 / 3, "manual": 2 / 3}, "gemma": _GEMMA, "gemma-32k": _GEMMA}


def divergences(group: Group) -> list[Line]:
    where, units = f"{group.model} {group.text}", {n: group.kl_units(n) for n in (table.DEFAULT, table.REFERENCE, table.ADAPTIVE, "signature b=2 2 %", "window")}
    if units["window"] is None:
        return [Line(where, "KL", None, "not measured")]
    alone, out = float(units["window"].mean()), []
    limit = _KL_LIMITS.get(group.model, {}).get(group.text)
    if limit:
        out.append(_ratio(where, "KL at 1 % over paper's (10,150) at its own rows", units[table.DEFAULT], units[table.REFERENCE], limit))
    if group.text in ("prose", "manual", "facts") and group.model == "smollm2":
        out.append(_ratio(where, "KL of the adaptive budget over fixed 2 %", units[table.ADAPTIVE], units["signature b=2 2 %"], 1.2))
        out.append(_kept(where, group))
    if group.text == "words" and group.model == "smollm2":
        out.append(_ratio(where, "KL of the adaptive budget over paper's (10,150)", units[table.ADAPTIVE], units[table.REFERENCE], 1 / 3))
    if group.text in ("prose", "manual") and group.model.startswith("gemma") and units[table.ADAPTIVE] is not None:
        mean = float(units[table.ADAPTIVE].mean())
        out.append(Line(where, "KL of the adaptive budget <= .005", mean <= 0.005, f"{mean:.4f}"))
    for line in out:
        line.figures += f"; window alone {alone:.3f}"
        if alone < KL_COUNTS:
            line.met, line.figures = None, line.figures + ": does not count"
    return out


def _kept(where: str, group: Group) -> Line:
    kept = group.stack(table.ADAPTIVE, "kl_kept")
    if kept is None:
        return Line(where, "rows of the adaptive budget", None, "not measured")
    return Line(where, "rows of the adaptive budget <= 1.5 %", bool(kept.mean() <= 0.015), f"{kept.mean():.2%}")


def heavy_rows(group: Group, lines: dict[str, dict]) -> Line:
    where, what = f"{group.model} {group.text}", "heavy rows read at 2 %, >= .998 of >= 3,000"
    heavy = lines.get("signature b=2 2 %", {}).get("heavy")
    if not heavy:
        return Line(where, what, None, "not measured")
    met = heavy["found"] >= 0.998 if heavy["events"] >= 3000 else None
    return Line(where, what, met, f"{heavy['found']:.4f} of {heavy['events']:,}; worst head {heavy['worst_head']:.3f}, smallest pi {heavy['least_pi']:.3f}")


def coverage(group: Group, lines: dict[str, dict]) -> Line:
    where, what = f"{group.model} {group.text}", "error estimate within [.7, 1.5] of the true RMS for >= 90 % of heads"
    found = lines.get(table.DEFAULT, {}).get("coverage")
    if not found:
        return Line(where, what, None, "not measured")
    low, middle, high = found["quantiles"]
    return Line(where, what, found["inside"] >= 0.9, f"{found['inside']:.1%} of {found['heads']} heads (p5 {low:.2f}, median {middle:.2f}, p95 {high:.2f})")


def exactness(group: Group, lines: dict[str, dict]) -> list[Line]:
    where, out = f"{group.model} {group.text}", []
    for name, median, p95 in (("dense", 1e-3, 2e-3), ("dense, int8 rows", 0.002, 0.01)):
        if name in lines:
            err = lines[name]["err"]
            out.append(Line(where, f"{name}: error <= {median} median, <= {p95} p95", err["median"] <= median and err["p95"] <= p95, f"{err['median']:.5f}, {err['p95']:.5f}"))
    kl = lines.get("dense, int8 rows", {}).get("kl")
    if kl:
        out.append(Line(where, "int8 rows: KL <= 5e-4", kl["mean"] <= 5e-4, f"{kl['mean']:.2g}"))
    return out


def promises(group: Group) -> list[Line]:
    """What studies.py looked at."""
    if group.study is None:
        return []
    where, study = f"{group.model} {group.text}", group.study
    bias = max(abs(b["mean"] - 1) / b["standard_error"] for b in study["mass_bias"])
    z = max(study["inclusion"], key=lambda part: abs(part["z"]))
    out = [
        Line(where, "exp(LSE) over 10,240 draws: bias < 5 standard errors", bias < 5, f"worst of {len(study['mass_bias'])} heads {bias:.2f}"),
        Line(where, "rows read, by decile of pi: |z| < 5", abs(z["z"]) < 5, f"worst {z['z']:+.2f} (pi {z['pi'][0]:.4f} to {z['pi'][1]:.4f})"),
    ]
    for v in study["verified"]:
        what = f"verified, eps {v['eps']:g}, delta {v['delta']:g}: broken by <= 2 % of heads"
        out.append(Line(where, what, v["broken"] <= 0.02, f"{v['broken']:.2%} of {v['heads']}, with {v['kept']:.1%} of the rows"))
    return out


def geometric(groups: list[tuple[Group, dict[str, dict]]]) -> Line:
    """Our KL over that of the worst baseline to meet at its bytes, over all texts that count."""
    what, ratios = "KL over the best baseline's at the same bytes, geometric mean", []
    for _, lines in groups:
        window = lines.get("window", {}).get("kl")
        found = worst_ratio(lines, _kl)
        if found is not None and window is not None and window["mean"] >= KL_COUNTS:
            ratios.append(found[1])
    if not ratios:
        return Line("all", what, None, "not measured")
    mean = float(np.exp(np.mean(np.log(ratios))))
    return Line("all", what + " <= .5", mean <= 0.5, f"{mean:.2f} over {len(ratios)} texts")


def judge(groups: list[tuple[Group, dict[str, dict]]]) -> list[Line]:
    out: list[Line] = []
    for group, lines in groups:
        out += errors(group) + equal_bytes(group, lines) + divergences(group)
        out += [heavy_rows(group, lines), coverage(group, lines), *exactness(group, lines), *promises(group)]
    return [*out, geometric(groups)]
