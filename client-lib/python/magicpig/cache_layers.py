"""The layers of a MagicPigCache: which rows a client holds, and how a step attends to them and to the daemon's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .channel import readable, token_major
from .exact import causal_mask, exact_attention
from .merging import merge

if TYPE_CHECKING:
    from .transformers import MagicPigCache

_RECENT_QUERIES = 64      # of each layer, sent with a prefill's rows: they set the balance of the signatures
_state = threading.local()  # .layer, .key: whose update() ran last and what it returned, until its attention runs; .unmasked: see below


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


class GlobalLayer(CacheLayerMixin):
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
        if self.cache.in_graph:
            return self.cache.gpu.update(self.index, key_states, value_states)
        return self._update(key_states, value_states)

    @torch.compiler.disable
    def _update(self, key_states: torch.Tensor, value_states: torch.Tensor):
        _check_update(self, key_states)
        if self.cache.step_on_gpu:
            self.keys, self.values = self.cache.gpu.update(self.index, key_states, value_states)
            self.length += 1
            _state.layer, _state.key = self, self.keys
            return self.keys, self.values
        if self.rows is None:
            self.lazy_initialization(key_states, value_states)
        self.rows.append(key_states, value_states)
        self.length += key_states.shape[2]
        self.keys, self.values = self.rows.view()
        _state.layer, _state.key = self, self.keys
        return self.keys, self.values

    def attend(self, module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
        """[1, T, heads, d_v], the output of this layer for the step's T new tokens."""
        if self.cache.step_on_gpu:
            return self.cache.gpu.attend(self.index, query, sink_logit)
        if self.cache.sealed:
            out = self._attend_sealed(query, key, value, scale, softcap, sink_logit)
            return out.to(query.dtype).to(query.device)[None]
        tokens = query.shape[2]
        recent = readable(query[0, :, -_RECENT_QUERIES:].transpose(0, 1)).clone(memory_format=torch.contiguous_format)
        if tokens < _RECENT_QUERIES and self.recent_queries is not None:
            recent = torch.cat([self.recent_queries, recent])[-_RECENT_QUERIES:]
        self.recent_queries = recent
        new = slice(key.shape[2] - tokens, key.shape[2])
        position, ingest = self.length - tokens, self.cache.prompt_rows
        if ingest is None:
            self.cache.channel.append(self.index, position, key[:, :, new], value[:, :, new], recent.cpu())
        else:
            ingest.append(self.index, position, key[:, :, new], value[:, :, new], recent)
        return attend_locally(module, query, key, value, mask, scale, softcap, sink_logit)

    def _attend_sealed(self, query, key, value, scale, softcap, sink_logit) -> torch.Tensor:
        cache, tokens = self.cache, query.shape[2]
        visible = causal_mask(tokens, key.shape[2], query.device) if tokens > 1 else None

        def local() -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = exact_attention(query, key, value, scale, visible, softcap, sink_logit)
            return out.cpu(), lse.cpu()

        position = self.length - tokens
        new = slice(key.shape[2] - tokens, key.shape[2])
        q = token_major(query)
        # An adaptive budget looks at the exact part of these very tokens: a head may turn to far rows from one token to the next. Without
        # one the daemon attends while we do.
        ours = local() if cache.options.may_adapt else None
        pending = cache.channel.submit_attend(self.index, q, position, self.window_start, ours)
        cache.channel.submit_append(self.index, position, key[:, :, new], value[:, :, new])
        out, lse = ours or local()
        stats = cache.stats
        heads = query.shape[1]
        stats.head_tokens += tokens * heads
        stats.exact_rows += heads * (tokens * (key.shape[2] - tokens) + tokens * (tokens + 1) // 2)
        for asked in pending:
            begin, result = asked[0], cache.channel.answer(asked)
            part = slice(begin, begin + result.out.shape[0])
            merge(out[part], lse[part], result.out, result.lse)
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
        parts = [self.cache.channel.read(self.index, 0, begin), self.cache.channel.read(self.index, start, length - start)]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(*parts))
        self.dtype, self.device = keys.dtype, keys.device
        self.rows, self.length, self.is_initialized = _Rows(keys, values, 2 * self.cache.options.window), length, True
        self.keys, self.values = self.rows.view()

    def append_again(self, begin: int) -> None:
        """Rows begin..length, which a daemon took with it. They are held: of a prompt all, later at least the last step's."""
        keys, values = self.rows.view()
        new = slice(self.rows.count - (self.length - begin), self.rows.count)
        queries = None if self.cache.sealed else self.recent_queries.cpu()
        self.cache.channel.append_again(self.index, begin, keys[:, :, new], values[:, :, new], queries)

    def drop_last(self, length: int) -> None:
        """Back to `length` tokens, which must be within the rows held at the end."""
        if self.length > length:
            if self.rows is not None:
                self.rows.count -= self.length - length
                self.keys, self.values = self.rows.view()
            self.length = length

    def to_gpu(self) -> None:
        """The GPU's path has the rows."""
        self.rows = self.recent_queries = None

    def from_gpu(self) -> None:
        """Back from there."""
        self.rows = _Rows(*self.cache.gpu.rows_of(self.index), 2 * self.cache.options.window)
        self.keys, self.values = self.rows.view()

    def get_seq_length(self) -> int:
        """In a graph, whose positions are given, what is compiled is not to depend on it."""
        return 0 if self.cache.in_graph else self.length

    def get_mask_sizes(self, query: torch.Tensor | int) -> tuple[int, int]:
        """(kv_length, kv_offset) of the rows that update() will return. The offset is the window's: rows before it are the
        sinks, and after the prompt this implementation builds its own mask."""
        if self.cache.in_graph:  # nobody makes a mask of it, and what is compiled is not to depend on the length
            return 1, 0
        held = self.rows.count if self.rows is not None else self.length
        return held + _query_length(query), self.length - held

    def get_max_cache_shape(self) -> int:
        return -1

    get_max_length = get_max_cache_shape

    def reset(self) -> None:
        raise NotImplementedError("a MagicPigCache holds one context; make another instead of reset()")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("MagicPigCache serves one sequence: beam search is not supported")

    batch_repeat_interleave = batch_select_indices = reorder_cache


class SlidingLayer(DynamicSlidingWindowLayer):
    """A layer with a sliding window: attends locally. Its rows go to the daemon too if the context shall be reopened."""

    def __init__(self, cache: MagicPigCache, index: int, sliding_window: int):
        super().__init__(sliding_window=sliding_window)
        self.cache, self.index = cache, index
        self._before: tuple[torch.Tensor, torch.Tensor, int] | None = None  # the last update of a step

    @property
    def length(self) -> int:
        return self.get_seq_length()

    @torch.compiler.disable
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        _check_update(self, key_states)
        self._before = (self.keys, self.values, self.length) if self.cache.sealed and self.is_initialized else None
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.cache.step_on_gpu and self.cache.keep_sliding:
            self.cache.gpu.update(self.index, key_states, value_states)
        _state.layer, _state.key = self, keys
        return keys, values

    def attend(self, module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
        if not self.cache.keep_sliding or self.cache.step_on_gpu:
            return attend_locally(module, query, key, value, mask, scale, softcap, sink_logit)
        tokens = query.shape[2]
        new, position = slice(key.shape[2] - tokens, key.shape[2]), self.length - tokens
        if self.cache.sealed:
            self.cache.channel.submit_append(self.index, position, key[:, :, new], value[:, :, new])
        elif self.cache.prompt_rows is None:
            self.cache.channel.append(self.index, position, key[:, :, new], value[:, :, new])
        else:
            self.cache.prompt_rows.append(self.index, position, key[:, :, new], value[:, :, new])
        return attend_locally(module, query, key, value, mask, scale, softcap, sink_logit)

    def trim(self, window_start_before: int) -> None:
        pass

    def reload(self, length: int) -> None:
        if not self.cache.keep_sliding:
            raise NotImplementedError("going back needs the rows of sliding layers in the daemon: use keep_sliding=True")
        begin = max(0, length - self.sliding_window + 1)
        self.keys, self.values = self.cache.channel.read(self.index, begin, length - begin)
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.cumulative_length, self.is_initialized = length, True

    def append_again(self, begin: int) -> None:
        if not self.cache.keep_sliding:
            return
        count, held = self.length - begin, self.keys.shape[2]
        if count > held:
            raise RuntimeError(
                f"the daemon went away with {count} rows of layer {self.index} that were not committed, of which its sliding "
                f"window holds {held} here: run the prompt again"
            )
        new = slice(held - count, held)
        self.cache.channel.append_again(self.index, begin, self.keys[:, :, new], self.values[:, :, new])

    def drop_last(self, length: int) -> None:
        if self._before is not None and self._before[2] == length < self.length:
            self.keys, self.values, self.cumulative_length = self._before
        elif self.length > length:
            self.reload(length)

    def to_gpu(self) -> None:
        pass

    from_gpu = to_gpu


def _query_length(query: torch.Tensor | int) -> int:
    """get_mask_sizes is given positions by transformers 4.57 and a number by 5.x."""
    return query if isinstance(query, int) else int(query.shape[0])


def attend_locally(module, query, key, value, mask, scale, softcap, sink_logit) -> torch.Tensor:
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


# ---- from a layer's update() to its attention -----------------------------------------------------------------------------


def _check_update(layer: GlobalLayer | SlidingLayer, key_states: torch.Tensor) -> None:
    forgotten = getattr(_state, "layer", None) is not None
    clear_pending()
    if key_states.shape[0] != 1:
        raise ValueError(f"MagicPigCache serves one sequence at a time, got a batch of {key_states.shape[0]}")
    if not layer.cache.step_open:
        raise RuntimeError("MagicPigCache does not know this step's tokens: run the model it was made for, or begin_step(ids)")
    if forgotten:
        raise RuntimeError('the model does not use attn_implementation="magicpig": call magicpig.transformers.register(model)')


def clear_pending() -> None:
    _state.layer = _state.key = None


def set_unmasked(unmasked: bool) -> None:
    """Whether the forward pass that begins needs no mask: one token, which sees every row it is given."""
    _state.unmasked = unmasked


def is_unmasked() -> bool:
    return getattr(_state, "unmasked", False)


def take_pending(key: torch.Tensor, index: int | None) -> GlobalLayer | SlidingLayer | None:
    """The layer whose update() returned `key` just now; None without a MagicPigCache."""
    layer, own = getattr(_state, "layer", None), getattr(_state, "key", None)
    clear_pending()
    if layer is not None and (own is not key or index not in (None, layer.index)):
        raise RuntimeError(f"layer {index} does not attend to what the cache returned for layer {layer.index}: not supported")
    return layer
