#!/usr/bin/env python3
"""How long one KV head takes at one error: `signature` against `paper`, on a document's tensors repeated to a long context.

Rows beyond the document's own are its rows again, every number of a key and a value moved by 3 % of its column's deviation, so that
no two rows are equal and weights keep their distribution. One worker; requests of all settings take turns; medians. Errors are
relative to dense attention over the same rows, queries from behind them. The time of `signature` at the error of `paper` is
read off the line through its neighbouring budgets, in logarithms."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("tools/common", "tools/quality", "client-lib/python")]

import output
from metrics import relative_error

BUDGETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
PAPER = (10, 150)


def repeated(x: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """[rows, d] from [n, d]."""
    spread = 0.03 * x.std(0)
    more = [x] + [x + rng.normal(size=x.shape) * spread for _ in range(-(-rows // len(x)) - 1)]
    return np.concatenate(more)[:rows].astype(np.float16)


def heads_of(document, count: int) -> list[tuple[int, int]]:
    """(measured layer, KV head) spread evenly over a document."""
    every = list(np.ndindex(len(document.measured), document.k.shape[2]))
    return [every[i] for i in np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)]


def measure(magicpig, queue, client, document, m: int, head: int, rows: int, seed: int) -> dict:
    """Median error and milliseconds per setting of one head."""
    rng = np.random.default_rng(seed)
    layer, group = int(document.measured[m]), document.q.shape[2] // document.k.shape[2]
    k, v = (repeated(x[layer, 4 : document.sealed, head].astype(np.float32), rows, rng)[:, None] for x in (document.k, document.v))
    mine = slice(head * group, (head + 1) * group)
    spec = magicpig.Spec(
        [magicpig.Layer(group, 1, k.shape[2], v.shape[2], row_dtype="f16", scale=document.scale, signature_bits=2, paper=PAPER)],
        seed=seed + 1, expected_tokens=rows,
    )
    name = f"speed-{m}-{head}"
    with client.create(name, spec) as context:
        recent = np.ascontiguousarray(document.recent[m][:, mine].astype(np.float16))
        for at in range(0, rows, 8192):
            queue.append(context, 0, at, k[at : at + 8192], v[at : at + 8192], recent if at == 0 else None)
        queue.commit(context, 0, np.arange(rows, dtype=np.uint32), seal=True)
        settings = {"paper": dict(proposal="paper")} | {f"signature {100 * b:g} %": dict(proposal="signature", budget=b) for b in BUDGETS}
        found = {setting: dict(err=[], ms=[], kept=[]) for setting in settings} | {"dense": dict(err=[0.0], ms=[], kept=[1.0])}
        for s in range(document.q.shape[1]):
            q = document.q[m, s : s + 1, mine].astype(np.float32)
            exact = queue.attend(context, 0, q, proposal="dense")
            found["dense"]["ms"].append(exact.service_ns / 1e6)
            for setting, options in settings.items():
                answer = queue.attend(context, 0, q, seed=s, query_position=rows, **options)
                found[setting]["err"].extend(relative_error(answer.out[0], exact.out[0]).tolist())
                found[setting]["ms"].append(answer.service_ns / 1e6)
                found[setting]["kept"].append(float(answer.rows[0].mean()) / rows)
    client.drop(name)
    return {setting: {what: float(np.median(values)) for what, values in numbers.items()} for setting, numbers in found.items()}


def at_equal_error(found: dict) -> dict:
    """Time of `signature` where its error is that of `paper`, and whether that is inside what was measured."""
    line = sorted((found[s]["err"], found[s]["ms"]) for s in found if s.startswith("signature"))
    err, ms = np.log([e for e, _ in line]), np.log([t for _, t in line])
    wanted = np.log(found["paper"]["err"])
    if wanted >= err[-1]:  # even the smallest budget errs less: its time is an upper bound
        return dict(ms=float(np.exp(ms[-1])), inside=False)
    return dict(ms=float(np.exp(np.interp(wanted, err, ms))), inside=bool(wanted > err[0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", nargs="+", type=pathlib.Path, help="captured documents (.npz)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--rows", type=int, default=96000)
    parser.add_argument("--heads", type=int, default=6, help="of each document")
    parser.add_argument("--json", type=output.argument)
    options = parser.parse_args()
    os.environ.setdefault("MAGICPIG_LIBRARY", str(options.build.resolve() / "libmagicpig.so.0"))
    import magicpig
    import document as documents
    from private_daemon import PrivateDaemon

    records = []
    with PrivateDaemon(options.build / "magicpigd", pool_size="1G", instance="speed", cpus="0") as daemon:
        with magicpig.Client(str(daemon.socket), timeout_ms=60_000) as client, client.queue(slot_bytes=32 << 20) as queue:
            print(f"{'document':28} {'head':>8} {'dense':>7} {'paper':>7} {'kept':>7} {'error':>7} {'signature':>10} {'paper/sig.':>11}")
            for path in options.documents:
                document = documents.load(path)
                for m, head in heads_of(document, options.heads):
                    found = measure(magicpig, queue, client, document, m, head, options.rows, 7)
                    equal = at_equal_error(found)
                    ratio = found["paper"]["ms"] / equal["ms"]
                    records.append(dict(document=document.name, layer=int(document.layers[document.measured[m]]), head=head, settings=found, equal=equal, ratio=ratio))
                    print(
                        f"{document.name:28} {records[-1]['layer']:>5}.{head:<2} {found['dense']['ms']:7.3f} {found['paper']['ms']:7.3f}"
                        f" {100 * found['paper']['kept']:6.2f}% {found['paper']['err']:7.4f} {'' if equal['inside'] else '<'}{equal['ms']:9.3f} {ratio:10.2f}x",
                        flush=True,
                    )
    print(f"median of {len(records)} heads: {np.median([r['ratio'] for r in records]):.2f}x")
    if options.json:
        output.write(options.json, json.dumps(dict(rows=options.rows, heads=records), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
