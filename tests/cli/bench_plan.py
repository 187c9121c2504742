"""How well `magicpigctl plan --measure` predicts a token's time: predicted from at most 65,536 tokens of one layer, measured over all layers of a model
that fits, in turns. Needs some GiB of memory. Run by hand:

    build/venv/bin/python tests/cli/bench_plan.py [--real-time] [--workers 1,2] [--shapes 2/32/8/128] [--tokens 8192,32768,131072] [--budgets .005,.02,.08]

--real-time: daemon and clients run before everybody else's processes while they are measured (SCHED_FIFO; root), so that a machine that others
use gives figures at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import time

import cli_daemon

ROUNDS = 3


def prefer(on: bool, pid: int = 0) -> None:
    for thread in os.listdir(f"/proc/{pid}/task") if pid else ["0"]:
        os.sched_setscheduler(int(thread), os.SCHED_FIFO if on else os.SCHED_OTHER, os.sched_param(5 if on else 0))


@contextlib.contextmanager
def preferred(on: bool):
    if on:
        prefer(True)
    try:
        yield
    finally:
        if on:
            prefer(False)


class Model:
    """A context of the model, and a client that asks for tokens."""

    def __init__(self, daemon: cli_daemon.Daemon, shape: str, tokens: int) -> None:
        import magicpig
        import numpy

        self.layers, query, kv, d = map(int, shape.split("/"))
        random = numpy.random.default_rng(1)
        layer = magicpig.Layer(query_heads=query, kv_heads=kv, d_k=d, signature_bits=2)
        self.client = magicpig.Client(str(daemon.socket))
        self.queue = self.client.queue(slot_bytes=1 << 20)
        self.context = self.client.create("real", magicpig.Spec([layer] * self.layers))
        for number in range(self.layers):
            for at in range(0, tokens, 4096):
                n = min(4096, tokens - at)
                k, v = (random.standard_normal((n, kv, d), dtype=numpy.float32) for _ in range(2))
                self.queue.append(self.context, number, at, k, v)
        self.queue.commit(self.context, 0, numpy.arange(tokens, dtype=numpy.uint32), seal=True)
        self.q = random.standard_normal((64, query, d), dtype=numpy.float32)

    def token_ms(self, budget: float, rounds: int = 60) -> float:
        """What one in five is below (as the plan has it): a token's answers: a query of all layers, one after another."""
        times = []
        for step in range(rounds):
            start = time.perf_counter()
            for number in range(self.layers):
                self.queue.attend(self.context, number, self.q[step % 64], proposal="signature", budget=budget, seed=step)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.quantiles(times[5:], n=5)[0]

    def close(self) -> None:
        self.context.close()
        self.client.drop("real")
        self.client.close()


def predicted_ms(daemon: cli_daemon.Daemon, shape: str, tokens: int, budget: float, real_time: bool) -> float:
    command = ["chrt", "-f", "5"] if real_time else []
    command += [cli_daemon.MAGICPIGCTL, "--socket", str(daemon.socket), "plan", shape, "-t", str(tokens), "--budget", str(budget), "--measure", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["ms_per_token"]


def numbers(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--workers", type=numbers, default=["2"])
    parser.add_argument("--shapes", type=numbers, default=["2/32/8/128", "2/32/8/64"])
    parser.add_argument("--tokens", type=numbers, default=["8192", "32768", "131072"])
    parser.add_argument("--budgets", type=numbers, default=["0.005", "0.02", "0.08"])
    o = parser.parse_args()
    try:
        with preferred(o.real_time):
            pass
    except PermissionError:
        parser.error("--real-time: this machine does not let you (CAP_SYS_NICE)")
    sizes = list(map(int, o.tokens))
    gib = 2 + max(int(s.split("/")[0]) * int(s.split("/")[2]) * (4 * int(s.split("/")[3]) + 60) for s in o.shapes) * max(sizes) // 2**30
    plain, ratios = cli_daemon.CONFIG, []
    print("workers  shape        tokens  budget   predicted    measured   ratio   (ms a token, medians of 3 in turns)")
    for workers in o.workers:
        cli_daemon.CONFIG = plain.replace("size = 64M", f"size = {gib}G").replace("count = 2", f"count = {workers}")
        daemon = cli_daemon.Daemon()
        try:
            for shape in o.shapes:
                for tokens in sizes:
                    model = Model(daemon, shape, tokens)
                    if o.real_time:
                        prefer(True, daemon.process.pid)
                    for budget in map(float, o.budgets):
                        told, truth = [], []
                        for _ in range(ROUNDS):
                            told.append(predicted_ms(daemon, shape, tokens, budget, o.real_time))
                            with preferred(o.real_time):
                                truth.append(model.token_ms(budget))
                        p, t = statistics.median(told), statistics.median(truth)
                        ratios.append(p / t)
                        print(f"{workers:>7}  {shape:11} {tokens:7}  {budget:6}  {p:10.3f}  {t:10.3f}  {p / t:6.3f}", flush=True)
                    model.close()
                    if o.real_time:
                        prefer(False, daemon.process.pid)
        finally:
            daemon.stop()
    print(f"ratios from {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
