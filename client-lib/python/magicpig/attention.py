"""The attention implementation "magicpig" of Hugging Face transformers, and the hooks that tell a MagicPigCache of forward passes."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakSet

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from . import decode_graph
from .cache_layers import attend_locally, clear_pending, is_unmasked, set_unmasked, take_pending

NAME = "magicpig"


def magicpig_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of attn_implementation="magicpig". Without a MagicPigCache it is plain exact attention."""
    cache = decode_graph.running()
    if cache is not None:
        return cache.gpu.attend(module.layer_idx, query, s_aux), None
    layer = take_pending(key, getattr(module, "layer_idx", None))
    if layer is None:
        if softcap or s_aux is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            return attend_locally(module, query, key, value, attention_mask, scale, softcap or 0.0, s_aux), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    return _attend(layer, module, query, key, value, attention_mask, scaling, softcap, s_aux), None


@torch.compiler.disable
def _attend(layer, module, query, key, value, attention_mask, scaling, softcap, s_aux) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer.cache.channel.check_layer(layer.index, query, scale, softcap or 0.0)
    return layer.attend(module, query, key, value, attention_mask, scale, softcap or 0.0, s_aux)


def magicpig_mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
    """SDPA's, which looks at the padding and waits for the GPU for that; none where a MagicPigCache says that none is needed."""
    if decode_graph.running() is not None or is_unmasked():
        return None
    return sdpa_mask(*arguments, **options)


def register(model: torch.nn.Module | None = None) -> None:
    """Makes attn_implementation="magicpig" known, and switches `model` to it if given. May be called again."""
    AttentionInterface.register(NAME, magicpig_attention)
    # Without a mask function of the same name transformers would pass no mask at all and chunked prefills would see ahead.
    AttentionMaskInterface.register(NAME, magicpig_mask)
    if model is not None:
        model.set_attn_implementation(NAME)


_hooked: WeakSet[torch.nn.Module] = WeakSet()


def hook(model: torch.nn.Module, kind: type) -> None:
    """Tells a cache of this kind, a MagicPigCache, when a forward pass of `model` begins (and with which tokens) and ends."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder = model if decoder is None else decoder
    if decoder in _hooked:
        return
    signature = inspect.signature(decoder.forward)

    def call_of(args: tuple, kwargs: dict) -> dict[str, Any]:
        bound = signature.bind_partial(*args, **kwargs).arguments
        return {**bound, **bound.get("kwargs", {})}

    @torch.compiler.disable
    def begin(args, kwargs):
        clear_pending()
        set_unmasked(False)
        call = call_of(args, kwargs)
        cache = call.get("past_key_values")
        if not isinstance(cache, kind):
            return
        if call.get("input_ids") is not None:
            cache.begin_step(call["input_ids"])
        set_unmasked(cache.step_on_gpu)
        padding = call.get("attention_mask")
        if isinstance(padding, torch.Tensor) and padding.ndim == 2:
            cache.see_padding(padding)

    @torch.compiler.disable
    def end(module, args, kwargs, output):
        cache = call_of(args, kwargs).get("past_key_values")
        if isinstance(cache, kind):
            while not cache.end_step():
                output = module.forward(*args, **kwargs)
        set_unmasked(False)
        return output

    def before(_module, args, kwargs):
        if decode_graph.running() is None:
            begin(args, kwargs)

    def after(module, args, kwargs, output):
        return output if decode_graph.running() is not None else end(module, args, kwargs, output)

    decoder.register_forward_pre_hook(before, with_kwargs=True)
    decoder.register_forward_hook(after, with_kwargs=True)
    _hooked.add(decoder)
