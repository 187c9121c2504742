"""Full attention of one query token over K and V on the GPU, bf16: the ways torch has, of which the fastest is taken for
each shape."""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# q [B, heads, d], k and v [B, kv_heads, N, d] -> [B, heads, d]
Dense = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SPLITS = 64


def _sdpa(backend: SDPBackend, grouped: bool) -> Dense:
    """grouped: the query heads of a KV head as so many query tokens, since nothing is masked; else torch's own enable_gqa."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            if grouped:
                out = F.scaled_dot_product_attention(q.reshape(len(q), k.shape[1], -1, q.shape[-1]), k, v)
            else:
                out = F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)
        return out.reshape(q.shape)

    return run


def in_pieces(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Flash decoding by batched products: pieces of the rows side by side, merged by their LSE."""
    b, heads, d = q.shape
    kv, n = k.shape[1], k.shape[2] // SPLITS
    grouped = q.reshape(b * kv, 1, heads // kv, d).expand(-1, SPLITS, -1, -1).reshape(b * kv * SPLITS, heads // kv, d)
    scores = torch.bmm(grouped, k.reshape(-1, n, d).transpose(1, 2)).float() * d**-0.5
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp()
    out = torch.bmm(weights.bfloat16(), v.reshape(-1, n, d)).float()
    top, total = (x.view(b * kv, SPLITS, heads // kv, 1) for x in (top, weights.sum(-1, keepdim=True)))
    scale = (top - top.amax(1, keepdim=True)).exp()
    out = (out.view(b * kv, SPLITS, heads // kv, d) * scale).sum(1) / (total * scale).sum(1)
    return out.reshape(b, heads, d).to(q.dtype)


WAYS: dict[str, Dense] = {
    "flash, enable_gqa": _sdpa(SDPBackend.FLASH_ATTENTION, False),
    "flash, heads as tokens": _sdpa(SDPBackend.FLASH_ATTENTION, True),
    "cuDNN, enable_gqa": _sdpa(SDPBackend.CUDNN_ATTENTION, False),
    "cuDNN, heads as tokens": _sdpa(SDPBackend.CUDNN_ATTENTION, True),
    "efficient, heads as tokens": _sdpa(SDPBackend.EFFICIENT_ATTENTION, True),
    "products in 64 pieces": in_pieces,
}


def agreeing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Dense]:
    """Those ways that run on this shape and give the answer of plain arithmetic in fp32 (to what bf16 is worth)."""
    group = q.shape[1] // k.shape[1]
    scores = (
        torch.einsum("bhgd,bhnd->bhgn", q.view(len(q), k.shape[1], group, -1).float(), k.float()) * q.shape[-1] ** -0.5
    )
    exact = torch.einsum("bhgn,bhnd->bhgd", scores.softmax(-1), v.float()).reshape(q.shape)
    good = {}
    for name, way in WAYS.items():
        try:
            out = way(q, k, v).float()
        except RuntimeError:  # not on this device, or not this shape
            continue
        if (out - exact).norm() <= 0.02 * exact.norm():
            good[name] = way
    return good
