"""Writes a KV head of committed tensors for `magicpig-bench --tensors`: its rows in groups of sixteen alike.

    python tools/quality/export_head.py LAYER OUT [FIXTURE.npz]
"""

import sys
from pathlib import Path

import numpy

MAGIC, ALIKE, SINKS = 0x4C454144, 16, 4


def halves(x: numpy.ndarray, rows: numpy.ndarray) -> list[numpy.ndarray]:
    """Groups of sixteen rows by halving along the direction in which a part spreads most."""
    if len(rows) <= ALIKE:
        return [rows]
    part = x[rows] - x[rows].mean(0)
    direction = numpy.linalg.eigh(part.T @ part)[1][:, -1]
    middle = (len(rows) // ALIKE + 1) // 2 * ALIKE
    order = numpy.argpartition(part @ direction, middle)
    return halves(x, rows[order[:middle]]) + halves(x, rows[order[middle:]])


def main() -> None:
    layer, out = int(sys.argv[1]), sys.argv[2]
    path = sys.argv[3] if len(sys.argv) > 3 else Path(__file__).parent / "fixture.npz"
    tensors = numpy.load(path)
    k, v = (tensors[name][layer, SINKS:, 0].astype(numpy.float32) for name in ("k", "v"))
    q = tensors["q"][layer].astype(numpy.float32)
    rows = len(k) // ALIKE * ALIKE
    rms = numpy.sqrt((tensors["recent"][layer].astype(numpy.float32) ** 2).mean((0, 1)))
    balanced = k[:rows] * numpy.sqrt(rms / k[:rows].std(0))
    order = numpy.concatenate(halves(balanced.astype(numpy.float64), numpy.arange(rows)))
    with open(out, "wb") as file:
        numpy.array([MAGIC, rows, k.shape[1], *q.shape[:2]], numpy.uint32).tofile(file)
        for x in (k[order], v[order], q):
            numpy.ascontiguousarray(x).tofile(file)


if __name__ == "__main__":
    main()
