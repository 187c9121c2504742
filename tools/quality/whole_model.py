"""Whole-model KL: the model decodes the scored blocks with its attention answered by the daemon."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch

import magicpig
from document import BLOCK, SINKS, WINDOW, Document
from magicpig.transformers import MagicPigCache, register
from settings import Setting


class ModelRun:
    """Called by evaluate() on each context. The tokens of a block are given in one forward pass, each attending to what it would in a step
    of its own; before the second block the rows of the first are appended as full attention computed them."""

    def __init__(self, model, say: Callable[[str], None]):
        self.model, self.say = model, say
        register(model)

    def __call__(self, client, queue, context, document: Document, fingerprint: bytes, chosen: list[Setting], budgets: dict[str, float], seed: int) -> dict:
        kl: dict[str, list[dict]] = {setting.name: [] for setting in chosen}
        context.close()  # the cache takes the writer's lease
        for block in range(document.blocks):
            begin = document.sealed + block * BLOCK
            if block:
                _append(client, queue, context.name, document, begin - BLOCK)
            tokens = document.tokens[: begin + BLOCK].tolist()
            own = Predictions(document.logits[begin - document.sealed :][:BLOCK], self.model.device)
            with MagicPigCache.open(client, self.model, tokens + [0], fingerprint=fingerprint, window=WINDOW, sinks=SINKS) as cache:
                if cache.length != begin:
                    raise RuntimeError(f"{context.name} was taken up at token {cache.length}, not {begin}")
                for i, setting in enumerate(chosen):
                    self.say(f"block {block + 1}/{document.blocks}, setting {i + 1}/{len(chosen)}: {setting.name}")
                    kl[setting.name].append(self._block(cache, document, own, setting, budgets.get(setting.name, 0.0), seed, begin))
        return {name: _joined(blocks) for name, blocks in kl.items()}

    def _block(self, cache: MagicPigCache, document: Document, own: Predictions, setting: Setting, budget: float, seed: int, begin: int) -> dict:
        options, layers = cache.options, document.layers[document.measured].tolist()
        options.proposal, options.budget, options.seed, options.error_target = setting.proposal, budget, seed, setting.error_target
        dense = {layers[0], layers[len(layers) // 2]} if setting.dense_layers else set()
        options.sampled_layers = [layer for layer in layers if layer not in dense]
        cache.stats.reset()
        ids = torch.from_numpy(document.tokens[begin : begin + BLOCK].astype(np.int64))[None].to(self.model.device)
        logits = self.model(ids, past_key_values=cache).logits[0]
        cache.crop(begin)
        kl, top1 = own.against(logits)
        return {"kl": kl, "top1": top1, "kl_kept": cache.stats.kept}


class Predictions:
    """The next-token distributions of full attention, in double once for all settings. logits [n, vocabulary]."""

    def __init__(self, logits: np.ndarray, device):
        self.log_p = torch.from_numpy(logits).to(device).double().log_softmax(-1)
        self.p, self.top = self.log_p.exp(), self.log_p.argmax(-1)

    def against(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """KL(full || other) in nats, and whether the most probable token is the same: [n] each."""
        log_q = logits.double().log_softmax(-1)
        kl = (self.p * (self.log_p - log_q)).sum(-1)
        return kl.cpu().numpy(), self.top.eq(logits.argmax(-1)).cpu().numpy()


def _append(client, queue, name: str, document: Document, begin: int) -> None:
    rows = slice(begin, begin + BLOCK)
    with client.open(name, write=True) as context:
        for layer in range(len(document.layers)):
            queue.append(context, layer, begin, *(np.ascontiguousarray(x[layer, rows]) for x in (document.k, document.v)))
        queue.commit(context, begin, document.tokens[rows])


def _joined(blocks: list[dict]) -> dict[str, np.ndarray]:
    return {
        "kl": np.stack([b["kl"] for b in blocks]).astype(np.float32),
        "top1": np.stack([b["top1"] for b in blocks]).astype(np.float32),
        "kl_kept": np.array([b["kl_kept"] for b in blocks], np.float32),
    }
