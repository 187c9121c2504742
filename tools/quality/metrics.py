"""Errors, effective rows, quantiles and the bootstrap. Pure functions on arrays."""

from __future__ import annotations

from typing import Callable

import numpy as np

HEAVY = 0.02  # share of a head's mass that makes a row a heavy one


def attend(logits: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact attention in double: logits [..., n], v [n, d] -> out [..., d], LSE [...]. No rows: out 0, LSE -inf."""
    if not logits.shape[-1]:
        return np.zeros((*logits.shape[:-1], v.shape[-1])), np.full(logits.shape[:-1], -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    mass = weights.sum(-1, keepdims=True)
    return (weights / mass) @ v.astype(np.float64), (top + np.log(mass))[..., 0]


def relative_error(out: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|out - exact| / |exact| over the last axis."""
    return np.linalg.norm(out - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def effective_rows(logits: np.ndarray) -> np.ndarray:
    """1 / sum p^2 (Kish) of softmax(logits) over the last axis: over how many rows the mass is spread."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights.sum(-1) ** 2 / (weights**2).sum(-1)


def quantiles(values: np.ndarray) -> dict[str, float]:
    median, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return {"median": float(median), "p95": float(p95), "p99": float(p99)}


def divergence(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(own || other) of the distributions given by logits [..., vocabulary], in nats."""
    p, q = (x.astype(np.float64) for x in (own, other))
    p, q = (x - x.max(-1, keepdims=True) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(-1)


def ratio_bound(
    ours: np.ndarray,
    theirs: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    resamples: int = 2000,
    seed: int = 1,
) -> tuple[float, float]:
    """statistic(ours) / statistic(theirs) and the upper end of its one-sided 95 % interval: a paired bootstrap that draws units (axis
    0, the same for both) and then seeds (axis 1, the same for both where they have as many)."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"paired units: {len(ours)} and {len(theirs)}")
    random = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        units = random.integers(len(ours), size=len(ours))
        drawn = [random.integers(x.shape[1], size=x.shape[1]) for x in (ours, theirs)]
        if ours.shape[1] == theirs.shape[1]:
            drawn[1] = drawn[0]
        a, b = (statistic(x[units][:, seeds]) for x, seeds in zip((ours, theirs), drawn))
        ratios[i] = a / b if b > 0 else np.inf
    return float(statistic(ours) / statistic(theirs)), float(np.quantile(ratios, 0.95))


def at(curve: list[tuple[float, float]], x: float) -> float | None:
    """The value of a curve of (cost, error) points at cost x, straight in log-log between points. Where every point costs more than x:
    None (it cannot be had at that cost); beyond its last point: the last value."""
    points = sorted((c, e) for c, e in curve if c > 0 and e > 0)
    if not points or points[0][0] > x * 1.02:
        return None
    costs, errors = np.log(points).T
    return float(np.exp(np.interp(np.log(x), costs, errors)))


def coordinates(groups: list[list[int]], limit: int) -> dict[int, int]:
    """A coordinate below `limit` of its own for each row, those of many groups first; rows for which none is left have none."""
    wanted: dict[int, int] = {}
    for group in groups:
        for row in set(group):
            wanted[row] = wanted.get(row, 0) + 1
    chosen = sorted(wanted, key=lambda row: (-wanted[row], row))[:limit]
    return {row: coordinate for coordinate, row in enumerate(chosen)}
