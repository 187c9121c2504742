"""How far sampled attention's predictions are from the model's own."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from transformers import DynamicCache

import magicpig.transformers


def divergence(own: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """KL(own || other) of next-token distributions given by logits [n, vocabulary], in nats."""
    p, q = own.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy()


def summary(own: torch.Tensor, other: torch.Tensor) -> dict:
    kl = divergence(own, other)
    same = own.argmax(-1).eq(other.argmax(-1))
    return {
        "tokens": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_p95": float(np.quantile(kl, 0.95)),
        "top1": float(same.float().mean()),
        "top1_equal": int(same.sum()),
    }


class OwnAttention:
    """The model's own full attention over a context, from K and V as its prefill computed them."""

    def __init__(self, model, rows: list[tuple[torch.Tensor, torch.Tensor]]):
        self.model, self.length, self.cache = model, rows[0][0].shape[2], DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(rows):
            self.cache.update(keys, values, layer)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), vocabulary]: after each of `ids`, which follow the context."""
        with self.in_force():
            return self.model(torch.tensor([ids]), past_key_values=self.cache).logits[0]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The `count` tokens that greedy decoding gives after `ids`, which follow the context."""
        answer: list[int] = []
        with self.in_force():
            for _ in range(count):
                logits = self.model(torch.tensor([ids]), past_key_values=self.cache, logits_to_keep=1).logits[0, -1]
                answer.append(int(logits.argmax()))
                ids = answer[-1:]
        return answer

    @contextlib.contextmanager
    def in_force(self):
        self.model.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(magicpig.transformers.NAME)
            self.cache.crop(self.length)
