"""A document: what a model computed for one text, as far as the report needs it."""

from __future__ import annotations

import hashlib
import os
import pathlib
from dataclasses import dataclass

import numpy as np

SINKS = 4
WINDOW = 64
BLOCK = 64  # tokens scored together


@dataclass
class Document:
    """`sealed` tokens are indexed by the daemon; those behind them are scored, in blocks of 64. Rows are held as fp16, which is
    what the daemon is given: the reference of a head's error is exact attention over these very rows."""

    model: str
    text: str
    number: int
    sealed: int
    tokens: np.ndarray     # [N] uint32
    layers: np.ndarray     # [L] layer numbers of k, v
    measured: np.ndarray   # [M] indices into `layers`: those with full attention, whose heads are measured
    k: np.ndarray          # [L, N, kv_heads, d]
    v: np.ndarray          # [L, N, kv_heads, d]
    q: np.ndarray          # [M, S, heads, d], after RoPE
    positions: np.ndarray  # [S] of q
    recent: np.ndarray     # [M, R, heads, d]: what the balance is fitted to; at least 64 positions before anything scored
    scale: float
    logits: np.ndarray | None = None  # [N - sealed, vocabulary] of full attention; None in a fixture

    @property
    def name(self) -> str:
        return f"{self.model}-{self.text}-{self.number}"

    @property
    def window_start(self) -> int:
        """The first row that the client attends to itself, besides the sinks."""
        return WINDOW * ((self.sealed - WINDOW) // WINDOW)

    @property
    def blocks(self) -> int:
        return (len(self.tokens) - self.sealed) // BLOCK

    def check(self) -> Document:
        layers, rows = self.k.shape[:2]
        measured, queries = self.q.shape[:2]
        if self.v.shape[:3] != self.k.shape[:3] or len(self.layers) != layers or len(self.tokens) != rows:
            raise ValueError(f"{self.name}: k, v, layers and tokens do not belong together")
        if len(self.measured) != measured or len(self.positions) != queries or self.q.shape[2] % self.k.shape[2]:
            raise ValueError(f"{self.name}: q does not belong to k")
        if not (WINDOW + SINKS < self.sealed <= self.positions.min() and self.positions.max() < rows):
            raise ValueError(f"{self.name}: queries must lie behind the {self.sealed} sealed rows and within {rows}")
        if self.sealed % WINDOW:
            raise ValueError(f"{self.name}: sealed is not a multiple of {WINDOW}")
        return self


_SCALARS = ("model", "text", "number", "sealed", "scale")
_ARRAYS = ("tokens", "layers", "measured", "k", "v", "q", "positions", "recent")


def save(document: Document, path: pathlib.Path, compressed: bool = False) -> None:
    """Atomically, so that an interrupted capture leaves nothing that looks complete."""
    fields = {name: np.asarray(getattr(document, name)) for name in _SCALARS + _ARRAYS}
    fields |= {"shape": np.array(document.k.shape), "d_v": np.asarray(document.v.shape[3])}
    if document.logits is not None:
        fields["logits"] = document.logits
    write_npz(path, fields, compressed)


def write_npz(path: pathlib.Path, fields: dict, compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **fields)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: pathlib.Path, *, light: bool = False) -> Document:
    """light: without rows and logits, for what only wants to know what it is about (k and v have no rows then)."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name].item() for name in _SCALARS} | {name: stored[name] for name in _ARRAYS if not light or name not in "kv"}
        if light:
            (layers, _, kv_heads, d), d_v = stored["shape"], stored["d_v"]
            return Document(**values, k=np.zeros((layers, 0, kv_heads, d), np.float16), v=np.zeros((layers, 0, kv_heads, d_v), np.float16))
        return Document(**values, logits=stored["logits"] if "logits" in stored else None).check()


def digest(*parts: pathlib.Path | str) -> str:
    """Names a cached result: it is stale when one of these files or strings changes."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, pathlib.Path):
            with open(part, "rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        else:
            sha.update(hashlib.sha256(part.encode()).digest())
    return sha.hexdigest()[:16]
