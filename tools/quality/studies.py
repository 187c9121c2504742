"""Properties that want many draws of few queries: is exp(LSE) unbiased, are rows read as often as their pi says, does a verified answer
keep its promise."""

from __future__ import annotations

import itertools

import numpy as np

import magicpig
from document import SINKS, Document
from evaluate import context_of
from heads import Reference, measured_only
from metrics import relative_error
from settings import Index

DRAWS = 10_240
TOKENS = 64      # of a request: its tokens ask the same query, and draw by their positions
BUDGET = 0.01
COORDINATES = 256
EPSILONS, DELTAS, SEEDS = (0.05, 0.1, 0.2), (0.05, 0.1), 200


def study(client: magicpig.Client, document: Document, references: list[Reference], say, quick: bool = False) -> dict:
    layers = list(range(len(references)))
    some = layers if quick else sorted({layers[len(layers) // 3], layers[2 * len(layers) // 3]})
    say("many draws of a query")
    found = draws(client, document, references, some)
    queries = len(document.positions) if quick or len(layers) < 8 else 1
    say("verified answers")
    return found | {"verified": verified(client, document, references, layers, range(queries))}


# ---- mass and inclusion


def draws(client: magicpig.Client, document: Document, references: list[Reference], layers: list[int], count: int = DRAWS) -> dict:
    """One query of some measured layers, drawn `count` times at 1 %, b = 2. V holds a unit vector for each of 256 rows of a KV head, so that
    `out` tells which of these were read, and what their pi is: out = exp(s - log pi - LSE). pi is the same in every draw; it is learned in
    draws of their own, since to take it from the draws that are counted would favour rows that happened to be read."""
    small = measured_only(document)
    group = small.q.shape[2] // small.k.shape[2]
    chosen = {(m, g): _rows(small, references[m], m, g, g * group) for m in layers for g in range(small.k.shape[2])}
    v = np.zeros((len(references), small.sealed, small.k.shape[2], COORDINATES), np.float16)
    for (m, g), rows in chosen.items():
        v[m, rows, g, np.arange(len(rows))] = 1
    bias, pi, hits = [], [], []
    with context_of(client, small, Index(bits=2), 1, v=v) as (queue, context, _):
        for m in layers:
            ask = lambda first, number: _ask(queue, context, small, m, first, number)
            exact = references[m].lse[0] + np.log(references[m].daemon_mass[0])
            learned = _pi(small, m, chosen, ask(1_000_000, count // 4))
            out, lse = ask(10_000, count)
            ratio = np.exp(lse.astype(np.float64) - exact)
            bias += [
                {"layer": int(document.layers[document.measured[m]]), "head": h, "mean": float(r.mean()), "standard_error": float(r.std(ddof=1) / np.sqrt(len(r)))}
                for h, r in enumerate(ratio.T)
            ]
            for g in range(small.k.shape[2]):
                read = (out[:, g * group, : len(chosen[m, g])] > 0).sum(0)
                known = np.isfinite(learned[g])
                pi.append(learned[g][known])
                hits.append(read[known])
    return {"mass_bias": bias, "inclusion": deciles(np.concatenate(pi), np.concatenate(hits), count)}


def _rows(document: Document, ref: Reference, m: int, g: int, h: int) -> np.ndarray:
    """256 rows of a KV head: half of them the heaviest of query 0, half drawn by the root of their weight, so that pi is of every size."""
    far = np.arange(SINKS, document.window_start)
    logits = document.scale * document.k[m, far, g].astype(np.float64) @ document.q[m, 0, h].astype(np.float64)
    order = far[np.argsort(-logits)]
    weights = np.exp((np.sort(logits)[::-1] - logits.max()) / 2)
    top, rest = order[: COORDINATES // 2], order[COORDINATES // 2 :]
    share = weights[COORDINATES // 2 :]
    drawn = np.random.default_rng([m, g]).choice(rest, COORDINATES // 2, replace=False, p=share / share.sum())
    return np.concatenate([top, drawn])


def _ask(queue, context, document: Document, m: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """out [count, H, 256], lse [count, H] of query 0 of a layer."""
    q = np.repeat(document.q[m, :1].astype(np.float32), TOKENS, axis=0)
    answers = [
        queue.attend(
            context, m, q, proposal="signature", budget=BUDGET, begin=SINKS, end=document.window_start, seed=7, query_position=first + draw
        )
        for draw in range(0, count, TOKENS)
    ]
    return np.concatenate([a.out for a in answers]), np.concatenate([a.lse for a in answers])


def _pi(document: Document, m: int, chosen: dict, drawn: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Of each KV head, pi of its chosen rows; nan for those that were never read. ValueError where pi differs between draws."""
    out, lse = drawn
    group, found = document.q.shape[2] // document.k.shape[2], []
    for g in range(document.k.shape[2]):
        rows, h = chosen[m, g], g * group
        weight = out[:, h, : len(rows)].astype(np.float64)
        logits = document.scale * document.k[m, rows, g].astype(np.float64) @ document.q[m, 0, h].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            pi = np.where(weight > 0, np.exp(logits - lse[:, h, None].astype(np.float64)) / weight, np.nan)
        seen = np.isfinite(pi).any(0)
        mean = np.full(len(rows), np.nan)
        mean[seen] = np.nanmean(pi[:, seen], 0)
        if np.nanmax(np.abs(pi[:, seen] / mean[seen] - 1)) > 1e-2:
            raise ValueError(f"{document.name}: pi of a row is not the same in every draw")
        found.append(np.minimum(mean, 1))
    return found


def deciles(pi: np.ndarray, hits: np.ndarray, count: int) -> list[dict]:
    """Rows in ten parts by pi, and one of those that are certain: how often they were read, against count * pi, in standard deviations."""
    certain = pi > 0.999
    parts = [np.flatnonzero(~certain)[part] for part in np.array_split(np.argsort(pi[~certain]), 10)] + [np.flatnonzero(certain)]
    found = []
    for part in parts:
        if not len(part):
            continue
        expected, variance = count * pi[part].sum(), count * (pi[part] * (1 - pi[part])).sum()
        missing = float(hits[part].sum() - expected)
        found.append({
            "pi": [float(pi[part].min()), float(pi[part].max())], "rows": len(part), "expected": float(expected), "read": int(hits[part].sum()),
            "z": missing / float(np.sqrt(max(variance, 1))),
        })
    return found


# ---- verified answers


def verified(client: magicpig.Client, document: Document, references: list[Reference], layers: list[int], queries: range) -> list[dict]:
    """For each (eps, delta): of how many heads (a query of a head is one) more than delta of 200 answers err by more than eps, merged."""
    found = []
    small = measured_only(document)
    with context_of(client, small, Index(bits=2), 2) as (queue, context, _):
        for eps, delta in itertools.product(EPSILONS, DELTAS):
            rates, kept = [], []
            for m, s in itertools.product(layers, queries):
                err, rows = _promised(queue, context, small, references[m], m, s, eps, delta)
                rates.append((err > eps).mean(0))
                kept.append(rows.mean())
            rates = np.stack(rates)
            found.append({
                "eps": eps, "delta": delta, "heads": rates.size, "seeds": SEEDS, "broken": float((rates > delta).mean()), "violations": float(rates.mean()),
                "worst": float(rates.max()), "kept": float(np.mean(kept)) / (small.window_start - SINKS),
            })
    return found


def _promised(queue, context, document: Document, ref: Reference, m: int, s: int, eps: float, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the merged outputs and rows attended, [SEEDS, H] each."""
    exact = ref.exact_out[s].astype(np.float32), ref.exact_lse[s].astype(np.float32)
    err, rows = [], []
    for first in range(0, SEEDS, TOKENS):
        tokens = min(TOKENS, SEEDS - first)
        q, out, lse = (np.repeat(x[None], tokens, axis=0) for x in (document.q[m, s].astype(np.float32), *exact))
        answer = queue.attend(
            context, m, q, proposal="signature", begin=SINKS, end=document.window_start, seed=11, query_position=10_000 + first, error_target=eps,
            delta=delta, window_lse=lse, window_out=out,
        )
        magicpig.merge(out, lse, answer.out, answer.lse)
        err.append(relative_error(out.astype(np.float64), ref.out[s]))
        rows.append(answer.rows)
    return np.concatenate(err), np.concatenate(rows)
