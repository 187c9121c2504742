"""The report as JSON and as tables on the terminal."""

from __future__ import annotations

import json
import pathlib

import output
import summary
import targets
from settings import Setting
from studies import DRAWS
from summary import Group


def make(groups: list[Group], settings: list[Setting], machine: dict) -> dict:
    """Everything that report.json and the page show."""
    tables = [{s.name: line for s in settings if (line := summary.aggregate(group, s)) is not None} for group in groups]
    lines = targets.judge(list(zip(groups, tables)))
    return {
        "machine": machine,
        "summary": [line for table in tables for line in table.values()],
        "targets": [vars(line) for line in lines],
        "refused": [{"model": g.model, "text": g.text, "setting": n, "reason": r} for g in groups for n, r in g.refused().items()],
        "studies": [{"model": g.model, "text": g.text, **g.study} for g in groups if g.study],
        "maps": [summary.maps(group) for group in groups],
        "estimates": [point for group in groups for point in _estimates(group)],
        "heads": [record for group in groups for s in settings for record in summary.head_records(group, s)],
    }


def _estimates(group: Group) -> list[dict]:
    """RMS of estimated and true error of each head, for the scatter plot."""
    import numpy as np

    out = []
    for name in (targets.table.DEFAULT, "signature b=1 1 %", "signature b=4 1 %"):
        err, est = group.stack(name, "err"), group.stack(name, "est")
        if err is None or not (est >= 0).any():
            continue
        given = est >= 0
        mean = lambda x: np.sqrt(np.where(given, x.astype(np.float64) ** 2, 0).sum((0, 1, 3)) / np.maximum(1, given.sum((0, 1, 3))))
        out.append({"model": group.model, "text": group.text, "setting": name, "true": mean(err).ravel().tolist(), "estimated": mean(est).ravel().tolist()})
    return out


def write(report: dict, path: pathlib.Path) -> None:
    output.write(path, json.dumps(_rounded(report), separators=(",", ":"), allow_nan=False) + "\n")


def _rounded(value):
    """Five digits: what is measured here is not known to more."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


HEADER = f"  {'setting':<42}{'rows':>8}{'bytes':>8}{'us':>7}  {'error median':>12}{'p95':>8}{'p99':>8}{'LSE':>8}{'heavy':>8}{'est/true':>9}{'KL mean':>10}{'p95':>9}{'top-1':>7}"


def show(report: dict) -> None:
    place = None
    for line in report["summary"]:
        if (line["model"], line["text"]) != place:
            place = line["model"], line["text"]
            print(f"\n{line['model']}, {line['text']}: {line['documents']} documents, {line['heads']} heads\n{HEADER}")
        print(row(line))
    for item in report["refused"]:
        print(f"  not run: {item['setting']} on {item['model']} {item['text']}: {item['reason']}")
    for study in report["studies"]:
        print(f"\n{study['model']}, {study['text']}: pi and how often rows were read (b = 2, 1 %, {DRAWS:,} draws); verified answers")
        for part in study["inclusion"]:
            print(f"  pi {part['pi'][0]:.5f} to {part['pi'][1]:.5f}, {part['rows']} rows: read {part['read']:,}, expected {part['expected']:,.0f}, z {part['z']:+.2f}")
        for line in study["verified"]:
            print(f"  eps {line['eps']:g}, delta {line['delta']:g}: broken by {line['broken']:.2%} of {line['heads']} heads, {line['violations']:.2%} of answers (worst head {line['worst']:.1%}), {line['kept']:.1%} of rows")
    print("\ntargets (figure, upper end of its one-sided 95 % interval)")
    for line in report["targets"]:
        print(f"  {targets.Line(**line)}")


def row(line: dict) -> str:
    err, kl = line["err"], line.get("kl")
    heavy = f"{line['heavy']['found']:.1%}" if "heavy" in line else "-"
    ratio = f"{line['coverage']['quantiles'][1]:.2f}" if "coverage" in line else "-"
    text = (
        f"  {line['setting']:<42}{line['kept']:>8.2%}{line['bytes_share']:>8.1%}{line['us']:>7.0f}  {err['median']:>12.5f}{err['p95']:>8.3f}"
        f"{err['p99']:>8.3f}{line['lse_rms']:>8.4f}{heavy:>8}{ratio:>9}"
    )
    return text + (f"{kl['mean']:>10.5f}{kl['p95']:>9.4f}{kl['top1']:>7.1%}" if kl else "")
