"""How well `magicpigctl plan --measure` predicts a token's time: predicted from at most 65,536 tokens, measured at twice as many and more, all layers
of a model that fits. Needs some GiB of memory. Run by hand:

    build/venv/bin/python tests/cli/bench_plan.py [TOKENS...]
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import cli_daemon

LAYERS, QUERY, KV, D, BUDGET = 2, 32, 8, 128, 0.02


def measured_ms(daemon: cli_daemon.Daemon, tokens: int, rounds: int = 60) -> float:
    """What one in five is below (as the plan has it): a token's answers: a query of all layers, one after another."""
    import magicpig
    import numpy

    random = numpy.random.default_rng(1)
    layer = magicpig.Layer(query_heads=QUERY, kv_heads=KV, d_k=D, signature_bits=2)
    with magicpig.Client(str(daemon.socket)) as client, client.queue(slot_bytes=1 << 20) as queue:
        context = client.create("real", magicpig.Spec([layer] * LAYERS))
        for number in range(LAYERS):
            for at in range(0, tokens, 4096):
                n = min(4096, tokens - at)
                k, v = (random.standard_normal((n, KV, D), dtype=numpy.float32) for _ in range(2))
                queue.append(context, number, at, k, v)
        queue.commit(context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        q = random.standard_normal((QUERY, D), dtype=numpy.float32)
        times = []
        for step in range(rounds):
            start = time.perf_counter()
            for number in range(LAYERS):
                queue.attend(context, number, q, proposal="signature", budget=BUDGET, seed=step)
            times.append(1000 * (time.perf_counter() - start))
        context.close()
        client.drop("real")
    return statistics.quantiles(times[5:], n=5)[0]


def main(sizes: list[int]) -> None:
    gib = 2 + max(sizes) * LAYERS * KV * (4 * D + 40) // 2**30
    cli_daemon.CONFIG = cli_daemon.CONFIG.replace("size = 64M", f"size = {gib}G")
    daemon = cli_daemon.Daemon()
    try:
        for tokens in sizes:
            shape = f"{LAYERS}/{QUERY}/{KV}/{D}"
            told = []
            for _ in range(3):
                result = daemon.ctl("plan", shape, "-t", str(tokens), "--budget", str(BUDGET), "--measure", "--json")
                assert result.returncode == 0, result.stderr
                told.append(json.loads(result.stdout)["ms_per_token"])
            predicted, truth = statistics.median(told), measured_ms(daemon, tokens)
            print(f"{tokens} tokens, {LAYERS} layers: predicted {predicted:.2f} ms a token, measured {truth:.2f}, ratio {predicted / truth:.3f}")
    finally:
        daemon.stop()


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [32768, 131072])
