"""Queue: the data path. Every call has a blocking form and, where it pays, one that submits."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _lib, errors
from .arrays import DTYPE_CODES, Array, address, dtype_name, token_array
from .records import COMMIT_SEAL, PROPOSALS, AttendResult, Completion, choice

if TYPE_CHECKING:
    from .client import Client, Context
    from .cuda import Gpu

_INPUTS = ("f32", "bf16", "f16")


class Queue:
    """A pair of rings. One thread at a time."""

    def __init__(self, client: Client, handle: c_void_p):
        self.client = client
        self._lib = client._lib
        self._handle: c_void_p | None = handle
        self._sequence = 0
        self._tickets: dict[int, int] = {}  # user_data -> ticket, of everything submitted and not yet seen
        self._user_data: dict[int, int] = {}  # the inverse
        self._results: dict[int, AttendResult] = {}  # by ticket: keeps the arrays alive that a completion will write
        self._gpu: Gpu | None = None  # whom it is lent to
        client._children.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError("the queue is closed")
        return self._handle

    def close(self) -> None:
        if self._handle is not None:
            if self._gpu is not None:
                self._gpu.close()
            self._lib.mpig_queue_destroy(self._handle)
            self._handle = None
            self._tickets.clear()
            self._user_data.clear()
            self._results.clear()

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _pack_attend(
        self,
        context: Context,
        layer: int,
        q: Array,
        proposal: str = "default",
        begin: int = 0,
        end: int = 0,
        budget: float = 0.0,
        seed: int = 0,
        query_position: int = 0,
        causal_base: int | None = None,
        error_target: float = 0.0,
        budget_floor: float = 0.0,
        budget_cap: float = 0.0,
        window_lse: Array | None = None,
        delta: float = 0.0,
        window_out: Array | None = None,
        errors: bool = False,
        result: AttendResult | None = None,
    ) -> tuple[_lib.Attend, AttendResult]:
        if not 0 <= layer < len(context.layers):
            raise ValueError(f"layer: {layer} is not within 0..{len(context.layers) - 1}")
        shape = context.layers[layer]
        tokens = q.shape[0] if q.ndim == 3 else 1
        wanted = (tokens, shape.query_heads, shape.d_k)
        if tuple(q.shape) not in (wanted, wanted[1:]):
            raise ValueError(f"q: shape {tuple(q.shape)} where [T, {shape.query_heads}, {shape.d_k}] is needed")
        raw = _lib.Attend(
            size=ctypes.sizeof(_lib.Attend),
            layer=layer,
            proposal=choice(PROPOSALS, proposal, "proposal"),
            dtype=DTYPE_CODES[dtype_name(q)] if dtype_name(q) in DTYPE_CODES else -1,
            tokens=tokens,
            q=address(q, "q", _INPUTS),
            begin=begin,
            end=end,
            budget=budget,
            seed=seed,
            query_position=query_position,
            causal=0 if causal_base is None else 1,
            causal_base=causal_base or 0,
            error_target=error_target,
            budget_floor=budget_floor,
            budget_cap=budget_cap,
            delta=delta,
        )
        if window_lse is not None:
            lse_shape = wanted[:2] if window_lse.ndim == 2 or tokens > 1 else wanted[1:2]
            raw.window_lse = address(window_lse, "window_lse", ("f32",), lse_shape)
        d_v = shape.d_v or shape.d_k
        if window_out is not None:
            out_shape = (*wanted[:2], d_v) if window_out.ndim == 3 or tokens > 1 else (wanted[1], d_v)
            raw.window_out = address(window_out, "window_out", ("f32",), out_shape)
        if result is None:
            result = AttendResult.new(q, tokens, shape.query_heads, d_v, errors)
        elif tuple(result.out.shape) != (tokens, shape.query_heads, d_v):
            raise ValueError(f"result: shape {tuple(result.out.shape)} where {(tokens, shape.query_heads, d_v)} is needed")
        return raw, result

    def attend(self, context: Context, layer: int, q: Array, **options: Any) -> AttendResult:
        """Attends to rows begin..end of one layer. q [T, heads, d_k] or [heads, d_k] in fp32, fp16 or bf16.

        Options: proposal, begin, end (<= 0: relative to the committed length), budget, seed, query_position, causal_base,
        error_target, budget_floor, budget_cap, window_lse, delta (a verified answer: the merged output errs by more than
        error_target with at most this probability), window_out (the caller's part of it), errors (also return the error
        terms), result (to reuse one)."""
        raw, result = self._pack_attend(context, layer, q, **options)
        call = self._lib.mpig_attend
        self.client._check(call(self._open_handle(), context._open_handle(), byref(raw), byref(result.raw)))
        return result

    def submit_attend(self, context: Context, layer: int, q: Array, **options: Any) -> tuple[int, AttendResult]:
        """As attend, without waiting: a ticket and the result that wait(ticket) or poll() will have filled."""
        raw, result = self._pack_attend(context, layer, q, **options)
        call = self._lib.mpig_submit_attend
        user_data = self._sequence
        ticket = self._submitted(call(self._open_handle(), context._open_handle(), byref(raw), byref(result.raw), user_data))
        self._results[ticket] = result
        return ticket, result

    def _submitted(self, ticket: int) -> int:
        self.client._check(ticket if ticket < 0 else 0)
        self._tickets[self._sequence] = ticket
        self._user_data[ticket] = self._sequence
        self._sequence += 1
        return ticket

    def _seen(self, ticket: int) -> None:
        self._tickets.pop(self._user_data.pop(ticket, -1), None)
        self._results.pop(ticket, None)

    @staticmethod
    def _pack_rows(context: Context, layer: int, k: Array, v: Array, queries: Array | None) -> tuple[Any, ...]:
        if not 0 <= layer < len(context.layers):
            raise ValueError(f"layer: {layer} is not within 0..{len(context.layers) - 1}")
        shape, count = context.layers[layer], k.shape[0]
        name = dtype_name(k)
        k_at = address(k, "k", _INPUTS, (count, shape.kv_heads, shape.d_k))
        v_at = address(v, "v", (name,), (count, shape.kv_heads, shape.d_v or shape.d_k))
        q_at = None
        if queries is not None:
            q_at = address(queries, "queries", (name,), (queries.shape[0], shape.query_heads, shape.d_k))
        return count, DTYPE_CODES[name], k_at, v_at, q_at, 0 if queries is None else queries.shape[0]

    def append(
        self, context: Context, layer: int, position: int, k: Array, v: Array, queries: Array | None = None
    ) -> None:
        """Rows of one layer: k [n, kv_heads, d_k], v [n, kv_heads, d_v]; queries [R, heads, d_k]: the layer's most recent."""
        count, code, k_at, v_at, q_at, r = self._pack_rows(context, layer, k, v, queries)
        call = self._lib.mpig_append
        self.client._check(
            call(self._open_handle(), context._open_handle(), layer, position, count, code, k_at, v_at, q_at, r)
        )

    def submit_append(
        self, context: Context, layer: int, position: int, k: Array, v: Array, queries: Array | None = None
    ) -> int:
        """As append for rows that fit one slot; the arrays are copied before it returns."""
        count, code, k_at, v_at, q_at, r = self._pack_rows(context, layer, k, v, queries)
        call, handle = self._lib.mpig_submit_append, context._open_handle()
        user_data = self._sequence
        return self._submitted(
            call(self._open_handle(), handle, layer, position, count, code, k_at, v_at, q_at, r, user_data)
        )

    def commit(self, context: Context, position: int, tokens: Any, *, seal: bool = False) -> None:
        """Makes the tokens at `position` visible. seal: the end of a prefill, seal and index."""
        ids, flags = token_array(tokens), COMMIT_SEAL if seal else 0
        call = self._lib.mpig_commit
        self.client._check(
            call(self._open_handle(), context._open_handle(), position, ids.size, ids.ctypes.data, flags)
        )

    def submit_commit(self, context: Context, position: int, tokens: Any, *, seal: bool = False) -> int:
        ids, flags = token_array(tokens), COMMIT_SEAL if seal else 0
        call, user_data = self._lib.mpig_submit_commit, self._sequence
        return self._submitted(
            call(self._open_handle(), context._open_handle(), position, ids.size, ids.ctypes.data, flags, user_data)
        )

    def truncate(self, context: Context, position: int) -> None:
        self.client._check(self._lib.mpig_truncate(self._open_handle(), context._open_handle(), position))

    def read(
        self, context: Context, layer: int, position: int, count: int, k: Array | None = None, v: Array | None = None
    ) -> tuple[Array, Array]:
        """Rows back as fp32: (k [count, kv_heads, d_k], v [count, kv_heads, d_v]), into the arrays given or new numpy ones."""
        if not 0 <= layer < len(context.layers):
            raise ValueError(f"layer: {layer} is not within 0..{len(context.layers) - 1}")
        shape = context.layers[layer]
        k_shape, v_shape = (count, shape.kv_heads, shape.d_k), (count, shape.kv_heads, shape.d_v or shape.d_k)
        k = np.empty(k_shape, np.float32) if k is None else k
        v = np.empty(v_shape, np.float32) if v is None else v
        k_at, v_at = address(k, "k", ("f32",), k_shape, True), address(v, "v", ("f32",), v_shape, True)
        call = self._lib.mpig_read
        self.client._check(call(self._open_handle(), context._open_handle(), layer, position, count, k_at, v_at))
        return k, v

    def nop(self) -> None:
        self.client._check(self._lib.mpig_nop(self._open_handle()))

    def submit_nop(self) -> int:
        return self._submitted(self._lib.mpig_submit_nop(self._open_handle(), self._sequence))

    def poll(self, limit: int = 64) -> list[Completion]:
        """Completions that have arrived, without waiting."""
        raw = (_lib.Completion * limit)()
        count = self.client._check(self._lib.mpig_poll(self._open_handle(), raw, limit))
        done = []
        for i in range(count):
            ticket = self._tickets[raw[i].user_data]
            self._seen(ticket)
            done.append(Completion(ticket, raw[i].status))
        return done

    def wait(self, ticket: int, timeout_ms: int = 0) -> None:
        """Waits for one ticket and raises its error, if any. After TimedOut the request is still in flight."""
        status = self._lib.mpig_wait(self._open_handle(), ticket, timeout_ms)
        if status != errors.TimedOut.status:
            self._seen(ticket)
        self.client._check(status)
