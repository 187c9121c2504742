"""What a Hugging Face model is, as a context's spec wants it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch

from .records import Layer


def text_config(model: torch.nn.Module) -> Any:
    return model.config.get_text_config(decoder=True)


def attention_modules(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    found: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        if hasattr(module, "layer_idx") and any(hasattr(module, a) for a in ("scaling", "num_key_value_groups")):
            found.setdefault(module.layer_idx, module)
    return found


def sliding_windows(config: Any) -> list[int | None]:
    """Per layer: the sliding window, or None for full attention. Same rules as transformers' DynamicCache."""
    if getattr(config, "num_kv_shared_layers", 0):
        raise NotImplementedError("layers that share another layer's KV (num_kv_shared_layers) are not supported")
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        if getattr(config, "attention_chunk_size", None):
            types = ["chunked_attention"] * config.num_hidden_layers
        else:
            types = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    unknown = sorted(set(types) - {"sliding_attention", "full_attention"})
    if unknown:
        raise NotImplementedError(f"layers of type {', '.join(unknown)} are not supported, only full and sliding attention")
    return [window if kind == "sliding_attention" else None for kind in types]


def layer_table(
    model: torch.nn.Module,
    *,
    row_dtype: str = "bf16",
    signature_bits: int | str = 2,
    paper: tuple[int, int] = (0, 0),
    keep_sliding: bool = True,
) -> list[Layer]:
    """The layers of `model` as a context's spec wants them."""
    config, modules = text_config(model), attention_modules(model)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = []
    for index, sliding in enumerate(sliding_windows(config)):
        module = modules.get(index)
        layer = Layer(
            query_heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            d_k=head_dim,
            d_v=head_dim,
            row_dtype=row_dtype,
            scale=float(getattr(module, "scaling", None) or head_dim**-0.5),
            softcap=float(getattr(config, "attn_logit_softcapping", None) or 0.0),
            signature_bits=signature_bits,
            paper=paper,
        )
        if sliding is not None:
            kind = "global" if keep_sliding else "sliding"  # only global layers store rows
            layer = replace(layer, kind=kind, window=sliding, signature_bits=0, paper=(0, 0))
        layers.append(layer)
    return layers


def fingerprint(model: torch.nn.Module) -> bytes:
    """What the KV depends on besides token ids: the configuration and a sample of every parameter, adapters included. A
    tokenizer is not seen by the model and so not by this; two that map text differently give different token ids."""
    config = {
        key: value
        for key, value in text_config(model).to_dict().items()
        if not key.startswith("_") and key not in ("transformers_version", "torch_dtype", "dtype", "attn_implementation")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:65].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.tobytes())
    return digest.digest()
