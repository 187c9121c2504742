"""From the arrays of all documents and seeds to records: per head, and per model, text and setting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator

import numpy as np

from document import SINKS, Document
from evaluate import Evaluation
from heads import Reference
from metrics import quantiles
from settings import Setting

COVERED = (0.7, 1.5)  # err is as it should be where its RMS is within this of the true one


@dataclass
class Measured:
    """One document: its exact attention in numbers, and its evaluations by seed."""

    document: Document  # without k, v
    n_eff: np.ndarray        # [M, S, H]
    daemon_mass: np.ndarray  # [M, S, H]
    row_bytes: int           # of one row of one KV head, K and V
    evaluations: dict[int, Evaluation] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Document, references: list[Reference]) -> Measured:
        row_bytes = (document.k.shape[3] + document.v.shape[3]) * 2
        found = {name: np.stack([getattr(r, name) for r in references]) for name in ("n_eff", "daemon_mass")}
        return cls(Document(**{**vars(document), "logits": None}), **found, row_bytes=row_bytes)


@dataclass
class Group:
    """The documents of one model and text."""

    model: str
    text: str
    documents: list[Measured]
    study: dict | None = None  # see studies.py; of the first document

    def stack(self, setting: str, quantity: str) -> np.ndarray | None:
        """[documents, seeds, ...] of the documents where it was measured; None if there are none."""
        rows = []
        for measured in self.documents:
            seeds = [e.arrays[setting][quantity] for _, e in sorted(measured.evaluations.items()) if quantity in e.arrays.get(setting, {})]
            if seeds:
                rows.append(seeds)
        if not rows:
            return None
        least = min(len(seeds) for seeds in rows)
        return np.stack([np.stack(seeds[:least]) for seeds in rows])

    def units(self, setting: str, quantity: str) -> np.ndarray | None:
        """[documents x queries, seeds, M x H]: what the bootstrap draws from."""
        stacked = self.stack(setting, quantity)
        if stacked is None:
            return None
        documents, seeds, layers, queries, heads = stacked.shape
        return stacked.transpose(0, 3, 1, 2, 4).reshape(documents * queries, seeds, layers * heads)

    def kl_units(self, setting: str) -> np.ndarray | None:
        """[documents x blocks, seeds]: mean KL of a block."""
        stacked = self.stack(setting, "kl")
        if stacked is None:
            return None
        documents, seeds, blocks, _ = stacked.shape
        return stacked.mean(-1).transpose(0, 2, 1).reshape(documents * blocks, seeds)

    def refused(self) -> dict[str, str]:
        return {name: reason for d in self.documents for e in d.evaluations.values() for name, reason in e.refused.items()}

    def exact_bytes(self) -> float:
        """Of the rows the client holds, per step and layer."""
        return float(np.mean([
            (SINKS + np.mean(m.document.positions - m.document.window_start + 1)) * m.row_bytes * m.document.k.shape[2] for m in self.documents
        ]))

    def all_bytes(self) -> float:
        """Of full attention, per step and layer."""
        return float(np.mean([(np.mean(m.document.positions) + 1) * m.row_bytes * m.document.k.shape[2] for m in self.documents]))


def error_ratio(est: np.ndarray, err: np.ndarray) -> np.ndarray | None:
    """[M, H]: RMS of the estimated over RMS of the true error, over documents, seeds and queries; nan for heads without an estimate."""
    given = est >= 0
    if not given.any():
        return None
    mean = lambda x: np.where(given, x.astype(np.float64) ** 2, 0).sum((0, 1, 3)) / np.maximum(given.sum((0, 1, 3)), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(given.any((0, 1, 3)), np.sqrt(mean(est) / mean(err)), np.nan)


def aggregate(group: Group, setting: Setting) -> dict | None:
    """The line of one setting in the table; None if it was not run."""
    err = group.stack(setting.name, "err")
    if err is None:
        return None
    kept, est, read = (group.stack(setting.name, name) for name in ("kept", "est", "bytes"))
    ns = group.stack(setting.name, "ns")
    line = {
        "model": group.model, "text": group.text, "setting": setting.name, "proposal": setting.label, "family": setting.family,
        "parameters": {"budget": setting.budget, "error_target": setting.error_target, "bits": setting.bits, "paper": list(setting.paper), "rows": setting.row_dtype},
        "oracle": setting.oracle, "dense_layers": setting.dense_layers, "documents": err.shape[0], "seeds": err.shape[1], "heads": err.shape[2] * err.shape[4],
        "kept": float(kept.mean()), "bytes": float(read.mean()) + group.exact_bytes(),
        "bytes_share": (float(read.mean()) + group.exact_bytes()) / group.all_bytes(),
        "us": float(np.median(ns)) / 1e3, "err": quantiles(err),
        "err_seed_spread": [float(x) for x in np.quantile(np.median(err, axis=(0, 2, 3, 4)), (0, 1))],
        "lse_rms": float(np.sqrt(np.mean(group.stack(setting.name, "lse_err").astype(np.float64) ** 2))),
    }
    ratio = error_ratio(est, err)
    if ratio is not None:
        inside = ratio[np.isfinite(ratio)]
        line["coverage"] = {
            "heads": len(inside), "inside": float(np.mean((inside >= COVERED[0]) & (inside <= COVERED[1]))),
            "quantiles": [float(x) for x in np.quantile(inside, (0.05, 0.5, 0.95))],
        }
    heavy, found = group.stack(setting.name, "heavy"), group.stack(setting.name, "heavy_read")
    if heavy is not None:
        line["heavy"] = {"events": int(heavy.sum()), "found": float(found.sum() / max(1, heavy.sum())), "least_pi": float(group.stack(setting.name, "heavy_pi").min())}
        line["heavy"]["worst_head"] = worst_head(found, heavy)
    return line | _kl(group, setting)


def worst_head(found: np.ndarray, heavy: np.ndarray) -> float:
    """The smallest share of heavy rows read, of heads with at least 20 events."""
    read, events = (x.sum((0, 1, 3)) for x in (found, heavy))
    return float(np.min(read[events >= 20] / events[events >= 20], initial=1.0))


def _kl(group: Group, setting: Setting) -> dict:
    kl = group.stack(setting.name, "kl")
    if kl is None:
        return {}
    by_seed = kl.mean((0, 2, 3))
    return {
        "kl": {
            "mean": float(kl.mean()), "p95": float(np.quantile(kl, 0.95)), "top1": float(group.stack(setting.name, "top1").mean()),
            "seeds": len(by_seed), "seed_spread": [float(by_seed.min()), float(by_seed.max())], "blocks": kl.shape[0] * kl.shape[2],
            "kept": float(group.stack(setting.name, "kl_kept").mean()),
        }
    }


def head_records(group: Group, setting: Setting) -> Iterator[dict]:
    err = group.stack(setting.name, "err")
    if err is None:
        return
    lse, est, kept = (group.stack(setting.name, name) for name in ("lse_err", "est", "kept"))
    heavy, found = group.stack(setting.name, "heavy"), group.stack(setting.name, "heavy_read")
    ratio = error_ratio(est, err)
    draws = (0, 1, 3)  # documents, seeds, queries
    levels = np.quantile(err, (0.5, 0.95, 0.99), axis=draws)
    rms, mean = np.sqrt((lse.astype(np.float64) ** 2).mean(draws)), kept.mean(draws)
    events, read = (None, None) if heavy is None else (heavy.sum(draws), found.sum(draws))
    measured = group.documents[0].document
    for m, h in np.ndindex(err.shape[2], err.shape[4]):
        record = {
            "model": group.model, "text": group.text, "layer": int(measured.layers[measured.measured[m]]), "head": h, "setting": setting.name,
            "kept": float(mean[m, h]), "err": dict(zip(("median", "p95", "p99"), levels[:, m, h].tolist())), "lse_rms": float(rms[m, h]),
        }
        if ratio is not None and np.isfinite(ratio[m, h]):
            record["estimated_over_true"] = float(ratio[m, h])
        if events is not None and events[m, h]:
            record["heavy"] = [int(read[m, h]), int(events[m, h])]
        yield record


def maps(group: Group) -> dict:
    """[M][H] over documents and queries: effective rows (geometric mean), and the mass that the daemon's rows hold."""
    n_eff = np.exp(np.mean([np.log(m.n_eff).mean(1) for m in group.documents], 0))
    mass = np.mean([m.daemon_mass.mean(1) for m in group.documents], 0)
    document = group.documents[0].document
    return {
        "model": group.model, "text": group.text, "layers": document.layers[document.measured].tolist(), "rows": int(document.window_start - SINKS),
        "n_eff": n_eff.tolist(), "daemon_mass": mass.tolist(),
    }
