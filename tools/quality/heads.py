"""One head at a time: the daemon's answers on captured tensors against exact attention over the same rows."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import numpy as np

import magicpig
from document import SINKS, Document, write_npz
from metrics import HEAVY, attend, coordinates, effective_rows, relative_error
from settings import Index, Setting


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
    strip, rows = int(document.measured[m]), int(document.positions.max()) + 1
    queries, heads, d = document.q[m].shape
    group = heads // document.k.shape[2]
    d_v, far, near = document.v.shape[3], slice(SINKS, document.window_start), np.r_[0:SINKS, document.window_start : rows]
    hidden = np.arange(rows) > document.positions[:, None, None]
    ref = Reference(
        *(np.zeros(shape) for shape in [(queries, heads, d_v), (queries, heads)] * 2 + [(queries, heads)] * 2),
        heavy=[[[] for _ in range(heads)] for _ in range(queries)],
    )
    for kv_head in range(document.k.shape[2]):
        k, v = (np.ascontiguousarray(x[strip, :rows, kv_head]).astype(np.float64) for x in (document.k, document.v))
        mine = slice(kv_head * group, (kv_head + 1) * group)
        logits = (document.scale * (document.q[m, :, mine].reshape(-1, d).astype(np.float64) @ k.T)).reshape(queries, group, rows)
        logits = np.where(hidden, -np.inf, logits)
        ref.out[:, mine], ref.lse[:, mine] = attend(logits, v)
        ref.exact_out[:, mine], ref.exact_lse[:, mine] = attend(logits[..., near], v[near])
        ref.n_eff[:, mine] = effective_rows(logits[..., far])
        mass = np.exp(logits[..., far] - ref.lse[:, mine, None])
        ref.daemon_mass[:, mine] = mass.sum(-1)
        for s, h in np.ndindex(queries, group):
            ref.heavy[s][kv_head * group + h] = (SINKS + np.flatnonzero(mass[s, h] >= HEAVY)).tolist()
    return ref


_NUMBERS = ("out", "lse", "exact_out", "exact_lse", "n_eff", "daemon_mass")


def save_references(references: list[Reference], path: pathlib.Path, **more: str) -> None:
    counts = np.array([[[len(rows) for rows in query] for query in ref.heavy] for ref in references], np.int32)
    rows = [row for ref in references for query in ref.heavy for head in query for row in head]
    write_npz(path, {n: np.stack([getattr(r, n) for r in references]) for n in _NUMBERS} | dict(heavy_counts=counts, heavy_rows=np.array(rows, np.int64)) | more)


def load_references(path: pathlib.Path) -> list[Reference]:
    with np.load(path, allow_pickle=False) as stored:
        numbers, counts = {name: stored[name] for name in _NUMBERS}, stored["heavy_counts"]
        rows = iter(np.split(stored["heavy_rows"], np.cumsum(counts.ravel())[:-1]))
    heavy = [[[next(rows).tolist() for _ in head] for head in layer] for layer in counts]
    return [Reference(**{n: x[m] for n, x in numbers.items()}, heavy=heavy[m]) for m in range(len(counts))]


# ---- a document in the daemon


def spec(document: Document, index: Index, seed: int, d_v: int = 0, salt: str = "") -> magicpig.Spec:
    """Only measured layers have an index; the others (sliding windows) are there so that a model can be run on the context."""
    _, _, kv_heads, d = document.k.shape
    shape = dict(query_heads=document.q.shape[2], kv_heads=kv_heads, d_k=d, d_v=d_v or document.v.shape[3], scale=document.scale, row_dtype=index.dtype)
    measured, indexed = set(document.measured.tolist()), dict(signature_bits=index.bits, paper=index.tables)
    if index.table_hash != "simhash":
        indexed["table_hash"] = index.table_hash
    if index.balanced:
        indexed["table_balance"] = True
    layers = [magicpig.Layer(**shape, **(indexed if i in measured else {})) for i in range(len(document.layers))]
    print_of = f"{document.name}/{seed}/{index}/{salt}".encode()
    return magicpig.Spec(layers, fingerprint=print_of, seed=seed, expected_tokens=len(document.tokens))


def fill(queue: magicpig.Queue, context: magicpig.Context, document: Document, v: np.ndarray | None = None, recent: np.ndarray | None = None) -> None:
    """Appends the sealed rows of every layer and commits them. v: in place of the document's, for measured layers only; recent: queries of
    another document, to fit the balance to."""
    order = {int(layer): m for m, layer in enumerate(document.measured)}
    end, recent = document.sealed, document.recent if recent is None else recent
    for layer in range(len(document.layers)):
        queries = np.ascontiguousarray(recent[order[layer]].astype(np.float16)) if layer in order else None
        values = document.v[layer, :end] if v is None else v[order[layer]]
        queue.append(context, layer, 0, np.ascontiguousarray(document.k[layer, :end]), np.ascontiguousarray(values), queries)
    queue.commit(context, 0, document.tokens[:end], seal=True)


# ---- settings on heads


def ask(setting: Setting, m: int, measured: int, budget: float, exact: tuple[np.ndarray, np.ndarray]) -> dict:
    """The options of an attend call. exact: out and LSE of the part that the client attends itself."""
    options = dict(proposal=setting.proposal, budget=budget)
    if setting.dense_layers and m in (0, measured // 2):
        options = dict(proposal="dense")
    if setting.error_target:
        options.update(error_target=setting.error_target, **dict(zip(("window_out", "window_lse"), (np.ascontiguousarray(x, dtype=np.float32) for x in exact))))
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
            options = ask(setting, m, shape[0], budget, (ref.exact_out[s : s + 1], ref.exact_lse[s : s + 1]))
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


def measured_only(d: Document) -> Document:
    """The document with its measured layers alone."""
    keep = d.measured
    return Document(**{**vars(d), "layers": d.layers[keep], "measured": np.arange(len(keep)), "k": d.k[keep], "v": d.v[keep], "logits": None})


class Probe:
    """The API does not tell which rows were read. But a choice of rows depends on keys, seeds and positions, never on V (but under an error
    target, on how large V is): in a second context with the same keys and seed, whose V holds a unit vector per heavy row and zeros elsewhere, a row was read if and only if
    its coordinate of `out` is positive; what stands there is its weight exp(s - log pi - LSE)."""

    D_V = 256

    def __init__(self, document: Document, references: list[Reference]):
        kv_heads = document.k.shape[2]
        group = document.q.shape[2] // kv_heads
        self.group = group
        self.at: list[list[dict[int, int]]] = []  # [M][kv_head]: row -> coordinate
        self.v = np.zeros((len(references), document.sealed, kv_heads, self.D_V), np.float16)
        for m, ref in enumerate(references):
            self.at.append([])
            for kv_head in range(kv_heads):
                groups = [ref.heavy[s][kv_head * group + h] for s in range(len(ref.heavy)) for h in range(group)]
                chosen = coordinates(groups, self.D_V)
                self.at[m].append(chosen)
                self.v[m, list(chosen), kv_head, list(chosen.values())] = 1
        self.heavy = [ref.heavy for ref in references]
        self.document = measured_only(document)

    def run(self, queue, context, setting: Setting, budget: float, seed: int, references: list[Reference]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[M, S, H]: heavy rows read, heavy rows in all, and the smallest pi of those read (1 where none was): a row's coordinate of `out` is
        exp(s - log pi - LSE), in which pi alone is unknown."""
        shape = self.document.q.shape[:3]
        read, total, least = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.ones(shape, np.float32)
        for m in range(shape[0]):
            for s, position in enumerate(self.document.positions):
                if not any(self.heavy[m][s]):
                    continue
                options = ask(setting, m, shape[0], budget, (references[m].exact_out[s : s + 1], references[m].exact_lse[s : s + 1]))
                answer = queue.attend(
                    context, m, self.document.q[m, s : s + 1].astype(np.float32), begin=SINKS, end=self.document.window_start, seed=seed,
                    query_position=int(position), **options,
                )
                for h, rows in enumerate(self.heavy[m][s]):
                    chosen = self.at[m][h // self.group]
                    rows = [row for row in rows if row in chosen]
                    weight = answer.out[0, h, [chosen[row] for row in rows]].astype(np.float64)
                    total[m, s, h], read[m, s, h] = len(rows), np.count_nonzero(weight > 0)
                    keys = self.document.k[m, rows, h // self.group].astype(np.float64)
                    logits = self.document.scale * keys @ self.document.q[m, s, h].astype(np.float64)
                    pi = np.exp(logits[weight > 0] - float(answer.lse[0, h])) / weight[weight > 0]
                    least[m, s, h] = min(1.0, pi.min(initial=1.0))
        return read, total, least
