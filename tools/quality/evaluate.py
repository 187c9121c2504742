"""Every setting on a document, for one seed: heads and, where there is a model, whole-model KL. Results are cached as one file per
document and seed, so that an interrupted run goes on where it was."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Callable, Iterable, Iterator

import numpy as np

import heads
import magicpig
import settings as table
from document import Document, write_npz
from settings import Index, Setting

TIMEOUT_MS = 600_000


class Evaluation:
    """Arrays by (setting name, quantity); texts why a setting was not run, by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self.refused: dict[str, str] = {}

    def save(self, path: pathlib.Path) -> None:
        fields = {f"{name}|{quantity}": array for name, values in self.arrays.items() for quantity, array in values.items()}
        fields |= {f"{name}|refused": np.asarray(reason) for name, reason in self.refused.items()}
        write_npz(path, fields)

    @classmethod
    def joined(cls, parts: Iterable[Evaluation]) -> Evaluation:
        self = cls()
        for part in parts:
            self.arrays |= part.arrays
            self.refused |= part.refused
        return self

    @classmethod
    def load(cls, path: pathlib.Path) -> Evaluation:
        self = cls()
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                name, quantity = key.rsplit("|", 1)
                if quantity == "refused":
                    self.refused[name] = stored[key].item()
                else:
                    self.arrays.setdefault(name, {})[quantity] = stored[key]
        return self


@contextlib.contextmanager
def context_of(
    client: magicpig.Client, document: Document, index: Index, seed: int, *, v: np.ndarray | None = None, recent: np.ndarray | None = None
) -> Iterator[tuple]:
    """(queue, context, fingerprint) of a document in the daemon, dropped at the end. v, recent: see heads.fill()."""
    d_v = 0 if v is None else v.shape[-1]
    name = f"quality-{document.name}-{seed}-{index}-{d_v}"
    spec = heads.spec(document, index, seed, d_v, "probe" if d_v else "")
    with client.create(name, spec) as context, client.queue(timeout_ms=TIMEOUT_MS, slot_bytes=1 << 20) as queue:
        try:
            heads.fill(queue, context, document, v, recent)
            yield queue, context, spec.fingerprint
        finally:
            client.drop(name)


def evaluate(
    client: magicpig.Client,
    document: Document,
    references: list[heads.Reference],
    wanted: list[Setting],
    seed: int,
    *,
    probe: bool,
    model_run: Callable | None,
    say: Callable[[str], None],
    foreign: np.ndarray | None = None,
) -> Evaluation:
    """model_run: see whole_model.ModelRun. foreign: last queries of another document, for settings that want its balance."""
    done = Evaluation()
    pending = [s for s in wanted if s.proposal != "window" and (foreign is not None or not s.foreign)]
    done.refused |= {s.name: "there is no other document" for s in wanted if s.foreign and foreign is None}
    alone = [s for s in wanted if s.proposal == "window"]
    for setting in alone:
        done.arrays[setting.name] = heads.window(document, references)
    coloured = heads.Probe(document, references) if probe else None
    for number, index in enumerate(table.indexes(pending)):
        here = [s for s in pending if table.fits(s, index)]
        pending = [s for s in pending if s not in here]
        here.sort(key=lambda s: bool(s.match))  # what a budget is taken from comes first
        recent = foreign if index.foreign else None
        say(f"index {index}: {len(here)} settings")
        with context_of(client, document, index, seed, recent=recent) as (queue, context, fingerprint):
            _heads(queue, context, document, references, here, seed, done)
            budgets = {s.name: budget(s, done) for s in here if s.name in done.arrays}
            if model_run is not None:
                ran = [s for s in here if s.name in done.arrays and s.whole_model] + (alone if number == 0 else [])
                for name, values in model_run(client, queue, context, document, fingerprint, ran, budgets, seed).items():
                    done.arrays.setdefault(name, {}).update(values)
        if coloured is not None:
            with context_of(client, coloured.document, index, seed, v=coloured.v, recent=recent) as (queue, context, _):
                _probe(queue, context, coloured, here, seed, references, done)
    for setting in pending:
        done.refused[setting.name] = "no context has all the indexes it needs"
    return done


def budget(setting: Setting, done: Evaluation) -> float:
    if not setting.match:
        return setting.budget
    if setting.match not in done.arrays:
        raise ValueError(f"{setting.name}: {setting.match} did not run in the same context")
    return float(np.clip(done.arrays[setting.match]["kept"].mean(), 1e-6, 1))


def _heads(queue, context, document, references, here: list[Setting], seed: int, done: Evaluation) -> None:
    for setting in here:
        try:
            done.arrays[setting.name] = heads.run(queue, context, document, references, setting, budget(setting, done), seed)
        except (magicpig.NotSupported, magicpig.InvalidArgument) as error:
            done.refused[setting.name] = str(error)


def _probe(queue, context, coloured: heads.Probe, here: list[Setting], seed: int, references, done: Evaluation) -> None:
    for setting in here:
        # An error target looks at the size of V, which is another one here: its rows would not be those that were read.
        if setting.name in done.arrays and not setting.error_target:
            read, total, least = coloured.run(queue, context, setting, budget(setting, done), seed, references)
            done.arrays[setting.name] |= {"heavy_read": read, "heavy": total, "heavy_pi": least}
