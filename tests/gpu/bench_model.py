"""A decode loop of an 8B model's shape on this machine: attention by the daemon, and by the GPU alone where K and V fit it.

    python tests/gpu/bench_model.py --build build --json build/bench/model.json [PART...]

Parts (all by default): roofline, decode, prefetch, trade, pipeline, long, batch, dense. Weights and contexts are random, the
shapes and all memory are real; what is extrapolated says so. A private daemon holds the contexts in /dev/shm (the size of
which limits `batch`). Without a GPU it runs a tiny shape over tests/gpu/fake, and the times mean nothing."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "client-lib" / "python"), str(TREE / "tools" / "common"), str(pathlib.Path(__file__).parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402

import output  # noqa: E402

PARTS = ("roofline", "decode", "prefetch", "trade", "pipeline", "long", "batch", "dense")


class Report:
    """Lines of a table, and the same for programs."""

    def __init__(self, path: pathlib.Path | None):
        self.path, self.figures = path, []

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def note(self, part: str, name: str, value: float, unit: str, text: str = "", **more: object) -> None:
        self.figures.append({"part": part, "name": name, "value": value, "unit": unit, "note": text, **more})
        print(f"  {name:<58} {value:>10.4g} {unit:<10} {text}", flush=True)
        if self.path:
            output.write(self.path, json.dumps({"machine": machine(), "figures": self.figures}, indent=1) + "\n")


def machine() -> dict[str, object]:
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (tests/gpu/fake)"
    return {"gpu": gpu, "cpu": cpu, "cpus": os.cpu_count(), "torch": torch.__version__}


# ---- parts -------------------------------------------------------------------------------------------------------------
class Bench:
    def __init__(self, arguments: argparse.Namespace):
        import contexts
        import decode_loop

        self.made, self.loop, self.a = contexts, decode_loop, arguments
        self.gpu = decode_loop.CUDA
        self.shape = decode_loop.EIGHT_B if self.gpu and not arguments.tiny else decode_loop.TINY
        self.tokens = arguments.tokens if self.shape is decode_loop.EIGHT_B else 8192
        self.report = Report(arguments.json)
        self.filler = self.made.Filler(self.shape)
        self.contexts: dict[str, object] = {}

    @functools.cached_property
    def weights(self):
        return self.loop.Weights(self.shape)

    def context(self, client, tokens: int, layers: int, **layer: object):
        key = f"{tokens}-{layers}-" + "-".join(f"{k}{v}" for k, v in sorted(layer.items()))
        if key not in self.contexts:
            context, seconds = self.filler.fill(client, key, self.shape, tokens, layers, **layer)
            print(
                f"  ({tokens} tokens of {layers} layers in {seconds:.1f} s, "
                f"{self.made.size_of(context) / self.made.GIB:.2f} GiB {layer or ''})",
                flush=True,
            )
            self.contexts[key] = context
        return self.contexts[key]

    def drop(self, client, context) -> None:
        self.contexts = {key: kept for key, kept in self.contexts.items() if kept is not context}
        context.close()
        client.drop(context.name)

    def lane(self, client, contexts, tokens: int = 0, **options: object):
        return self.loop.Lane(client, self.shape, contexts, tokens or self.tokens, **options)

    def graph(self, lane, attention=None, stream=None):
        step = self.loop.Step(self.weights, lane.rows, attention or lane.attend, lane.begin)
        return self.loop.Graph(step, [lane], stream)

    # -- what this machine can do
    def roofline(self) -> None:
        self.report.title("Roofline, in this run")
        r = self.report
        if self.gpu:
            x = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
            y = torch.empty_like(x)
            ms = self.cuda_ms(lambda: y.copy_(x))
            r.note("roofline", "GPU memory, a copy, bytes read and written", 2 * x.numel() / ms * 1e-9, "TB/s")
            view = x.view(torch.int64)
            ms = self.cuda_ms(lambda: view.max())
            r.note("roofline", "GPU memory, read alone", x.numel() / ms * 1e-9, "TB/s", "largest of 4 GiB")
            del x, y, view
            a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
            ms = self.cuda_ms(lambda: a @ a)
            r.note("roofline", "8192^3 product, bf16", 2 * 8192**3 / ms * 1e-9, "TFLOP/s")
            r.note("roofline", "host memory to the GPU, pinned", self.host_to_device, "GB/s")
        out = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"roofline-{os.getpid()}.json"
        subprocess.run(
            [self.a.build / "magicpig-bench", "--rows", "1024", "--json", out, "roofline"],
            check=True,
            capture_output=True,
        )
        host_figures = json.loads(out.read_text())["roofline"]
        out.unlink()
        r.note("roofline", "host memory, all cores but one stream", host_figures["all_stream_gbs"], "GB/s")
        r.note("roofline", "host memory, they gather rows of 512 bytes", host_figures["all_gather_gbs"], "GB/s")

    @functools.cached_property
    def host_to_device(self) -> float:
        """GB/s."""
        if not self.gpu:
            return math.nan
        host = torch.empty(1 << 30, dtype=torch.uint8).pin_memory()
        device = torch.empty_like(host, device="cuda")
        return host.numel() / self.cuda_ms(lambda: device.copy_(host, non_blocking=True)) * 1e-6

    def cuda_ms(self, run, repeats: int = 5) -> float:
        times = []
        for _ in range(repeats + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times[1:])

    # -- batch 1, stage by stage
    def decode(self, client) -> None:
        loop, s, r = self.loop, self.shape, self.report
        context = self.context(client, self.tokens, s.layers)
        self.made.settle(self.daemon)
        r.title(f"{s.name}, {self.tokens} tokens, batch 1, int8 rows, 2-bit signatures, rows by error (the default)")
        lane = self.lane(client, [context])
        full = self.graph(lane)
        own = self.graph(lane, lane.attend_own)
        bare = self.graph(lane, lane.write_only)
        product = loop.Graph(loop.gemms(self.weights, 1))
        ms, local, without, products = (loop.timed([g], 8) for g in (full, own, bare, product))
        service, rows = self.services(lane)
        submit = self.submissions(lane)
        stages = {
            "matrix products": products,
            "norms, RoPE, activation, own K and V": without - products,
            "signature and submission": submit,
            "the daemon, from claim to completion": service,
        }
        first = lane.plans[0].own_first
        if first:
            stages["own rows, before the daemon is asked"] = local - without
        rest = ms - sum(stages.values())
        r.note("decode", "a token", ms, "ms", f"{1e3 / ms:.1f} tokens/s; asked: 30 ms")
        for name, value in stages.items():
            r.note("decode", f"  {name}", value, "ms", f"{100 * value / ms:.0f} %")
        r.note("decode", "  the rest: doorbell, completion, merge", rest, "ms", f"{100 * rest / ms:.0f} %")
        if not first:
            r.note("decode", "  own rows, while the daemon works", local - without, "ms", f"{lane.tokens - int(lane.split[0]) + loop.SINKS} rows")
        r.note(
            "decode",
            "  waiting of a layer",
            (ms - local) / s.layers * 1e3,
            "us",
            "beyond what the GPU does meanwhile; asked: 500",
        )
        r.note("decode", "  the GPU is idle", 100 * (1 - local / ms), "%")
        r.note(
            "decode",
            "  rows read of a KV head and layer",
            rows,
            "",
            f"{100 * rows / self.tokens:.2f} % of them, for {s.heads // s.kv_heads} query heads",
        )
        lane.close()

    def services(self, lane) -> tuple[float, float]:
        """The daemon's own time of all layers of a token, and rows of a KV head: layer by layer, from the answers."""
        rows, s, rounds = 0, self.shape, 5 if self.gpu else 1
        several: list[list[float]] = [[] for _ in range(s.layers)]
        q = torch.randn(len(lane.contexts), s.heads, s.d, device=self.loop.DEVICE).bfloat16()
        for _ in range(rounds):  # all layers in turn, as a model asks: what a layer reads is in no cache
            for layer in range(s.layers):
                lane.answers(layer, q, lane.plans[layer])
                answer = lane.gpu.last_answer()
                several[layer].append(answer.service_ns * 1e-6)
                rows += answer.rows_read
        return sum(map(statistics.median, several)), rows / (s.layers * s.kv_heads * rounds)

    def submissions(self, lane) -> float:
        """Milliseconds of a token's submissions: they alone, then the waits."""
        if not self.gpu:
            return 0.0
        q = torch.randn(len(lane.contexts), self.shape.heads, self.shape.d, device="cuda").bfloat16()
        out, plan, stream = torch.empty_like(q), lane.plans[0], torch.cuda.current_stream().cuda_stream
        step, times = lane.step_of(0, q, out), []
        for _ in range(64):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            lane.gpu.begin(1000)
            torch.cuda._sleep(100_000)  # so that both launches are there when the first begins
            begin.record()
            plan.submit(step, stream)
            end.record()
            plan.merge(step, stream)
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        lane.gpu.check()
        return statistics.median(times[8:]) * self.shape.layers

    # -- reading ahead
    def prefetch(self, client) -> None:
        """A token with shares of the workers' caches read ahead, in turns; and two sequences side by side, without a pause."""
        s, r, rounds = self.shape, self.report, 8 if self.gpu else 1
        r.title("Workers read ahead: workers.prefetch, in turns")
        first = self.context(client, self.tokens, s.layers)
        second = self.context(client, self.tokens, s.layers, paper=(0, 0))
        self.made.settle(self.daemon)
        lanes = [self.lane(client, [first]), self.lane(client, [second])]
        full, own = self.graph(lanes[0]), self.graph(lanes[0], lanes[0].attend_own)
        local = self.loop.timed([own], 8)
        both = [full, self.graph(lanes[1], stream=lanes[1].stream)]
        ms: dict[tuple[str, str], list[float]] = {}
        fetched: dict[str, float] = {}
        shares = self.a.shares.split(",")
        for _ in range(rounds):
            for share in shares:
                client.configure("workers.prefetch", share)
                before = self.fetched()
                ms.setdefault((share, "one"), []).append(self.loop.timed([full], 4, 2))
                read = self.fetched() - before
                fetched[share] = read[0] / max(1, read[1])
                ms.setdefault((share, "two"), []).append(self.loop.timed(both, 4, 2))
        for share in shares:
            one, two = (statistics.median(ms[share, name]) for name in ("one", "two"))
            wait = (one - local) / s.layers * 1e3
            r.note("prefetch", f"{share}: a token", one, "ms", f"{wait:.0f} us waiting a layer, {fetched[share] * 1e-6:.1f} MB fetched for it; two side by side {two:.1f}")
        client.configure("workers.prefetch", shares[-1])
        for lane in lanes:
            lane.close()

    def fetched(self) -> np.ndarray:
        """Bytes that workers have read ahead, and answers that were foreseen."""
        command = [self.a.build / "magicpigctl", "--socket", self.daemon.socket, "--json", "status"]
        status = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return np.array([sum(w[name] for w in status["statistics"]["workers"]) for name in ("prefetched_bytes", "foreseen")])

    # -- time against error
    def trade(self, client) -> None:
        loop, s, r = self.loop, self.shape, self.report
        r.title(
            "The same, time against error (of the merged output, against the daemon's dense answer; synthetic rows)"
        )
        layers = [0, s.layers // 2, s.layers - 1]
        asked = [
            ("by error, eps .055", {}),
            ("by error, eps .1", {"error_target": 0.1}),
            ("2 %", {"budget": 0.02}),
            ("1 %", {"budget": 0.01}),
            (".5 %", {"budget": 0.005}),
            (".25 %", {"budget": 0.0025}),
        ]
        kinds = [("int8, 2 bits", {}), ("int8, 1 bit", {"signature_bits": 1})]
        for kind, layer in kinds:
            context = self.context(client, self.tokens, s.layers, **layer)
            self.made.settle(self.daemon)
            lane = self.lane(client, [context])
            q = torch.randn(1, s.heads, s.d, device=loop.DEVICE).bfloat16()
            dense = [lane.plan_of(i, proposal="dense") for i in layers]
            exact = [lane.answers(i, q, plan) for i, plan in zip(layers, dense, strict=True)]
            for name, options in asked if not layer else [asked[0], asked[3]]:
                lane.plan(**options)
                errors = [
                    self.error(lane.answers(i, q, lane.plans[i]), e)
                    for _ in range(4)
                    for i, e in zip(layers, exact, strict=True)
                ]
                read = lane.gpu.last_answer()
                ms = loop.timed([self.graph(lane)], 8)
                r.note(
                    "trade",
                    f"{kind}, {name}",
                    ms,
                    "ms",
                    f"error {np.mean(errors):.3f}, {100 * read.rows_read / s.kv_heads / self.tokens:.2f} % of the "
                    f"rows and {read.bytes_read / 1e6:.0f} MB a layer",
                    error=float(np.mean(errors)),
                )
            lane.close()
            if layer:
                self.drop(client, context)
        if not self.gpu:
            return
        for cpus in ("1-8", "1-12", self.a.cpus):
            self.daemon.cpus = cpus
            self.daemon.kill_and_restart()
            lane = self.lane(client, [self.context(client, self.tokens, s.layers)])
            if cpus != self.a.cpus:
                r.note(
                    "trade", f"int8, 2 bits, by error, workers on CPUs {cpus}", loop.timed([self.graph(lane)], 8), "ms"
                )
            lane.close()

    @staticmethod
    def error(out: torch.Tensor, exact: torch.Tensor) -> float:
        return float(((out - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())

    # -- two micro-batches
    def pipeline(self, client) -> None:
        loop, s, r = self.loop, self.shape, self.report
        r.title("Two sequences, one token each")
        first = self.context(client, self.tokens, s.layers)
        second = self.context(client, self.tokens, s.layers, paper=(0, 0))
        self.made.settle(self.daemon)
        lanes = [self.lane(client, [first]), self.lane(client, [second])]
        stream = lanes[0].stream
        local = sum(loop.timed([self.graph(lane, lane.attend_own)], 8) for lane in lanes)
        turn = loop.timed([self.graph(lane, stream=stream) for lane in lanes], 8)
        r.note("pipeline", "one after the other", turn, "ms", f"the GPU is idle {100 * (1 - local / turn):.0f} %")
        both = loop.timed([self.graph(lane, stream=lane.stream) for lane in lanes], 8)
        r.note(
            "pipeline",
            "side by side: a queue and a stream each",
            both,
            "ms",
            f"the GPU is idle {max(0.0, 100 * (1 - local / both)):.0f} %",
        )
        for lane in lanes:
            lane.close()
        lane = self.lane(client, [first, second])
        own, one = (loop.timed([self.graph(lane, way)], 8) for way in (lane.attend_own, None))
        r.note("pipeline", "one batch of two", one, "ms", f"the GPU is idle {100 * (1 - own / one):.0f} %")
        lane.close()

    # -- as many contexts as the host holds
    def batch(self, client) -> None:
        loop, s, r = self.loop, self.shape, self.report
        r.title(f"{self.tokens} tokens each, contexts that share no row, rows by error")
        first = self.context(client, self.tokens, s.layers)
        for other in [context for context in self.contexts.values() if context is not first]:
            self.drop(client, other)
        each, status = self.made.size_of(first), client.status()
        count = min(self.a.contexts, int((status.pool_bytes - status.pool_used) / (each * 1.01)))
        begin = time.monotonic()
        contexts = [first, *self.made.fill_many(self.filler, client, s, self.tokens, count)]
        print(
            f"  ({count} contexts in {time.monotonic() - begin:.0f} s; "
            f"{client.status().pool_used / self.made.GIB:.0f} GiB of the pool in use)",
            flush=True,
        )
        self.made.settle(self.daemon)
        for b in sorted({1, 2, 4, 8, len(contexts)}):
            if b <= len(contexts):
                self.step_of("batch", client, contexts[:b], f"batch {b}")
        half = len(contexts) // 2
        lanes = [self.lane(client, contexts[:half]), self.lane(client, contexts[half : 2 * half])]
        ms = loop.timed([self.graph(lane, stream=lane.stream) for lane in lanes], 2, 3)
        r.note("batch", f"two batches of {half} side by side", ms, "ms", f"{2e3 * half / ms:.1f} tokens/s")
        for lane in lanes:
            lane.close()
        forks = [first.fork(f"fork-{i}", self.tokens) for i in range(32 if self.gpu else 2)]
        used = client.status().pool_used
        self.step_of("batch", client, forks, f"batch {len(forks)}, forks that share all rows of one context")
        print(f"  (the forks took {(client.status().pool_used - used) / self.made.GIB:.2f} GiB more)", flush=True)

    def step_of(self, part: str, client, contexts, name: str, tokens: int = 0, layers: int = 0) -> float:
        lane = self.lane(client, contexts, tokens)
        graph, own = self.graph(lane), self.graph(lane, lane.attend_own)
        ms, local = self.loop.timed([graph], 2 if len(contexts) > 4 else 4, 3), self.loop.timed([own], 4, 3)
        wait = (ms - local) / self.shape.layers * 1e3
        self.report.note(
            part,
            name,
            ms,
            "ms",
            f"{1e3 * len(contexts) / ms:.1f} tokens/s; {wait:.0f} us waiting a layer, "
            f"the GPU is idle {100 * (1 - local / ms):.0f} %",
        )
        lane.close()
        return ms

    # -- other lengths
    def long(self, client) -> None:
        """Contexts of other lengths, batch 1. Long ones have 4 layers: a layer's attention is timed and counted 32 times."""
        loop, s, r = self.loop, self.shape, self.report
        r.title("Batch 1, rows by error, other lengths")
        lengths = [8192, 32768, 262144, 524288] if self.shape is loop.EIGHT_B else [8192]
        for tokens in lengths:
            layers = s.layers if tokens <= 32768 else 4
            context = self.context(client, tokens, layers)
            self.made.settle(self.daemon)
            if layers == s.layers:
                self.step_of("long", client, [context], f"{tokens} tokens", tokens)
                self.drop(client, context)
                continue
            part = dataclasses.replace(s, layers=layers)
            lane = loop.Lane(client, part, [context], tokens)
            ms, own = (loop.timed([self.graph_of(lane, part, way)], 8) for way in (lane.attend, lane.attend_own))
            whole = self.loop.Step(self.weights, lane.rows, loop.nothing)
            rest = loop.timed([loop.Graph(whole)], 4)
            total = (ms - own) / layers * s.layers + rest
            read = lane.gpu.last_answer()
            r.note(
                "long",
                f"{tokens} tokens",
                total,
                "ms",
                f"{1e3 / total:.1f} tokens/s; {(ms - own) / layers * 1e3:.0f} us waiting a layer: {layers} layers measured, "
                f"{s.layers} counted; {100 * read.rows_read / s.kv_heads / tokens:.2f} % of the rows, "
                f"{read.bytes_read / 1e6:.0f} MB a layer",
            )
            lane.close()
            self.drop(client, context)

    def graph_of(self, lane, shape, attention):
        """A step of the first layers of the model."""
        step = self.loop.Step(self.weights, lane.rows, attention, lane.begin)
        step.layers = shape.layers
        return self.loop.Graph(step, [lane])

    # -- the GPU alone
    def dense(self) -> None:
        import dense_attention

        loop, s, r = self.loop, self.shape, self.report
        r.title("Full attention on the GPU, K and V in bf16 beside the weights")
        weights = self.weights
        lengths = [8192, 32768, self.tokens, 262144, 524288] if self.shape is loop.EIGHT_B else [1024]
        for tokens in lengths:
            most = max(0, self.room() // (tokens * s.kv_bytes)) if self.gpu else 2
            if most < 1:
                bound = tokens * s.kv_bytes / self.host_to_device * 1e-6
                r.note(
                    "dense",
                    f"{tokens} tokens: does not fit ({tokens * s.kv_bytes / self.made.GIB:.0f} GiB)",
                    bound,
                    "ms",
                    "a token at least, if K and V came from host memory (computed)",
                )
                continue
            for b in sorted({1, most}):
                self.dense_step(dense_attention, tokens, b)
        if self.gpu:
            r.note(
                "dense",
                "the longest context beside the weights",
                self.room() // s.kv_bytes,
                "tokens",
                f"{weights.bytes / 1e9:.1f} GB of weights",
            )

    def room(self) -> int:
        """Bytes of the GPU's memory for K and V: what is free less 3 GiB for everything else."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] - 3 * self.made.GIB

    def dense_step(self, dense_attention, tokens: int, b: int) -> None:
        loop, s = self.loop, self.shape
        size = s.layers, b, s.kv_heads, tokens, s.d
        k, v = (torch.empty(size, dtype=torch.bfloat16, device=loop.DEVICE) for _ in range(2))
        for layer in range(s.layers):
            k[layer].normal_(), v[layer].normal_()
        q = torch.randn(b, s.heads, s.d, device=loop.DEVICE).bfloat16()
        speeds = {}

        def measure(ways, layers: int, steps: int) -> None:
            for name in ways:
                way = dense_attention.WAYS[name]
                graph = loop.Graph(lambda way=way: [way(q, k[i], v[i]) for i in range(layers)] and None)
                speeds[name] = loop.timed([graph], steps, 3) * s.layers / layers

        measure(dense_attention.agreeing(q[:1], k[0, :1], v[0, :1]), 2, 1)
        measure(sorted(speeds, key=speeds.get)[:2], s.layers, 2)
        name = min(speeds, key=speeds.get)
        way, rows = dense_attention.WAYS[name], torch.full((b,), tokens - 1, device=loop.DEVICE)
        last = torch.full((1,), tokens - 1, device=loop.DEVICE)

        def attend(layer, query, key, value):
            k[layer].index_copy_(2, last, key[:, :, None])
            v[layer].index_copy_(2, last, value[:, :, None])
            return way(query, k[layer], v[layer]).reshape(b, -1)

        ms = loop.timed([loop.Graph(loop.Step(self.weights, rows, attend))], 4, 3)
        rate = tokens * b * s.kv_bytes / speeds[name] * 1e-9
        others = ", ".join(f"{n} {t:.1f}" for n, t in sorted(speeds.items(), key=lambda x: x[1]))
        self.report.note(
            "dense",
            f"{tokens} tokens, batch {b}",
            ms,
            "ms",
            f"{1e3 * b / ms:.1f} tokens/s; attention by {name}, {rate:.2f} TB/s",
            attention_ms=speeds[name],
            ways=others,
        )

    def run(self) -> None:
        import magicpig
        from private_daemon import PrivateDaemon

        parts = [name for name in PARTS if name in (self.a.part or PARTS)]
        print(json.dumps(machine()))
        with torch.inference_mode():
            if "roofline" in parts:
                self.roofline()
            served = [name for name in parts if name not in ("roofline", "dense")]
            if served:
                pool = f"{self.a.pool_gib or self.made.memory_gib()}G" if self.shape is self.loop.EIGHT_B else "1G"
                with PrivateDaemon(self.a.build / "magicpigd", pool, "bench-model", "warn", self.a.cpus) as daemon:
                    self.daemon = daemon
                    with magicpig.Client(str(daemon.socket), reconnect_ms=60_000) as client:
                        status = client.status()
                        print(
                            f"daemon: {status.workers} workers, {status.kernels}, "
                            f"pool of {status.pool_bytes / self.made.GIB:.0f} GiB"
                        )
                        for name in served:
                            getattr(self, name)(client)
            if "dense" in parts:
                self.dense()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], metavar="PART")
    parser.add_argument("--build", type=pathlib.Path, default=TREE / "build")
    parser.add_argument("--json", type=output.argument)
    parser.add_argument("--tokens", type=int, default=98304)
    parser.add_argument(
        "--pool-gib",
        type=int,
        default=0,
        help="of the private daemon; `batch` fills it. Default: 7/8 of the free memory",
    )
    parser.add_argument("--contexts", type=int, default=64, help="of `batch`, at most")
    parser.add_argument("--cpus", default="", help="of the daemon's workers; default: all but one core")
    parser.add_argument("--shares", default="0,.75", help="of `prefetch`: workers.prefetch")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, to see that it runs")
    arguments = parser.parse_args()
    build = arguments.build = arguments.build.resolve()
    os.environ.setdefault("MAGICPIG_LIBRARY", str(build / "libmagicpig.so.0"))
    where = build if torch.cuda.is_available() else build / "tests" / "gpu" / "fake"
    os.environ.setdefault("MAGICPIG_CUDA_LIBRARY", str(where / "libmagicpig-cuda.so.0"))
    torch.manual_seed(0)
    Bench(arguments).run()


if __name__ == "__main__":
    main()
