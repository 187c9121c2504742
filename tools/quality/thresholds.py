"""What --quick holds a build to, on the fixture. Seeds are fixed, so that a build either passes or does not; the limits stand 20 % or more
from what was measured, which is more than seeds, instruction sets and compilers make of it."""

from __future__ import annotations

import numpy as np

import settings as table
from document import SINKS, Document
from heads import reference
from settings import DEFAULT, MATCHED, REFERENCE

DRAWS, SIGMAS = 10_240, 5.0


def mass_bias(client, document: Document) -> dict:
    """exp(LSE) over the exact sum: mean and standard error over 10,240 draws of one query per layer and head, b = 2 at 1 %."""
    from evaluate import context_of

    per_request, found = 64, []
    with context_of(client, document, (2, (0, 0), "f16"), 1) as (queue, context, _):
        for m in range(len(document.measured)):
            exact = _daemon_lse(document, m)
            q = np.repeat(document.q[m, :1].astype(np.float32), per_request, axis=0)
            ratios = []
            for draw in range(0, DRAWS, per_request):  # the draws of a request's tokens differ by their position
                answer = queue.attend(
                    context, m, q, proposal="signature", budget=0.01, begin=SINKS, end=document.window_start, seed=7, query_position=10_000 + draw
                )
                ratios.append(np.exp(answer.lse.astype(np.float64) - exact))
            ratios = np.concatenate(ratios)
            found += [{"layer": m, "head": h, "mean": float(r.mean()), "standard_error": float(r.std(ddof=1) / np.sqrt(len(r)))} for h, r in enumerate(ratios.T)]
    return {"mass_bias": found}


def _daemon_lse(document: Document, m: int) -> np.ndarray:
    """[H] of query 0, over the daemon's rows."""
    ref = reference(document, m)
    return ref.lse[0] + np.log(ref.daemon_mass[0])


def checks(report: dict) -> list[tuple[str, float, float, bool]]:
    """(what, figure, limit, at most?)"""
    lines = {line["setting"]: line for line in report["summary"]}
    err = lambda name, quantile="median": lines[name]["err"][quantile]
    worst = max(abs(b["mean"] - 1) / b["standard_error"] for b in report["mass_bias"])
    out = [
        ("dense: median error", err("dense"), 1e-3, True),
        ("dense, int8 rows: median error", err("dense, int8 rows"), 0.004, True),
        ("rows of paper: median error over paper's", err(MATCHED) / err(REFERENCE), 0.5, True),
        ("rows of paper: p95 error over paper's", err(MATCHED, "p95") / err(REFERENCE, "p95"), 0.8, True),
        ("1 %: median error over window's", err(DEFAULT) / err("window"), 0.2, True),
        ("b=4 over b=1 at 1 %: median error", err("signature b=4 1 %") / err("signature b=1 1 %"), 1.0, True),
        ("heavy rows read at 2 %", lines["signature b=2 2 %"]["heavy"]["found"], 0.99, False),
        ("error estimate over true error, median head", lines[DEFAULT]["coverage"]["quantiles"][1], 1.5, True),
        ("error estimate over true error, median head", lines[DEFAULT]["coverage"]["quantiles"][1], 0.7, False),
        ("rows at 1 %", lines[DEFAULT]["kept"], 0.015, True),
        (f"bias of exp(LSE) in standard errors, worst head, {DRAWS:,} draws", worst, SIGMAS, True),
    ]
    return out


def show(report: dict) -> bool:
    good = True
    print("\nthresholds")
    for what, figure, limit, most in checks(report):
        met = figure <= limit if most else figure >= limit
        good = good and met
        print(f"  {'yes' if met else 'NO ':<4}{what}: {figure:.4g}, {'at most' if most else 'at least'} {limit:g}")
    return good
