"""One head at a time: the daemon's answers on captured tensors against exact attention over the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import magicpig
from document import SINKS, Document
from metrics import HEAVY, attend, colours, effective_rows, relative_error
from settings import Setting


@dataclass
class Reference:
    """Exact attention of one measured layer, for S queries."""

    out: np.ndarray         # [S, H, d] over all rows
    lse: np.ndarray         # [S, H]
    exact_out: np.ndarray   # [S, H, d] over the rows the client holds: sinks and window
    exact_lse: np.ndarray   # [S, H]
    n_eff: np.ndarray       # [S, H] effective rows among the daemon's
    daemon_mass: np.ndarray # [S, H] their share of all mass
    heavy: list[list[list[int]]]  # [S][H]: the daemon's rows with at least 2 % of all mass


def reference(document: Document, m: int) -> Reference:
    strip = int(document.measured[m])
    queries, heads, d = document.q[m].shape
    group = heads // document.k.shape[2]
    d_v, far = document.v.shape[3], slice(SINKS, document.window_start)
    ref = Reference(
        *(np.zeros(shape) for shape in [(queries, heads, d_v), (queries, heads)] * 2 + [(queries, heads)] * 2),
        heavy=[[[] for _ in range(heads)] for _ in range(queries)],
    )
    for kv_head in range(document.k.shape[2]):
        k, v = (x[strip, :, kv_head].astype(np.float64) for x in (document.k, document.v))
        mine = slice(kv_head * group, (kv_head + 1) * group)
        for s, position in enumerate(document.positions):
            logits = document.scale * (document.q[m, s, mine].astype(np.float64) @ k[: position + 1].T)
            near = np.r_[0:SINKS, document.window_start : position + 1]
            ref.out[s, mine], ref.lse[s, mine] = attend(logits, v[: position + 1])
            ref.exact_out[s, mine], ref.exact_lse[s, mine] = attend(logits[:, near], v[near])
            ref.n_eff[s, mine] = effective_rows(logits[:, far])
            mass = np.exp(logits[:, far] - ref.lse[s, mine, None])
            ref.daemon_mass[s, mine] = mass.sum(-1)
            for h in range(group):
                ref.heavy[s][kv_head * group + h] = (SINKS + np.flatnonzero(mass[h] >= HEAVY)).tolist()
    return ref


# ---- a document in the daemon


def spec(document: Document, index: tuple[int, tuple[int, int], str], seed: int, d_v: int = 0, salt: str = "") -> magicpig.Spec:
    """Only measured layers have an index; the others (sliding windows) are there so that a model can be run on the context."""
    bits, paper, dtype = index
    _, _, kv_heads, d = document.k.shape
    shape = dict(query_heads=document.q.shape[2], kv_heads=kv_heads, d_k=d, d_v=d_v or document.v.shape[3], scale=document.scale, row_dtype=dtype)
    measured = set(document.measured.tolist())
    layers = [
        magicpig.Layer(**shape, **(dict(signature_bits=bits, paper=paper) if i in measured else {}))
        for i in range(len(document.layers))
    ]
    print_of = f"{document.name}/{seed}/{index}/{salt}".encode()
    return magicpig.Spec(layers, fingerprint=print_of, seed=seed, expected_tokens=len(document.tokens))


def fill(queue: magicpig.Queue, context: magicpig.Context, document: Document, v: np.ndarray | None = None) -> None:
    """Appends the sealed rows of every layer (v: in place of the document's, for measured layers only) and commits them."""
    order = {int(layer): m for m, layer in enumerate(document.measured)}
    end = document.sealed
    for layer in range(len(document.layers)):
        recent = None
        if layer in order:
            recent = np.ascontiguousarray(document.recent[order[layer]].astype(np.float16))
        values = document.v[layer, :end] if v is None else v[order[layer]]
        queue.append(context, layer, 0, np.ascontiguousarray(document.k[layer, :end]), np.ascontiguousarray(values), recent)
    queue.commit(context, 0, document.tokens[:end], seal=True)


# ---- settings on heads


def ask(setting: Setting, m: int, measured: int, budget: float, exact_lse: np.ndarray) -> dict:
    """The options of an attend call."""
    options = dict(proposal=setting.proposal, budget=budget)
    if setting.dense_layers and m in (0, measured // 2):
        options = dict(proposal="dense")
    if setting.error_target:
        options.update(error_target=setting.error_target, window_lse=np.ascontiguousarray(exact_lse, dtype=np.float32))
    return options


def run(queue, context, document: Document, references: list[Reference], setting: Setting, budget: float, seed: int) -> dict[str, np.ndarray]:
    """[M, S, H] each: err, lse_err, est (-1: none given), kept, and bytes, ns [M, S] of a request of one token."""
    shape = document.q.shape[:3]
    found = {name: np.zeros(shape, np.float32) for name in ("err", "lse_err", "est", "kept")}
    found |= {name: np.zeros(shape[:2], np.float32) for name in ("bytes", "ns")}
    visible = document.window_start - SINKS
    for m, ref in enumerate(references):
        layer = int(document.measured[m])
        for s, position in enumerate(document.positions):
            options = ask(setting, m, shape[0], budget, ref.exact_lse[s : s + 1])
            answer = queue.attend(
                context, layer, document.q[m, s : s + 1].astype(np.float32), begin=SINKS, end=document.window_start, seed=seed,
                query_position=int(position), errors=True, **options,
            )
            score(found, (m, s), ref, answer)
            found["kept"][m, s] = answer.rows[0] / visible
            found["bytes"][m, s], found["ns"][m, s] = answer.bytes_read, answer.service_ns
    return found


def score(found: dict[str, np.ndarray], at: tuple[int, int], ref: Reference, answer: magicpig.AttendResult) -> None:
    m, s = at
    exact = ref.exact_out[s : s + 1].astype(np.float32), ref.exact_lse[s : s + 1].astype(np.float32)
    out, lse = exact[0].copy(), exact[1].copy()
    magicpig.merge(out, lse, answer.out, answer.lse)
    found["err"][m, s] = relative_error(out[0].astype(np.float64), ref.out[s])
    found["lse_err"][m, s] = lse[0] - ref.lse[s]
    partials = [(*exact, None, None), (answer.out, answer.lse, answer.error_v, answer.error_a)]
    estimated = magicpig.merge_error(partials, out)[0]
    found["est"][m, s] = np.where(answer.error_a[0] > 0, estimated, -1)


def window(document: Document, references: list[Reference]) -> dict[str, np.ndarray]:
    """What the exact part alone gives."""
    shape = document.q.shape[:3]
    err = np.stack([relative_error(ref.exact_out, ref.out) for ref in references]).astype(np.float32)
    lse_err = np.stack([ref.exact_lse - ref.lse for ref in references]).astype(np.float32)
    zero = np.zeros(shape, np.float32)
    return dict(err=err, lse_err=lse_err, est=zero - 1, kept=zero, bytes=zero[..., 0], ns=zero[..., 0])


# ---- which heavy rows were read


class Probe:
    """The API does not tell which rows were read. But a choice of rows depends on keys, seeds and positions, never on V: in a second
    context with the same keys and seed, whose V holds a unit vector per heavy row and zeros elsewhere, a row was read if and only if
    its coordinate of `out` is positive; what stands there is its weight exp(s - log pi - LSE)."""

    D_V = 256

    def __init__(self, document: Document, references: list[Reference]):
        kv_heads = document.k.shape[2]
        group = document.q.shape[2] // kv_heads
        self.document, self.group = document, group
        self.colour: list[list[dict[int, int]]] = []  # [M][kv_head]: row -> coordinate
        self.v = np.zeros((len(references), document.sealed, kv_heads, self.D_V), np.float16)
        for m, ref in enumerate(references):
            self.colour.append([])
            for kv_head in range(kv_heads):
                groups = [ref.heavy[s][kv_head * group + h] for s in range(len(ref.heavy)) for h in range(group)]
                chosen = colours(groups, self.D_V)
                self.colour[m].append(chosen)
                for row, coordinate in chosen.items():
                    self.v[m, row, kv_head, coordinate] = 1
        self.heavy = [ref.heavy for ref in references]

    def measured_only(self) -> Document:
        """The document with its measured layers alone."""
        d, keep = self.document, self.document.measured
        return Document(**{**vars(d), "layers": d.layers[keep], "measured": np.arange(len(keep)), "k": d.k[keep], "v": d.v[keep], "logits": None})

    def run(self, queue, context, setting: Setting, budget: float, seed: int, references: list[Reference]) -> tuple[np.ndarray, np.ndarray]:
        """[M, S, H] counts: heavy rows read, heavy rows in all."""
        shape = self.document.q.shape[:3]
        read, total = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for m in range(shape[0]):
            for s, position in enumerate(self.document.positions):
                if not any(self.heavy[m][s]):
                    continue
                options = ask(setting, m, shape[0], budget, references[m].exact_lse[s : s + 1])
                answer = queue.attend(
                    context, m, self.document.q[m, s : s + 1].astype(np.float32), begin=SINKS, end=self.document.window_start, seed=seed,
                    query_position=int(position), **options,
                )
                for h, rows in enumerate(self.heavy[m][s]):
                    chosen = self.colour[m][h // self.group]
                    coordinates = [chosen[row] for row in rows if row in chosen]
                    total[m, s, h] = len(coordinates)
                    read[m, s, h] = np.count_nonzero(answer.out[0, h, coordinates] > 0)
        return read, total
