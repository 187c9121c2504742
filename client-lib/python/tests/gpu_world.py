"""Contexts of one layer whose middle is in the daemon and whose ends are on the GPU, and what attention over all of it is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch

import magicpig
from magicpig import cuda, ops

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
LAYOUTS = ("contiguous", "ring", "paged")
PAGE = 16


@dataclass
class Shape:
    contexts: int = 1
    tokens: int = 1
    heads: int = 4
    kv_heads: int = 2
    d: int = 64
    committed: int = 300  # rows of the daemon
    split: int = 260      # from which on they are the GPU's
    rows: int = 310       # of all, at the first step
    room: int = 8         # rows beyond, for later steps
    sinks: int = 4
    dtype: str = "bf16"
    layout: str = "contiguous"
    softcap: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.dtype}-{self.layout}-d{self.d}-{self.heads}/{self.kv_heads}-B{self.contexts}-T{self.tokens}"
            f"-window{self.rows - self.split}{'-softcap' if self.softcap else ''}"
        )


class World:
    def __init__(self, client, device, shape: Shape, seed=0):
        self.client, self.device, self.shape = client, device, shape
        g = torch.Generator().manual_seed(seed)
        total, dtype = shape.rows + shape.room, DTYPES[shape.dtype]
        self.store = DTYPES["bf16" if shape.dtype == "bf16" else "f16"]  # of the daemon's rows: what it keeps to the bit
        normal = lambda *of: torch.randn(*of, generator=g)
        self.all_k, self.all_v = (
            normal(shape.contexts, total, shape.kv_heads, shape.d).to(self.store).to(dtype).to(device) for _ in range(2)
        )
        self.all_q = normal(shape.contexts, total, shape.heads, shape.d).to(dtype).to(device)
        layer = magicpig.Layer(
            query_heads=shape.heads, kv_heads=shape.kv_heads, d_k=shape.d, signature_bits=2, softcap=shape.softcap,
            row_dtype="bf16" if shape.dtype == "bf16" else "f16",
        )
        self.contexts = [client.create(f"world{i}", magicpig.Spec([layer], seed=1)) for i in range(shape.contexts)]
        with client.queue(slot_bytes=1 << 20) as queue:
            for i, context in enumerate(self.contexts):
                k, v = (x[i, : shape.committed].to(self.store).cpu() for x in (self.all_k, self.all_v))
                queue.append(context, 0, 0, k, v, self.all_q[i, : shape.committed][-64:].to(self.store).cpu())
                queue.commit(context, 0, np.arange(shape.committed, dtype=np.uint32), seal=True)
        self._lay_out()
        self.split = torch.full((shape.contexts,), shape.split, dtype=torch.int64, device=device)
        self.rows = torch.full((shape.contexts,), shape.rows, dtype=torch.int64, device=device)
        self.q = self.queries(0)

    def _lay_out(self) -> None:
        """K and V where the layout has them; NaN wherever nobody may look."""
        s, nan = self.shape, float("nan")
        total = s.rows + s.room
        own = [r for r in range(total) if r < s.sinks or r >= s.split]
        self.options = {}
        if s.layout == "paged":
            pages = -(-total // PAGE)
            table = torch.randperm(pages * s.contexts, generator=torch.Generator().manual_seed(5)).view(s.contexts, pages)
            self.options["page_table"] = table.to(torch.int32).to(self.device)
            place = lambda b, r: (int(table[b, r // PAGE]), r % PAGE)
            size = (pages * s.contexts, PAGE)
        elif s.layout == "ring":
            ring = self.options["ring_rows"] = total - s.split + 3
            place = lambda b, r: (b, r if r < s.sinks else s.sinks + (r - s.sinks) % ring)
            size = (s.contexts, s.sinks + ring)
        else:
            place, size = lambda b, r: (b, r), (s.contexts, total)
        self.k, self.v = (torch.full((*size, s.kv_heads, s.d), nan, dtype=self.all_k.dtype) for _ in range(2))
        k, v = self.all_k.cpu(), self.all_v.cpu()
        for b in range(s.contexts):
            for r in own:
                self.k[place(b, r)], self.v[place(b, r)] = k[b, r], v[b, r]
        self.k, self.v = self.k.to(self.device), self.v.to(self.device)

    def queries(self, step: int) -> torch.Tensor:
        """[B, T, heads, d] of the step's tokens: each step is one token further."""
        end = self.shape.rows + step
        return self.all_q[:, end - self.shape.tokens : end].clone()

    def expected(self, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Out [B, T, heads, d] by torch's SDPA in fp32, and the LSE in double."""
        s, end = self.shape, self.shape.rows + step
        q, k, v = (x.float().transpose(1, 2) for x in (self.queries(step), self.all_k[:, :end], self.all_v[:, :end]))
        k, v = (x.repeat_interleave(s.heads // s.kv_heads, 1) for x in (k, v))
        mask = torch.ones(s.tokens, end, dtype=torch.bool, device=q.device).tril(end - s.tokens)
        logits = (q.double() @ k.double().transpose(2, 3)) * s.d**-0.5
        if s.softcap:
            logits = s.softcap * torch.tanh(logits / s.softcap)
        logits.masked_fill_(~mask, float("-inf"))
        if s.softcap:
            out = (logits.softmax(-1) @ v.double()).float()
        else:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2), logits.logsumexp(-1).transpose(1, 2)

    @contextlib.contextmanager
    def attention(self, timeout_ms=20_000, count=1, **options):
        """Attentions (`count` of them, over as many slots) and their Gpu."""
        s = self.shape
        slots = s.contexts * count
        with self.client.queue(entries=max(4, 1 << (slots - 1).bit_length()), slots=slots, slot_bytes=1 << 20) as queue:
            with cuda.Gpu(queue, timeout_ms=timeout_ms) as gpu:
                given = {"proposal": "dense", "dtype": s.dtype, "tokens": s.tokens, "sinks": s.sinks, **options}
                made = [
                    ops.Attention(cuda.Plan(gpu, self.contexts, 0, first_slot=i * s.contexts, **given), self.device)
                    for i in range(count)
                ]
                yield (made if count > 1 else made[0]), gpu

    def attend(self, attention) -> tuple[torch.Tensor, torch.Tensor]:
        return attention(self.q, self.k, self.v, self.split, self.rows, **self.options)

    def move(self, step: int) -> None:
        """The next step's queries and counts, into the same tensors."""
        self.q.copy_(self.queries(step))
        self.rows.fill_(self.shape.rows + step)

    def close(self) -> None:
        for context in self.contexts:
            context.close()
            self.client.drop(context.name)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def worst(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).abs().max())  # NaN stays NaN
