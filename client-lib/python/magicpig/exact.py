"""Exact attention with its log-sum-exp, for the rows a client holds itself, in fp32."""

from __future__ import annotations

import torch

_QUERY_BLOCK = 256  # query tokens at a time: bounds the score matrix to heads x 256 x rows


def causal_mask(queries: int, rows: int, device: torch.device) -> torch.Tensor:
    """[queries, rows], True where visible: the last `queries` rows are the queries' own, all before are visible."""
    return torch.ones(queries, rows, dtype=torch.bool, device=device).tril(rows - queries)


def exact_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    softcap: float = 0.0,
    sink_logit: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [1, heads, T, d], key and value [1, kv_heads, n, d]; mask [T, n] bool, True where visible; sink_logit [heads]: a
    learned logit that takes mass and carries no value. Returns out [T, heads, d_v] and lse [T, heads], contiguous fp32."""
    blocks = []
    for begin in range(0, query.shape[2], _QUERY_BLOCK):
        part = slice(begin, begin + _QUERY_BLOCK)
        visible = None if mask is None else mask[part]
        blocks.append(_attend_block(query[0, :, part], key[0], value[0], scale, visible, softcap, sink_logit))
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([out for out, _ in blocks]), torch.cat([lse for _, lse in blocks])


def _attend_block(query, key, value, scale, mask, softcap, sink_logit):
    heads, tokens, _ = query.shape
    kv_heads, rows, d_v = value.shape
    group = heads // kv_heads
    grouped = query.float().reshape(kv_heads, group * tokens, -1)
    logits = torch.matmul(grouped, key.float().transpose(1, 2)).mul_(scale).view(kv_heads, group, tokens, rows)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits.masked_fill_(~mask, float("-inf"))
    lse = torch.logsumexp(logits, dim=-1)
    if sink_logit is not None:
        lse = torch.logaddexp(lse, sink_logit.float().view(kv_heads, group, 1))
    # A query that sees nothing has LSE -inf; its weights must come out 0, not NaN.
    weights = torch.exp(logits - torch.where(torch.isinf(lse), 0.0, lse)[..., None])
    out = torch.matmul(weights.view(kv_heads, group * tokens, rows), value.float())
    out = out.view(heads, tokens, d_v).transpose(0, 1).contiguous()
    return out, lse.reshape(heads, tokens).transpose(0, 1).contiguous()
