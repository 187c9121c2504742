"""Runs a model over a text once and keeps what the report needs: q, k, v after RoPE, and the logits of full attention."""

from __future__ import annotations

import pathlib
import time

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import texts
from document import BLOCK, Document
from magicpig.model_spec import attention_modules, sliding_windows, text_config

CHUNK = 512
QUERIES = 8      # per layer and document: every eighth of the first scored block
RECENT = 64      # queries the balance is fitted to
BLOCKS = 2       # scored in each document
NAME = "magicpig-capture"


class _Tap:
    """What passes through the attention of one prefill."""

    def __init__(self, wanted: np.ndarray):
        self.wanted, self.begin = wanted, 0
        self.k: dict[int, list[np.ndarray]] = {}
        self.v: dict[int, list[np.ndarray]] = {}
        self.q: dict[int, list[np.ndarray]] = {}

    def __call__(self, module, query, key, value, mask, **options):
        tokens = query.shape[2]
        layer = module.layer_idx
        for store, states in ((self.k, key), (self.v, value)):  # the last rows are this chunk's, with a sliding window too
            store.setdefault(layer, []).append(_rows(states[:, :, -tokens:], torch.float16))
        inside = self.wanted[(self.wanted >= self.begin) & (self.wanted < self.begin + tokens)] - self.begin
        if len(inside):
            self.q.setdefault(layer, []).append(_rows(query[:, :, torch.from_numpy(inside).to(query.device)], torch.float32))
        options.pop("softcap", None)
        return sdpa_attention_forward(module, query, key, value, mask, **options)


def _rows(states: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    return states[0].transpose(0, 1).to(dtype).cpu().numpy().copy()


def capture(name: str, kind: str, number: int, loaded: tuple, context: int, cache: pathlib.Path, say) -> Document:
    """`context` tokens in all, the last BLOCKS * 64 of them scored. loaded: (model, encode, ids that begin a text); the prefill runs where the
    model is, in fp32. cache: where texts.py keeps what it fetched."""
    model, encode, head = loaded
    scored = BLOCKS * BLOCK
    sealed = context - scored
    ids = head + texts.make(kind, number, encode, sealed - len(head), scored, cache)
    positions = sealed + np.arange(BLOCK // QUERIES - 1, BLOCK, BLOCK // QUERIES)
    before = sealed - BLOCK - RECENT + np.arange(RECENT)
    tap = _Tap(np.concatenate([before, positions]))
    logits = _prefill(model, ids, sealed, tap, say)
    windows = sliding_windows(text_config(model))
    measured = [i for i, window in enumerate(windows) if window is None]
    q = np.stack([np.concatenate(tap.q[i]) for i in measured])
    return Document(
        model=name, text=kind, number=number, sealed=sealed, tokens=np.array(ids, np.uint32), layers=np.arange(len(windows)),
        measured=np.array(measured), k=np.stack([np.concatenate(tap.k[i]) for i in range(len(windows))]),
        v=np.stack([np.concatenate(tap.v[i]) for i in range(len(windows))]), q=q[:, RECENT:], positions=positions,
        recent=q[:, :RECENT], scale=float(attention_modules(model)[measured[0]].scaling), logits=logits,
    ).check()


def _prefill(model, ids: list[int], sealed: int, tap: _Tap, say) -> np.ndarray:
    AttentionInterface.register(NAME, tap)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    cache, logits, start = DynamicCache(config=model.config), [], time.monotonic()
    try:
        bounds = [*range(0, sealed, CHUNK), sealed, len(ids)]
        for begin, end in zip(bounds, bounds[1:]):
            tap.begin = begin
            keep = end - begin if begin >= sealed else 1
            tokens = torch.tensor([ids[begin:end]], device=model.device)
            out = model(tokens, past_key_values=cache, logits_to_keep=keep).logits[0]
            if begin >= sealed:
                logits.append(out.float().cpu().numpy())
            passed = time.monotonic() - start
            say(f"prefill {end}/{len(ids)} tokens, {passed:.0f} s, about {passed * (len(ids) - end) / end:.0f} s left")
    finally:
        model.set_attn_implementation("sdpa")
    return np.concatenate(logits)
