"""Makes fixture.npz from a captured document: one sharp and one diffuse KV head, with fewer rows.

    python tools/quality/make_fixture.py build/quality/documents/smollm2-facts-0.npz tools/quality/fixture.npz

Each becomes a layer with one KV head and its query heads. Of the rows the first 64 and the last are kept: what is left out of a head's
keys changes its attention, so the fixture's reference is exact attention over the rows it has."""

from __future__ import annotations

import pathlib
import sys

import numpy as np

TREE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / part) for part in ("client-lib/python", "tools/common", "tools/quality")]

import document  # noqa: E402
import heads  # noqa: E402

ROWS, FIRST = 6144, 64


def chosen(whole: document.Document) -> list[tuple[int, int]]:
    """(measured layer, KV head) at the 10 % and the 75 % quantile of effective rows, among those whose daemon's rows hold >= 30 %."""
    kv_heads = whole.k.shape[2]
    group, found = whole.q.shape[2] // kv_heads, []
    for m in range(len(whole.measured)):
        ref = heads.reference(whole, m)
        for kv_head in range(kv_heads):
            mine = slice(kv_head * group, (kv_head + 1) * group)
            if ref.daemon_mass[:, mine].mean() >= 0.3:
                found.append((float(np.log(ref.n_eff[:, mine]).mean()), m, kv_head))
    found.sort()
    return [found[int(len(found) * share)][1:] for share in (0.1, 0.75)]


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    whole = document.load(source)
    end = whole.sealed + document.BLOCK
    rows = np.r_[0:FIRST, end - ROWS + FIRST : end]
    parts = chosen(whole)
    group = whole.q.shape[2] // whole.k.shape[2]
    heads_of = lambda x, m, kv_head: x[m][:, kv_head * group : (kv_head + 1) * group]
    small = document.Document(
        model=whole.model, text=whole.text, number=whole.number, sealed=ROWS - document.BLOCK, tokens=whole.tokens[rows],
        layers=np.arange(len(parts)), measured=np.arange(len(parts)),
        k=np.stack([whole.k[whole.measured[m], rows, h : h + 1] for m, h in parts]),
        v=np.stack([whole.v[whole.measured[m], rows, h : h + 1] for m, h in parts]),
        q=np.stack([heads_of(whole.q, m, h) for m, h in parts]), positions=whole.positions - (end - ROWS),
        recent=np.stack([heads_of(whole.recent, m, h) for m, h in parts]).astype(np.float16), scale=whole.scale,
    ).check()
    document.save(small, target, compressed=True)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, layers and KV heads {[(int(whole.measured[m]), h) for m, h in parts]}")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
