"""Hugging Face transformers on magicpigd: a Cache class and the attention implementation "magicpig".

    magicpig.transformers.register(model)                      # or attn_implementation="magicpig" when loading
    cache = MagicPigCache(client, model, name="book")          # or MagicPigCache.open(client, model, prompt_ids)
    model.generate(input_ids, past_key_values=cache, ...)

While the prompt is processed, attention is the usual one over full K and V, and the rows of every layer are appended to the
daemon. At its end (the first one-token step, or seal()) the daemon indexes them and the client keeps only `sinks` first rows
and a recent window of `window` to 2 * `window` rows. From then on every step attends exactly to those, asks the daemon for
all rows between, and merges the two by their LSE; the step's own rows join the daemon's when the forward pass ends.

A daemon that is killed or restarted meanwhile is waited for (the client's reconnect_ms): its successor has what was committed, gets
the rest once more, and gives the same answers. The model does not notice.

With the model on a GPU, steps of one token are asked for, answered and merged without the host (gpu_path.py), and can be captured
(MagicPigCache.graph); what they append is committed some tokens later, and by flush() and close().

One sequence at a time (batch size 1), without padding. Layers with a sliding window attend locally; their rows are kept in
the daemon too (without an index), so that another process can reopen the context.
"""

from __future__ import annotations

import os
from typing import Any, Callable

import numpy as np
import torch
from transformers.cache_utils import Cache

from . import decode_graph, model_spec
from .arrays import token_array
from .attention import NAME, hook, magicpig_attention, register
from .cache_layers import GlobalLayer, SlidingLayer, clear_pending
from .channel import Channel, again
from .client import Client, Context
from .errors import AccessDenied, Busy, Error, NotFound, Retry
from .gpu_path import open_gpu_path
from .model_spec import attention_modules, fingerprint, layer_table, sliding_windows, text_config
from .options import Options, Stats
from .prompt_rows import PromptRows
from .records import Spec

__all__ = ["MagicPigCache", "NAME", "Options", "Stats", "fingerprint", "layer_table", "magicpig_attention", "register"]

_MOST_UNCOMMITTED = 32_768  # tokens of a prompt; a longer one is committed, and indexed by the daemon, as it grows


class MagicPigCache(Cache):
    """The KV of one sequence: the beginning and the recent end here, everything in the daemon's context `cache.context`.

    Keyword options are those of Options, and of the spec of a new context: row_dtype (bf16, f16, i8), signature_bits (0 =
    no such index, "auto": chosen for each KV head), paper=(K, L) (tables, (0, 0) = none), keep_sliding, mode, context_seed. A cache belongs to one thread at
    a time. close() gives the context back; the KV stays in the daemon."""

    def __init__(
        self,
        client: Client,
        model: torch.nn.Module,
        name: str,
        *,
        fingerprint: bytes | None = None,
        row_dtype: str = "bf16",
        signature_bits: int | str = 2,
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
        spec = Spec(
            layers=layers,
            fingerprint=model_spec.fingerprint(model) if fingerprint is None else fingerprint,
            mode=mode,
            seed=context_seed,
            expected_tokens=expected_tokens,
        )
        context = client.create(name, spec)
        try:
            self._attach(client, model, context, layers, chosen)
        except BaseException:
            context.close()
            raise

    @classmethod
    def open(
        cls,
        client: Client,
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
        digest = model_spec.fingerprint(model) if fingerprint is None else fingerprint
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
        self.sealed, self.committed, self._step, self._held = False, 0, None, None
        self.step_on_gpu = self.in_graph = False
        register()
        windows = sliding_windows(text_config(model))
        if len(windows) != len(layers):
            raise ValueError(f"context {context.name} has {len(layers)} layers, the model {len(windows)}")
        self.keep_sliding = all(layer.kind == "global" for layer in layers)
        modules, home = attention_modules(model), next(model.parameters())

        def homes(layer: int) -> torch.Tensor:
            return next(modules[layer].parameters(), home) if layer in modules else home

        places = [homes(index) for index in range(len(layers))]
        self.gpu = open_gpu_path(self, layers, windows, places)
        try:
            self.channel = Channel(client, context, layers, homes, options, self.stats)
        except BaseException:
            if self.gpu is not None:
                self.gpu.close()
            raise
        self.prompt_rows = PromptRows(client, self.channel, self.gpu.device) if self.gpu else None
        own = [
            GlobalLayer(self, i) if window is None else SlidingLayer(self, i, window) for i, window in enumerate(windows)
        ]
        super().__init__(layers=own)
        hook(model, MagicPigCache)

    def _resume(self, length: int) -> None:
        if not self.keep_sliding:
            raise NotImplementedError(
                f"context {self.context.name} has no rows of the model's sliding layers and cannot be reopened"
            )
        self.sealed, self.committed = True, length
        for layer in self.layers:
            layer.reload(length)

    def close(self) -> None:
        """Gives queues, handle and lease back. What has been committed stays in the daemon, steps on a GPU included; a prompt that was
        never sealed is not."""
        try:
            self.flush()
        finally:
            if self.gpu is not None:
                self.prompt_rows.close()
                self.gpu.close()
            self.channel.close()

    def __enter__(self) -> MagicPigCache:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            self.close()
        except Error:
            if kind is None:
                raise  # else what has happened before matters more

    # ---- steps

    @property
    def step_open(self) -> bool:
        return self._step is not None

    @property
    def length(self) -> int:
        """Tokens of finished forward passes."""
        if self.gpu is not None and self.gpu.holds:
            return self.gpu.length
        return self.committed + (0 if self._held is None else int(self._held.size))

    @property
    def window_start(self) -> int:
        """The first row of the recent window: a function of the length alone, moved in strides of `window`, so that the
        same position attends to the same rows in every process."""
        w = self.options.window
        return max(self.options.sinks, w * ((self.length - w) // w))

    def begin_step(self, ids: Any) -> None:
        """A forward pass over these tokens begins. Called by a hook on the model; call it yourself only if you feed the model
        embeddings, with ids that identify them."""
        shape = getattr(ids, "shape", ())
        if len(shape) == 2 and shape[0] != 1:
            raise ValueError(f"MagicPigCache serves one sequence at a time, got a batch of {shape[0]}")
        if self._step is not None:
            self._abandon_step()
        clear_pending()
        if self._enter_gpu(ids):
            self.gpu.begin(ids)
            self._step, self.step_on_gpu = ids, True
            if not self.in_graph:
                self.gpu.advance()
            return
        self._leave_gpu()
        step = token_array(ids)
        if step.size == 0:
            raise ValueError("ids: a step has at least one token")
        if not self.sealed and self._held is not None:
            if step.size == 1:
                self.seal()
            elif self._held.size >= _MOST_UNCOMMITTED:
                self._commit_held(seal=False)
        self._step = step

    def see_padding(self, mask: torch.Tensor) -> None:
        """The step's attention mask [1, tokens]: ValueError for zeros in it, at the end of the step if that is a GPU's."""
        if self.step_on_gpu:
            self.gpu.see_padding(mask)
        elif not bool(mask.all()):
            self._abandon_step()
            raise ValueError("MagicPigCache serves one sequence without padding: the attention mask has zeros")

    def end_step(self) -> bool:
        """The forward pass is over: commits its tokens. A prompt's are kept back until seal(), so that its index is made of
        all its rows and its last queries; those of a GPU's steps follow some at a time. False, of a GPU's step: the daemon went away
        or stood still, and the forward pass is to be made again."""
        if self._step is None:
            raise RuntimeError("end_step without begin_step")
        if self.prompt_rows is not None:
            self.prompt_rows.finish()
        self.channel.collect()
        end = self.length + (1 if self.step_on_gpu else self._step.size)
        short = [layer.index for layer in self.layers if layer.length != end]
        if short:
            raise RuntimeError(f"layers {short} were not run for all tokens of this step; nothing is committed")
        if self.step_on_gpu:
            return self._end_gpu_step()
        step, self._step = self._step, None
        if not self.sealed:
            self._held = step if self._held is None else np.concatenate([self._held, step])
            return True
        before = self.window_start
        self._commit(step)
        self.committed = end
        self._trim(before)
        self.stats.steps += 1
        self.stats.tokens += int(step.size)
        return True

    def seal(self) -> None:
        """The prompt is complete: commits it, has the daemon index it, and keeps only sinks and window here. The first
        one-token step does this by itself."""
        if self._step is not None:
            raise RuntimeError("seal() within a forward pass")
        if self.sealed:
            return
        if not self.length:
            raise ValueError("seal: the context is empty")
        self.channel.forget_rows_from(self.length)
        self._commit_held(seal=True)
        self.sealed = True
        if self.prompt_rows is not None:
            self.prompt_rows.close()
        self._trim(0)

    def _trim(self, window_start_before: int) -> None:
        for layer in self.layers:
            layer.trim(window_start_before)

    # ---- steps that a GPU makes by itself

    def _enter_gpu(self, ids: Any) -> bool:
        """Whether this step is one of them; then the rows are on the GPU."""
        if self.gpu is None or not isinstance(ids, torch.Tensor) or ids.numel() != 1:
            return False
        if not self.sealed:
            if self._held is None:
                return False
            self.seal()
        if not self.gpu.holds and self.gpu.can_take(self.length):
            self.gpu.take(self.length)
            for layer in self.layers:
                layer.to_gpu()
        return self.gpu.holds

    def _leave_gpu(self) -> None:
        if self.gpu is None or not self.gpu.holds:
            return
        self.gpu.flush()
        for layer in self.layers:
            layer.from_gpu()
        self.gpu.holds = False

    def _end_gpu_step(self) -> bool:
        start, length = self.window_start, self.length
        if not self.gpu.end():
            self.stats.repeated += 1
            for layer in self.layers:
                layer.drop_last(length)
            clear_pending()
            self.gpu.begin(self._step)
            if not self.in_graph:
                self.gpu.advance()
            return False
        self._step, self.step_on_gpu = None, False
        sampled = [layer.query_heads for layer, own in zip(self.channel.table, self.layers) if isinstance(own, GlobalLayer)]
        self.stats.head_tokens += sum(sampled)
        self.stats.exact_rows += sum(sampled) * (length + 1 - (start - self.options.sinks))
        self.stats.steps += 1
        self.stats.tokens += 1
        return True

    def graph(self, model: torch.nn.Module, *, compiled: bool | dict[str, Any] = False) -> decode_graph.DecodeGraph:
        """One-token steps of `model` as a CUDA graph: logits = cache.graph(model)(ids). `compiled`: the model goes through torch.compile
        first, as one piece, with these options if it is a dict. ValueError if steps are not made by a GPU."""
        return decode_graph.DecodeGraph(model, self, compiled)

    def flush(self) -> None:
        """Commits what steps on a GPU have left there: after it the daemon has every token of `length`."""
        if self.gpu is not None and self.gpu.holds:
            if self._step is not None:
                self._abandon_step()
            self.gpu.flush()

    def commit_rows(self, begin: int, tokens: np.ndarray, rows: dict[int, torch.Tensor]) -> None:
        """Appends and commits rows begin.. of each layer, [2, n, kv_heads, d] in host memory."""

        def append_from(done: int) -> None:
            if done < begin + tokens.size:
                new = slice(max(done, begin) - begin, None)
                for index, (k, v) in rows.items():
                    self.channel.submit_rows(index, begin + new.start, k[new], v[new])
                self.channel.collect()

        append_from(begin)
        self._commit(tokens, append_again=append_from)
        self.committed = begin + int(tokens.size)

    # ---- commits

    def _commit_held(self, seal: bool) -> None:
        tokens = np.zeros(0, np.uint32) if self._held is None else self._held
        self._commit(tokens, seal)
        self.committed += int(tokens.size)
        self._held = None

    def _commit(self, tokens: np.ndarray, seal: bool = False, append_again: Callable[[int], None] | None = None) -> None:
        """Commits these tokens after those that are. A daemon that goes away takes rows that are not committed with it: its
        successor gets them again. What it had committed without our hearing of it may be committed once more."""

        def append_layers(done: int) -> None:
            for layer in self.layers:
                if done < layer.length:
                    layer.append_again(max(done, self.committed))

        def attempt() -> None:
            if self.channel.lost:
                self.channel.discard()
                done = self.channel.reconnect()
                try:
                    self.channel.lost = False
                    (append_again or append_layers)(done)
                except BaseException:
                    self.channel.lost = True
                    raise
            try:
                if self.channel.lost:
                    raise Retry()
                self.channel.commit(self.committed, tokens, seal=seal)
            except Retry:
                self.channel.lost = True
                raise

        again(attempt)

    def _abandon_step(self) -> None:
        """The last forward pass failed half way: forget its rows. Rows the daemon has of it were never committed."""
        on_gpu, self._step, self.step_on_gpu = self.step_on_gpu, None, False
        if on_gpu:
            self.gpu.abandon()
        if self.prompt_rows is not None:
            self.prompt_rows.discard()
        self.channel.discard()
        for layer in self.layers:
            layer.drop_last(self.length)

    def crop(self, max_length: int) -> None:
        """Back to max_length tokens (negative: that many fewer), here and in the daemon."""
        length = self.length + max_length if max_length < 0 else max_length
        if length >= self.length:
            return
        if length < 1:
            raise ValueError("crop: at least one token stays")
        if self._step is not None:
            self._abandon_step()
        self._leave_gpu()
        if length < self.committed:
            self.channel.truncate(length)
            self.committed, self._held = length, None
        else:
            self._held = self._held[: length - self.committed] if length > self.committed else None
        for layer in self.layers:
            layer.reload(length) if self.sealed else layer.drop_last(length)


def _open_writable(client, context, length: int, digest: bytes, fork_name: str | None) -> Context:
    """The matched context itself if it ends where we go on and its lease is free; otherwise a fork of it."""
    if context.committed == length and fork_name is None:
        try:
            return client.open(context.name, write=True, fingerprint=digest)
        except (Busy, AccessDenied):
            pass
    name = fork_name or f"{context.name[:96]}~{os.urandom(6).hex()}"
    return context.fork(name, length)
