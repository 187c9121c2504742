"""A decode step of a model's shape with random weights: what bench_model.py measures. On a GPU a step is one CUDA graph;
over the driver without a GPU (tests/gpu/fake) it runs call by call on CPU tensors, and its times mean nothing."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F

from magicpig import cuda
from magicpig.arrays import DTYPE_CODES

SINKS, ROOM = 4, 512  # of each context: first rows that the GPU has itself; tokens that may be decoded
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    d: int
    mlp: int
    vocabulary: int
    own: int = 1024  # recent rows that the GPU has itself

    @property
    def kv_bytes(self) -> int:
        """Of a token, in bf16."""
        return self.layers * self.kv_heads * self.d * 4


EIGHT_B = Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)
TINY = Shape("tiny", 2, 128, 4, 2, 64, 256, 512, 64)


class Weights:
    def __init__(self, shape: Shape):
        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.empty(rows, columns, dtype=torch.bfloat16, device=DEVICE).normal_(0, columns**-0.5)

        s, heads = shape, shape.heads + 2 * shape.kv_heads
        self.shape = shape
        self.embedding, self.head = matrix(s.vocabulary, s.hidden), matrix(s.vocabulary, s.hidden)
        self.qkv = [matrix(heads * s.d, s.hidden) for _ in range(s.layers)]
        self.out = [matrix(s.hidden, s.heads * s.d) for _ in range(s.layers)]
        self.up = [matrix(2 * s.mlp, s.hidden) for _ in range(s.layers)]
        self.down = [matrix(s.hidden, s.mlp) for _ in range(s.layers)]
        self.norm = torch.ones(s.hidden, dtype=torch.bfloat16, device=DEVICE)
        self.frequencies = 500000.0 ** (-torch.arange(0, s.d, 2, device=DEVICE, dtype=torch.float32) / s.d)

    @property
    def bytes(self) -> int:
        return 2 * sum(w.numel() for w in [self.embedding, self.head, *self.qkv, *self.out, *self.up, *self.down])


Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Step:
    """B sequences, one token each. `rows` [B]: tokens so far; it grows on the device, as `ids` [B] does. attention(layer,
    q [B, heads, d], k, v [B, kv_heads, d]) returns [B, heads * d]; `begin` runs once a step."""

    def __init__(
        self, weights: Weights, rows: torch.Tensor, attention: Attention, begin: Callable[[], None] = lambda: None
    ):
        self.weights, self.rows, self.attention, self.begin = weights, rows, attention, begin
        self.ids = torch.arange(len(rows), device=DEVICE)
        self.layers = weights.shape.layers  # fewer: the first ones alone

    def __call__(self) -> None:
        w, s, b = self.weights, self.weights.shape, len(self.rows)
        self.rows += 1
        self.begin()
        angle = (self.rows - 1).float()[:, None] * w.frequencies  # [B, d / 2]
        cos = angle.cos().repeat(1, 2)[:, None].bfloat16()
        sin = torch.cat([-angle.sin(), angle.sin()], -1)[:, None].bfloat16()
        hidden = w.embedding[self.ids]
        for layer in range(self.layers):
            x = F.rms_norm(hidden, (s.hidden,), w.norm, 1e-5)
            qkv = F.linear(x, w.qkv[layer]).view(b, -1, s.d)
            qk = qkv[:, : s.heads + s.kv_heads]
            qk = torch.addcmul(qk * cos, qk.roll(s.d // 2, -1), sin)
            out = self.attention(layer, qk[:, : s.heads], qk[:, s.heads :], qkv[:, s.heads + s.kv_heads :])
            hidden = torch.addmm(hidden, out, w.out[layer].t())
            gate, up = F.linear(F.rms_norm(hidden, (s.hidden,), w.norm, 1e-5), w.up[layer]).chunk(2, -1)
            hidden = torch.addmm(hidden, F.silu(gate) * up, w.down[layer].t())
        logits = F.linear(F.rms_norm(hidden, (s.hidden,), w.norm, 1e-5), w.head)
        self.ids.copy_(logits.argmax(-1))


def gemms(weights: Weights, b: int) -> Callable[[], None]:
    """The step's matrix products alone."""
    w, s = weights, weights.shape
    x = torch.randn(b, max(s.hidden, s.mlp, s.heads * s.d), device=DEVICE, dtype=torch.bfloat16)

    def run() -> None:
        for layer in range(s.layers):
            for matrix in (w.qkv[layer], w.out[layer], w.up[layer], w.down[layer]):
                F.linear(x[:, : matrix.shape[1]], matrix)
        F.linear(x[:, : s.hidden], w.head)

    return run


# ---- attention that is not there ---------------------------------------------------------------------------------------
def nothing(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return q.reshape(len(q), -1)


# ---- attention by the daemon -------------------------------------------------------------------------------------------
class Lane:
    """A queue, its plans and the GPU's own rows of B contexts; one stream. `options`: of the plans."""

    def __init__(self, client: Any, shape: Shape, contexts: Sequence[Any], tokens: int, **options: Any):
        self.shape, self.contexts, self.tokens, b = shape, list(contexts), tokens, len(contexts)
        s, slots = shape, max(8, b)
        self.stream = torch.cuda.Stream() if CUDA else None
        self.queue = client.queue(entries=1 << (slots - 1).bit_length(), slots=slots, slot_bytes=1 << 17)
        self.gpu = cuda.Gpu(self.queue, timeout_ms=20_000)
        self.rows = torch.full((b,), tokens, device=DEVICE)
        self.split = torch.full((b,), max(SINKS, tokens - s.own), device=DEVICE)
        self.own = SINKS + s.own + ROOM
        rows = s.layers, b, self.own, s.kv_heads, s.d
        self.k, self.v = (torch.empty(rows, dtype=torch.bfloat16, device=DEVICE).normal_() for _ in range(2))
        self.bases = torch.arange(b, device=DEVICE) * self.own + SINKS
        self.place = torch.zeros(b, dtype=torch.int64, device=DEVICE)
        self.plans: list[cuda.Plan] = []
        self.plan(**options)

    def plan(self, **options: Any) -> None:
        for plan in self.plans:
            plan.close()
        self.plans = [self.plan_of(layer, **options) for layer in range(self.shape.layers)]

    def plan_of(self, layer: int, **options: Any) -> cuda.Plan:
        # Layers of one stream follow one another, so all of them use the same slots.
        return cuda.Plan(
            self.gpu,
            self.contexts,
            layer,
            dtype="bf16",
            sinks=SINKS,
            window=self.shape.own,
            own_rows=SINKS + self.shape.own,
            **options,
        )

    def restart(self) -> None:
        """Decoding begins again behind the context."""
        self.rows.fill_(self.tokens)

    def begin(self) -> None:
        self.place.copy_(self.bases + (self.rows - 1 - SINKS) % (self.shape.own + ROOM))

    def step_of(self, layer: int, q: torch.Tensor, out: torch.Tensor) -> cuda.Step:
        k, v = self.k[layer], self.v[layer]
        return cuda.Step(
            q=q.data_ptr(),
            q_context=q.stride(0),
            q_head=q.stride(1),
            split=self.split.data_ptr(),
            rows=self.rows.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            kv_dtype=DTYPE_CODES["bf16"],
            kv_context=k.stride(0),
            ring_rows=self.shape.own + ROOM,
            out=out.data_ptr(),
            out_dtype=DTYPE_CODES["bf16"],
        )

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: str = "swm") -> torch.Tensor:
        out, s, at = torch.empty_like(q, memory_format=torch.contiguous_format), self.shape, _stream()
        step, plan = self.step_of(layer, q, out), self.plans[layer]
        if "s" in parts and not plan.own_first:
            plan.submit(step, at)
        for ring, new in ((self.k, k), (self.v, v)):
            ring[layer].view(-1, s.kv_heads, s.d).index_copy_(0, self.place, new)
        if "w" in parts:
            plan.window(step, at)
        if "s" in parts and plan.own_first:
            plan.submit(step, at)
        if "m" in parts:
            plan.merge(step, at)
        return out.view(len(q), -1)

    def attend_own(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The same without the daemon; what is returned is q."""
        self.attend(layer, q, k, v, "w")
        return q.reshape(len(q), -1)

    def write_only(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        self.attend(layer, q, k, v, "")
        return q.reshape(len(q), -1)

    def answers(self, layer: int, q: torch.Tensor, plan: cuda.Plan) -> torch.Tensor:
        """Merged answers to one layer's queries through another plan, fp32 [B, heads, d]."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        step = self.step_of(layer, q, out)
        self.gpu.begin(1000)
        for part in (plan.submit, plan.window, plan.merge):
            part(step, _stream())
        wait()
        self.gpu.check()
        return out.float()

    def close(self) -> None:
        wait()
        self.gpu.close()
        self.queue.close()


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream if CUDA else 0


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


# ---- graphs and time -------------------------------------------------------------------------------------------------
class Graph:
    """What a function launches, as a graph on a stream of its own (or the given one); lanes: whose daemon has to be awake."""

    def __init__(self, run: Callable[[], None], lanes: Sequence[Lane] = (), stream: Any = None):
        self.run, self.lanes, self.graph = run, list(lanes), None
        if not CUDA:
            return
        self.stream = stream or torch.cuda.Stream()
        self.awake()
        wait()
        with torch.cuda.stream(self.stream):  # cuBLAS sets up its work space outside a capture
            run()
        wait()
        self.check()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            run()

    def awake(self) -> None:
        for lane in self.lanes:
            lane.gpu.begin(2000)

    def check(self) -> None:
        for lane in self.lanes:
            lane.gpu.check()

    def replay(self) -> None:
        if self.graph is None:
            self.run()
            return
        with torch.cuda.stream(self.stream):
            self.graph.replay()


def timed(graphs: Sequence[Graph], steps: int, rounds: int = 5) -> float:
    """Milliseconds of one replay of all graphs, each on its stream; the median of some rounds of `steps` replays, after one
    that does not count. Graphs of one stream follow one another."""
    if not CUDA:
        steps, rounds = 1, 1
    taken = []
    for _ in range(rounds + 1):
        for graph in graphs:
            for lane in graph.lanes:
                lane.restart()
            graph.awake()
        wait()
        begin = time.perf_counter()
        for _ in range(steps):
            for graph in graphs:
                graph.replay()
        wait()
        taken.append((time.perf_counter() - begin) / steps * 1e3)
        for graph in graphs:
            graph.check()
    return statistics.median(taken[1:])
