"""Contexts of random rows for bench_model.py, and how much memory there is for them."""

from __future__ import annotations

import os
import threading
import time

import magicpig
import numpy as np
import torch

GIB = 1 << 30


def memory_gib() -> int:
    """Seven eighths of what is free, in memory and in /dev/shm."""
    free = next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    shm = os.statvfs("/dev/shm")
    return min(free, shm.f_bavail * shm.f_frsize) * 7 // 8 // GIB


PIECE, PIECES = 4096, 8


class Filler:
    """Rows like those of tests/gpu/bench_gpu.c: K normal, with lengths of a heavy tail, so that some hundred rows matter; V
    normal. Eight pieces of 4,096 rows in an order that depends on layer and context."""

    def __init__(self, shape):
        random = torch.Generator().manual_seed(1)
        size = PIECES * PIECE, shape.kv_heads, shape.d
        k, self.v = torch.randn(size, generator=random), torch.randn(size, generator=random).bfloat16()
        length = torch.rand(size[:2], generator=random).rsqrt().clamp(max=8)
        self.k = (k * length[..., None]).bfloat16()
        self.queries = torch.randn(64, shape.heads, shape.d, generator=random).bfloat16()

    def fill(self, client, name: str, shape, tokens: int, layers: int, number: int = 0, **layer: object):
        """A context, and seconds it took."""
        options = {"row_dtype": "i8", "signature_bits": 2, **layer}
        one = magicpig.Layer(query_heads=shape.heads, kv_heads=shape.kv_heads, d_k=shape.d, **options)
        context = client.create(name, magicpig.Spec([one] * layers, fingerprint=b"bench"))
        begin = time.monotonic()
        with client.queue(entries=16, slots=4, slot_bytes=PIECE * shape.kv_heads * shape.d * 4 + (2 << 20)) as queue:
            for at in range(0, tokens, PIECE):
                n, last = min(PIECE, tokens - at), at + PIECE >= tokens
                for i in range(layers):
                    piece = (at // PIECE + 3 * i + 5 * number) % PIECES * PIECE
                    k, v = self.k[piece : piece + n], self.v[piece : piece + n]
                    queue.append(context, i, at, k, v, self.queries if last else None)
                ids = np.arange(at, at + n, dtype=np.uint32) * 7919 % 50000 + number
                queue.commit(context, at, ids, seal=last)
        return context, time.monotonic() - begin


def fill_many(filler: Filler, client, shape, tokens: int, count: int, threads: int = 4) -> list:
    """`count` contexts that share nothing, filled by some threads."""
    contexts, left, lock = [None] * count, iter(range(count)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            contexts[number] = filler.fill(client, f"own-{number}", shape, tokens, shape.layers, number)[0]

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if None in contexts:
        raise RuntimeError("a context could not be filled")
    return contexts


def size_of(context) -> int:
    info = context.info()
    return info.rows_bytes + info.index_bytes + info.metadata_bytes


def settle(daemon) -> None:
    """Until the idle daemon has put its memory into huge pages."""

    def huge() -> int:
        return sum(
            int(line.split()[1])
            for line in open(f"/proc/{daemon.process.pid}/smaps")
            if line.startswith("ShmemPmdMapped")
        )

    last, quiet = huge(), 0
    for _ in range(60):
        if quiet == 3:
            return
        time.sleep(1)
        now = huge()
        quiet, last = (quiet + 1 if now <= last else 0), now
