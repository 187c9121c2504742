"""Hugging Face transformers on magicpigd: a Cache class and the attention implementation "magicpig".

    magicpig.transformers.register(model)                      # or attn_implementation="magicpig" when loading
    cache = MagicPigCache(client, model, name="book")          # or MagicPigCache.open(client, model, prompt_ids)
    model.generate(input_ids, past_key_values=cache, ...)

While the prompt is processed, attention is the usual one over full K and V, and the rows of every layer are appended to the
daemon. At its end (the first one-token step, or seal()) the daemon indexes them and the client keeps only `sinks` first rows
and a recent window of `window` to 2 * `window` rows. From then on every step attends exactly to those, asks the daemon for
all rows between, and merges the two by their LSE; the step's own rows join the daemon's when the forward pass ends.

One sequence at a time (batch size 1), without padding. Layers with a sliding window attend locally; their rows are kept in
the daemon too (without an index), so that another process can reopen the context.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import threading
from collections import deque
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, Sequence
from weakref import WeakSet

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from . import client as _client
from .arrays import token_array
from .errors import AccessDenied, Again, Busy, Error, NotFound
from .exact import causal_mask, exact_attention

NAME = "magicpig"
_RECENT_QUERIES = 64      # of each layer, sent with a prefill's rows: they set the balance of the signatures
_MIN_SLOT_BYTES = 256 * 1024
_MOST_UNCOMMITTED = 32_768  # tokens of a prompt; a longer one is committed, and indexed by the daemon, as it grows
_SEAL_TIMEOUT_MS = 600_000  # sealing indexes a whole prompt
_state = threading.local()  # .layer, .key: whose update() ran last and what it returned, until its attention runs


@dataclass
class Options:
    """How steps after the prompt attend.

    proposal: dense, signature, paper, topk, uniform, or "window" (no rows of the daemon: a baseline). budget: share of rows;
    0 = the layer's default. window: at least this many recent rows are exact. sinks: so are the first rows. sampled_layers:
    the others attend densely; None = all sampled. error_target: eps of the adaptive budget instead of a fixed one."""

    proposal: str = "signature"
    budget: float = 0.01
    window: int = 64
    sinks: int = 4
    seed: int = 0
    sampled_layers: Sequence[int] | None = None
    error_target: float = 0.0

    def check(self) -> Options:
        if self.proposal != "window" and self.proposal not in _client.PROPOSALS:
            raise ValueError(f"proposal: {self.proposal!r} is not one of window, {', '.join(_client.PROPOSALS)}")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget: {self.budget} is not within 0..1")
        if self.window < 1 or self.sinks < 0:
            raise ValueError(f"window ({self.window}) must be at least 1 and sinks ({self.sinks}) at least 0")
        return self


@dataclass
class Stats:
    """Sums since the last reset(); `steps` counts forward passes after the prompt, `tokens` their tokens."""

    steps: int = 0
    tokens: int = 0
    rows_attended: int = 0  # by the daemon, over layers, heads and query tokens
    rows_visible: int = 0   # rows it could have attended, counted the same way
    exact_rows: int = 0     # attended by the client, counted the same way
    head_tokens: int = 0    # (layer, head, query token) triples
    bytes_read: int = 0     # rows and index the daemon looked at
    service_ns: int = 0

    @property
    def kept(self) -> float:
        return self.rows_attended / self.rows_visible if self.rows_visible else 0.0

    def reset(self) -> None:
        for f in fields(self):
            setattr(self, f.name, 0)


# ---- the rows a client holds ------------------------------------------------------------------------------------------


class _Rows:
    """K and V of some rows of one layer in buffers with room to grow: [1, kv_heads, capacity, d]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        self.count = keys.shape[2]
        self.k, self.v = self._with_room(keys, room), self._with_room(values, room)

    @staticmethod
    def _with_room(rows: torch.Tensor, room: int) -> torch.Tensor:
        buffer = rows.new_empty((*rows.shape[:2], rows.shape[2] + room, rows.shape[3]))
        buffer[:, :, : rows.shape[2]] = rows
        return buffer

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.count + keys.shape[2]
        if end > self.k.shape[2]:
            k, v = self.view()
            self.k, self.v = self._with_room(k, end), self._with_room(v, end)
        self.k[:, :, self.count : end] = keys
        self.v[:, :, self.count : end] = values
        self.count = end

    def view(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.k[:, :, : self.count], self.v[:, :, : self.count]

    def without(self, begin: int, end: int, room: int) -> _Rows:
        """A copy that lacks rows begin..end and has little spare room."""
        k, v = self.view()
        keep = [slice(0, begin), slice(end, self.count)]
        return _Rows(torch.cat([k[:, :, s] for s in keep], 2), torch.cat([v[:, :, s] for s in keep], 2), room)


class _GlobalLayer(CacheLayerMixin):
    """A layer whose rows live in the daemon. Held here: all rows while the prompt is processed, then rows 0..sinks and
    window_start..length."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, cache: MagicPigCache, index: int):
        super().__init__()
        self.cache, self.index = cache, index
        self.rows: _Rows | None = None
        self.length = 0
        self.recent_queries: torch.Tensor | None = None

    @property
    def window_start(self) -> int:
        return self.cache.window_start if self.cache.sealed else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        values = key_states if value_states is None else value_states
        self.rows = _Rows(key_states[:, :, :0], values[:, :, :0], 0)
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        _check_update(self, key_states)
        if self.rows is None:
            self.lazy_initialization(key_states, value_states)
        self.rows.append(key_states, value_states)
        self.length += key_states.shape[2]
        self.keys, self.values = self.rows.view()
        _state.layer, _state.key = self, self.keys
        return self.keys, self.values

    def attend(self, module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
        """[1, T, heads, d_v], the output of this layer for the step's T new tokens."""
        if self.cache.sealed:
            out = self._attend_sealed(query, key, value, scale, softcap, sink_logit)
            return out.to(query.dtype).to(query.device)[None]
        tokens = query.shape[2]
        recent = _token_major(query[:, :, -_RECENT_QUERIES:])
        if tokens < _RECENT_QUERIES and self.recent_queries is not None:
            recent = torch.cat([self.recent_queries, recent])[-_RECENT_QUERIES:]
        self.recent_queries = recent
        new = slice(key.shape[2] - tokens, key.shape[2])
        self.cache._append(self.index, self.length - tokens, key[:, :, new], value[:, :, new], recent)
        return _attend_locally(module, query, key, value, mask, scale, softcap, sink_logit)

    def _attend_sealed(self, query, key, value, scale, softcap, sink_logit) -> torch.Tensor:
        cache, tokens = self.cache, query.shape[2]
        visible = causal_mask(tokens, key.shape[2], query.device) if tokens > 1 else None

        def local() -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = exact_attention(query, key, value, scale, visible, softcap, sink_logit)
            return out.cpu(), lse.cpu()

        position = self.length - tokens
        new = slice(key.shape[2] - tokens, key.shape[2])
        q = _token_major(query)
        if cache.options.error_target:  # the budget depends on the exact part's mass, so that comes first
            out, lse = local()
            pending = cache._submit_attend(self.index, q, position, lse)
            cache._submit_append(self.index, position, key[:, :, new], value[:, :, new])
        else:  # the daemon attends while we do
            pending = cache._submit_attend(self.index, q, position, None)
            cache._submit_append(self.index, position, key[:, :, new], value[:, :, new])
            out, lse = local()
        stats = cache.stats
        heads = query.shape[1]
        stats.head_tokens += tokens * heads
        stats.exact_rows += heads * (tokens * (key.shape[2] - tokens) + tokens * (tokens + 1) // 2)
        for begin, ticket, result in pending:
            cache._wait(ticket)
            part = slice(begin, begin + result.out.shape[0])
            _client.merge(out[part], lse[part], result.out, result.lse)
            stats.rows_attended += int(result.rows.sum())
            stats.bytes_read += result.bytes_read
            stats.service_ns += result.service_ns
        return out

    def trim(self, window_start_before: int) -> None:
        """Forgets rows between the sinks and the window's present start."""
        begin = min(self.cache.options.sinks, self.length)
        end = begin + self.window_start - max(window_start_before, begin)
        if self.rows is not None and end > begin:
            self.rows = self.rows.without(begin, end, 2 * self.cache.options.window)
            self.keys, self.values = self.rows.view()
        self.recent_queries = None

    def reload(self, length: int) -> None:
        """Holds exactly what a sealed context of `length` tokens needs, read from the daemon."""
        begin = min(self.cache.options.sinks, length)
        start = min(self.window_start, length)
        parts = [self.cache._read(self.index, 0, begin), self.cache._read(self.index, start, length - start)]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(*parts))
        self.dtype, self.device = keys.dtype, keys.device
        self.rows, self.length, self.is_initialized = _Rows(keys, values, 2 * self.cache.options.window), length, True
        self.keys, self.values = self.rows.view()

    def drop_last(self, length: int) -> None:
        """Back to `length` tokens, which must be within the rows held at the end."""
        if self.rows is not None and self.length > length:
            self.rows.count -= self.length - length
            self.length = length
            self.keys, self.values = self.rows.view()

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query: torch.Tensor | int) -> tuple[int, int]:
        """(kv_length, kv_offset) of the rows that update() will return. The offset is the window's: rows before it are the
        sinks, and after the prompt this implementation builds its own mask."""
        held = self.rows.count if self.rows is not None else 0
        return held + _query_length(query), self.length - held

    def get_max_cache_shape(self) -> int:
        return -1

    get_max_length = get_max_cache_shape

    def reset(self) -> None:
        raise NotImplementedError("a MagicPigCache holds one context; make another instead of reset()")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("MagicPigCache serves one sequence: beam search is not supported")

    batch_repeat_interleave = batch_select_indices = reorder_cache


class _SlidingLayer(DynamicSlidingWindowLayer):
    """A layer with a sliding window: attends locally. Its rows go to the daemon too if the context shall be reopened."""

    def __init__(self, cache: MagicPigCache, index: int, sliding_window: int):
        super().__init__(sliding_window=sliding_window)
        self.cache, self.index = cache, index

    @property
    def length(self) -> int:
        return self.get_seq_length()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        _check_update(self, key_states)
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        _state.layer, _state.key = self, keys
        return keys, values

    def attend(self, module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
        tokens = query.shape[2]
        if self.cache.keep_sliding:
            new = slice(key.shape[2] - tokens, key.shape[2])
            append = self.cache._submit_append if self.cache.sealed else self.cache._append
            append(self.index, self.length - tokens, key[:, :, new], value[:, :, new])
        return _attend_locally(module, query, key, value, mask, scale, softcap, sink_logit)

    def trim(self, window_start_before: int) -> None:
        pass

    def reload(self, length: int) -> None:
        if not self.cache.keep_sliding:
            raise NotImplementedError("going back needs the rows of sliding layers in the daemon: use keep_sliding=True")
        begin = max(0, length - self.sliding_window + 1)
        self.keys, self.values = self.cache._read(self.index, begin, length - begin)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.cumulative_length, self.is_initialized = length, True

    def drop_last(self, length: int) -> None:
        if self.length > length:
            self.reload(length)


def _query_length(query: torch.Tensor | int) -> int:
    """get_mask_sizes is given positions by transformers 4.57 and a number by 5.x."""
    return query if isinstance(query, int) else int(query.shape[0])


def _token_major(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, d] on any device -> [T, heads, d], contiguous, in host memory, in a dtype the daemon reads."""
    states = states.detach()[0].transpose(0, 1).cpu()
    if states.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        states = states.float()
    return states.contiguous()


def _attend_locally(module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
    """Exact attention over K and V as given, under the model's own mask (None: causal)."""
    if not softcap and sink_logit is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scale)[0]
    if mask is None:
        visible = causal_mask(query.shape[2], key.shape[2], query.device)
    else:
        visible = mask[0, 0, :, : key.shape[2]]
        visible = visible if visible.dtype == torch.bool else visible >= 0
    out, _ = exact_attention(query, key, value, scale, visible, softcap, sink_logit)
    return out.to(query.dtype)[None]


# ---- the attention implementation -----------------------------------------------------------------------------------------


def _check_update(layer: _GlobalLayer | _SlidingLayer, key_states: torch.Tensor) -> None:
    forgotten = getattr(_state, "layer", None) is not None
    _clear_pending()
    if key_states.shape[0] != 1:
        raise ValueError(f"MagicPigCache serves one sequence at a time, got a batch of {key_states.shape[0]}")
    if not layer.cache.step_open:
        raise RuntimeError("MagicPigCache does not know this step's tokens: run the model it was made for, or begin_step(ids)")
    if forgotten:
        raise RuntimeError('the model does not use attn_implementation="magicpig": call magicpig.transformers.register(model)')


def _clear_pending() -> None:
    _state.layer = _state.key = None


def _take_pending(key: torch.Tensor, index: int | None) -> _GlobalLayer | _SlidingLayer | None:
    """The layer whose update() returned `key` just now; None without a MagicPigCache."""
    layer, own = getattr(_state, "layer", None), getattr(_state, "key", None)
    _clear_pending()
    if layer is not None and (own is not key or index not in (None, layer.index)):
        raise RuntimeError(f"layer {index} does not attend to what the cache returned for layer {layer.index}: not supported")
    return layer


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
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer = _take_pending(key, getattr(module, "layer_idx", None))
    if layer is None:
        if softcap or s_aux is not None:
            return _attend_locally(module, query, key, value, attention_mask, scale, softcap or 0.0, s_aux), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    layer.cache._check_layer(layer.index, query, scale, softcap or 0.0)
    return layer.attend(module, query, key, value, attention_mask, scale, softcap or 0.0, s_aux), None


def register(model: torch.nn.Module | None = None) -> None:
    """Makes attn_implementation="magicpig" known, and switches `model` to it if given. May be called again."""
    AttentionInterface.register(NAME, magicpig_attention)
    # Without a mask function of the same name transformers would pass no mask at all and chunked prefills would see ahead.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model is not None:
        model.set_attn_implementation(NAME)


_hooked: WeakSet[torch.nn.Module] = WeakSet()


def _hook(model: torch.nn.Module) -> None:
    """Tells a MagicPigCache when a forward pass of `model` begins (and with which tokens) and ends."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder = model if decoder is None else decoder
    if decoder in _hooked:
        return
    signature = inspect.signature(decoder.forward)

    def call_of(args: tuple, kwargs: dict) -> dict[str, Any]:
        bound = signature.bind_partial(*args, **kwargs).arguments
        return {**bound, **bound.get("kwargs", {})}

    def before(_module, args, kwargs):
        _clear_pending()
        call = call_of(args, kwargs)
        cache = call.get("past_key_values")
        if isinstance(cache, MagicPigCache):
            padding = call.get("attention_mask")
            if isinstance(padding, torch.Tensor) and padding.ndim == 2 and not bool(padding.all()):
                raise ValueError("MagicPigCache serves one sequence without padding: the attention mask has zeros")
            if call.get("input_ids") is not None:
                cache.begin_step(call["input_ids"])

    def after(_module, args, kwargs, _output):
        cache = call_of(args, kwargs).get("past_key_values")
        if isinstance(cache, MagicPigCache):
            cache.end_step()

    decoder.register_forward_pre_hook(before, with_kwargs=True)
    decoder.register_forward_hook(after, with_kwargs=True)
    _hooked.add(decoder)


# ---- what a model is, for the daemon ---------------------------------------------------------------------------------------


def _text_config(model: torch.nn.Module) -> Any:
    return model.config.get_text_config(decoder=True)


def _attention_modules(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    found: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        if hasattr(module, "layer_idx") and any(hasattr(module, a) for a in ("scaling", "num_key_value_groups")):
            found.setdefault(module.layer_idx, module)
    return found


def _sliding_windows(config: Any) -> list[int | None]:
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
    signature_bits: int = 2,
    paper: tuple[int, int] = (0, 0),
    keep_sliding: bool = True,
) -> list[_client.Layer]:
    """The layers of `model` as a context's spec wants them."""
    config, modules = _text_config(model), _attention_modules(model)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = []
    for index, sliding in enumerate(_sliding_windows(config)):
        module = modules.get(index)
        layer = _client.Layer(
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
        for key, value in _text_config(model).to_dict().items()
        if not key.startswith("_") and key not in ("transformers_version", "torch_dtype", "dtype", "attn_implementation")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:65].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.tobytes())
    return digest.digest()


# ---- the cache ------------------------------------------------------------------------------------------------------------


class MagicPigCache(Cache):
    """The KV of one sequence: the beginning and the recent end here, everything in the daemon's context `cache.context`.

    Keyword options are those of Options, and of the spec of a new context: row_dtype (bf16, f16, i8), signature_bits (0 =
    no such index), paper=(K, L) (tables, (0, 0) = none), keep_sliding, mode, context_seed. A cache belongs to one thread at
    a time. close() gives the context back; the KV stays in the daemon."""

    def __init__(
        self,
        client: _client.Client,
        model: torch.nn.Module,
        name: str,
        *,
        fingerprint: bytes | None = None,
        row_dtype: str = "bf16",
        signature_bits: int = 2,
        paper: tuple[int, int] = (0, 0),
        keep_sliding: bool = True,
        mode: int = 0o600,
        context_seed: int = 0,
        expected_tokens: int = 0,
        **options: Any,
    ):
        chosen = Options(**options).check()
        layers = layer_table(
            model, row_dtype=row_dtype, signature_bits=signature_bits, paper=paper, keep_sliding=keep_sliding
        )
        spec = _client.Spec(
            layers=layers,
            fingerprint=_fingerprint_of(model) if fingerprint is None else fingerprint,
            mode=mode,
            seed=context_seed,
            expected_tokens=expected_tokens,
        )
        self._attach(client, model, client.create(name, spec), layers, chosen)

    @classmethod
    def open(
        cls,
        client: _client.Client,
        model: torch.nn.Module,
        prompt_ids: Any,
        *,
        fingerprint: bytes | None = None,
        fork_name: str | None = None,
        min_tokens: int = 0,
        **options: Any,
    ) -> MagicPigCache:
        """The cache of the context with the longest common prefix of `prompt_ids`; then run the model on
        prompt_ids[cache.get_seq_length():] (generate does that by itself). At least one token is left to run. A context that
        is longer than the match, or whose lease another process holds, is forked under `fork_name`. NotFound if none
        matches at least min_tokens (1 if 0)."""
        chosen = Options(**options).check()
        ids = token_array(prompt_ids)
        if ids.size < 2:
            raise ValueError("prompt_ids: opening needs at least two tokens")
        digest = _fingerprint_of(model) if fingerprint is None else fingerprint
        context, matched = client.open_prefix(ids, fingerprint=digest, min_tokens=min_tokens)
        try:
            length = min(matched, ids.size - 1)
            if length < max(1, min_tokens):
                raise NotFound(f"the longest common prefix has {length} tokens, {max(1, min_tokens)} are needed")
            writable = _open_writable(client, context, length, digest, fork_name)
        finally:
            context.close()
        try:
            cache = cls.__new__(cls)
            cache._attach(client, model, writable, writable.layers, chosen)
            cache._resume(length)
        except BaseException:
            writable.close()
            raise
        return cache

    def _attach(self, client, model, context, layers, options) -> None:
        self.client, self.context, self.options, self.stats = client, context, options, Stats()
        self.sealed, self._committed, self._step, self._held = False, 0, None, None
        self._appends: deque[int] = deque()  # tickets of this step's rows
        self._polled: dict[int, _client.Completion] = {}  # taken by poll() before anybody waited for them
        self._table = layers
        self._modules = _attention_modules(model)
        self._home = next(model.parameters())
        register()
        windows = _sliding_windows(_text_config(model))
        if len(windows) != len(layers):
            raise ValueError(f"context {context.name} has {len(layers)} layers, the model {len(windows)}")
        self.keep_sliding = all(layer.kind == "global" for layer in layers)
        per_token = max(l.query_heads * ((l.d_k + (l.d_v or l.d_k)) * 4 + 32) for l in layers)
        slot_bytes = max(_MIN_SLOT_BYTES, 8192 + 16 * per_token)
        self._request_tokens = (slot_bytes - 8192) // per_token
        self._queue = client.queue(slot_bytes=slot_bytes, timeout_ms=_SEAL_TIMEOUT_MS)
        own = [
            _GlobalLayer(self, i) if window is None else _SlidingLayer(self, i, window) for i, window in enumerate(windows)
        ]
        super().__init__(layers=own)
        _hook(model)

    def _resume(self, length: int) -> None:
        if not self.keep_sliding:
            raise NotImplementedError(
                f"context {self.context.name} has no rows of the model's sliding layers and cannot be reopened"
            )
        self.sealed, self._committed = True, length
        for layer in self.layers:
            layer.reload(length)

    def close(self) -> None:
        """Gives queue, handle and lease back. What has been committed stays in the daemon; a prompt that was never sealed
        is not."""
        self._queue.close()
        self.context.close()

    def __enter__(self) -> MagicPigCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- steps

    @property
    def step_open(self) -> bool:
        return self._step is not None

    @property
    def length(self) -> int:
        """Tokens of finished forward passes."""
        return self._committed + (0 if self._held is None else int(self._held.size))

    @property
    def window_start(self) -> int:
        """The first row of the recent window: a function of the length alone, moved in strides of `window`, so that the
        same position attends to the same rows in every process."""
        w = self.options.window
        return max(self.options.sinks, w * ((self._committed - w) // w))

    def begin_step(self, ids: Any) -> None:
        """A forward pass over these tokens begins. Called by a hook on the model; call it yourself only if you feed the model
        embeddings, with ids that identify them."""
        shape = getattr(ids, "shape", ())
        if len(shape) == 2 and shape[0] != 1:
            raise ValueError(f"MagicPigCache serves one sequence at a time, got a batch of {shape[0]}")
        if self._step is not None:
            self._abandon_step()
        _clear_pending()
        step = token_array(ids)
        if step.size == 0:
            raise ValueError("ids: a step has at least one token")
        if not self.sealed and self._held is not None:
            if step.size == 1:
                self.seal()
            elif self._held.size >= _MOST_UNCOMMITTED:
                self._commit_held(seal=False)
        self._step = step

    def end_step(self) -> None:
        """The forward pass is over: commits its tokens. A prompt's are kept back until seal(), so that its index is made of
        all its rows and its last queries."""
        if self._step is None:
            raise RuntimeError("end_step without begin_step")
        while self._appends:
            self._wait(self._appends.popleft())
        end = self.length + self._step.size
        short = [layer.index for layer in self.layers if layer.length != end]
        if short:
            raise RuntimeError(f"layers {short} were not run for all tokens of this step; nothing is committed")
        step, self._step = self._step, None
        if not self.sealed:
            self._held = step if self._held is None else np.concatenate([self._held, step])
            return
        self._queue.commit(self.context, self._committed, step)
        before, self._committed = self.window_start, end
        self._trim(before)
        self.stats.steps += 1
        self.stats.tokens += int(step.size)

    def seal(self) -> None:
        """The prompt is complete: commits it, has the daemon index it, and keeps only sinks and window here. The first
        one-token step does this by itself."""
        if self._step is not None:
            raise RuntimeError("seal() within a forward pass")
        if self.sealed:
            return
        if not self.length:
            raise ValueError("seal: the context is empty")
        self._commit_held(seal=True)
        self.sealed = True
        self._trim(0)

    def _trim(self, window_start_before: int) -> None:
        for layer in self.layers:
            layer.trim(window_start_before)

    def _commit_held(self, seal: bool) -> None:
        tokens = np.zeros(0, np.uint32) if self._held is None else self._held
        self._queue.commit(self.context, self._committed, tokens, seal=seal)
        self._committed += int(tokens.size)
        self._held = None

    def _abandon_step(self) -> None:
        """The last forward pass failed half way: forget its rows. Rows the daemon has of it were never committed."""
        self._step = None
        self._drain()
        for layer in self.layers:
            layer.drop_last(self.length)

    def _drain(self) -> None:
        """Waits for what is in flight; errors belong to an abandoned step."""
        while self._appends:
            try:
                self._wait(self._appends.popleft())
            except Error:
                continue

    def crop(self, max_length: int) -> None:
        """Back to max_length tokens (negative: that many fewer), here and in the daemon."""
        length = self.length + max_length if max_length < 0 else max_length
        if length >= self.length:
            return
        if length < 1:
            raise ValueError("crop: at least one token stays")
        if self._step is not None:
            self._abandon_step()
        if length < self._committed:
            self._queue.truncate(self.context, length)
            self._committed, self._held = length, None
        else:
            self._held = self._held[: length - self._committed] if length > self._committed else None
        for layer in self.layers:
            layer.reload(length) if self.sealed else layer.drop_last(length)

    # ---- what layers ask of the daemon

    def _check_layer(self, index: int, query: torch.Tensor, scale: float, softcap: float) -> None:
        layer = self._table[index]
        if query.shape[1] != layer.query_heads or query.shape[3] != layer.d_k:
            raise ValueError(
                f"layer {index}: queries have {query.shape[1]} heads of {query.shape[3]}, the context {layer.query_heads} "
                f"of {layer.d_k}"
            )
        if abs(scale - (layer.scale or layer.d_k**-0.5)) > 1e-6 or abs(softcap - layer.softcap) > 1e-6:
            raise ValueError(f"layer {index}: the model's scale {scale} or soft cap {softcap} is not the context's")

    def _append(self, index: int, position: int, keys, values, queries: torch.Tensor | None = None) -> None:
        self._queue.append(self.context, index, position, _token_major(keys), _token_major(values), queries)

    def _submit_append(self, index: int, position: int, keys, values) -> None:
        """One slot's worth at a time, without waiting: end_step collects them."""
        layer = self._table[index]
        k, v = _token_major(keys), _token_major(values)
        per_row = layer.kv_heads * (layer.d_k + (layer.d_v or layer.d_k)) * k.element_size()
        most = max(1, (_MIN_SLOT_BYTES - 8192) // per_row)
        for begin in range(0, k.shape[0], most):
            part = slice(begin, begin + most)
            ticket = self._when_room(
                lambda: self._queue.submit_append(self.context, index, position + begin, k[part], v[part])
            )
            self._appends.append(ticket)

    def _submit_attend(self, index: int, q: torch.Tensor, position: int, lse: torch.Tensor | None) -> list[tuple]:
        """(first query token, ticket, result) for each slot's worth of queries; none if the daemon's range is empty."""
        options = self.options
        begin, end = options.sinks, self.window_start
        if end <= begin or options.proposal == "window":
            return []
        sampled = options.sampled_layers is None or index in options.sampled_layers
        self.stats.rows_visible += q.shape[0] * q.shape[1] * (end - begin)
        pending: list[tuple] = []
        for first in range(0, q.shape[0], self._request_tokens):
            part = slice(first, first + self._request_tokens)
            submit: Callable[[], Any] = lambda: self._queue.submit_attend(
                self.context,
                index,
                q[part],
                proposal=options.proposal if sampled else "dense",
                begin=begin,
                end=end,
                budget=options.budget if sampled else 0.0,
                seed=options.seed,
                query_position=position + first,
                error_target=options.error_target if sampled else 0.0,
                window_lse=None if lse is None else lse[part],
            )
            ticket, result = self._when_room(submit)
            pending.append((first, ticket, result))
        return pending

    def _when_room(self, submit: Callable[[], Any]) -> Any:
        """Submits; while the queue is full, waits for the oldest append, or for the oldest request to leave its slot."""
        while True:
            try:
                return submit()
            except Again:
                if self._appends:
                    self._wait(self._appends.popleft())
                else:
                    self._polled.update((completion.ticket, completion) for completion in self._queue.poll())

    def _wait(self, ticket: int) -> None:
        done = self._polled.pop(ticket, None)
        if done is not None:
            done.check()
        else:
            self._queue.wait(ticket)

    def _read(self, index: int, position: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [1, kv_heads, count, d] on the layer's device in the model's dtype."""
        layer = self._table[index]
        k = torch.empty(count, layer.kv_heads, layer.d_k)
        v = torch.empty(count, layer.kv_heads, layer.d_v or layer.d_k)
        if count:
            self._queue.read(self.context, index, position, count, k, v)
        home = next(self._modules[index].parameters(), self._home) if index in self._modules else self._home
        return tuple(x.transpose(0, 1)[None].to(home.device, home.dtype) for x in (k, v))


_fingerprint_of = fingerprint


def _open_writable(client, context, length: int, digest: bytes, fork_name: str | None) -> _client.Context:
    """The matched context itself if it ends where we go on and its lease is free; otherwise a fork of it."""
    if context.committed == length and fork_name is None:
        try:
            return client.open(context.name, write=True, fingerprint=digest)
        except (Busy, AccessDenied):
            pass
    name = fork_name or f"{context.name[:96]}~{os.urandom(6).hex()}"
    return context.fork(name, length)
