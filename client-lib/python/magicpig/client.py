"""Client, Context and Queue: the objects of magicpig.h with Python's manners.

Lifetimes: a Client owns its queues and contexts; closing it closes them. All three are context managers. Threads as in the
header: a Client and its Contexts may be used by any thread, a Queue by one thread at a time. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any, Iterator, Sequence

import numpy as np

from . import _lib, errors
from .arrays import DTYPE_CODES, DTYPE_NAMES, Array, address, dtype_name, empty_like_kind, token_array

PROPOSALS = {"default": 0, "dense": 1, "signature": 2, "paper": 3, "topk": 4, "uniform": 5}
_PROPOSAL_NAMES = {code: name for name, code in PROPOSALS.items()}
LAYER_KINDS = {"global": 0, "sliding": 1, "chunked": 2}
_KIND_NAMES = {code: name for name, code in LAYER_KINDS.items()}
_ROW_DTYPES = ("bf16", "f16", "i8")
_INPUTS = ("f32", "bf16", "f16")
_COMMIT_SEAL = 1
_UNCHANGED = 0xFFFFFFFF


def _choice(table: dict[str, int], value: str, what: str) -> int:
    if value not in table:
        raise ValueError(f"{what}: {value!r} is not one of {', '.join(table)}")
    return table[value]


# ---- records ------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One layer of a spec; zero means the daemon's default. `paper` is (K, L), (0, 0) for no tables."""

    query_heads: int = 0
    kv_heads: int = 0
    d_k: int = 0
    d_v: int = 0
    kind: str = "global"
    row_dtype: str = "bf16"
    scale: float = 0.0
    softcap: float = 0.0
    alibi_slope_base: float = 0.0
    default_proposal: str = "default"
    default_budget: float = 0.0
    signature_bits: int = 0
    paper: tuple[int, int] = (0, 0)
    window: int = 0

    def _pack(self) -> _lib.Layer:
        if self.row_dtype not in _ROW_DTYPES:
            raise ValueError(f"row_dtype: {self.row_dtype!r} is not one of {', '.join(_ROW_DTYPES)}")
        return _lib.Layer(
            kind=_choice(LAYER_KINDS, self.kind, "kind"),
            row_dtype=DTYPE_CODES[self.row_dtype],
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            d_k=self.d_k,
            d_v=self.d_v,
            scale=self.scale,
            softcap=self.softcap,
            alibi_slope_base=self.alibi_slope_base,
            default_proposal=_choice(PROPOSALS, self.default_proposal, "default_proposal"),
            default_budget=self.default_budget,
            signature_bits=self.signature_bits,
            paper_k=self.paper[0],
            paper_l=self.paper[1],
            window=self.window,
        )

    @classmethod
    def _unpack(cls, raw: _lib.Layer) -> Layer:
        return cls(
            kind=_KIND_NAMES.get(raw.kind, str(raw.kind)),
            row_dtype=DTYPE_NAMES.get(raw.row_dtype or DTYPE_CODES["bf16"], str(raw.row_dtype)),
            query_heads=raw.query_heads,
            kv_heads=raw.kv_heads,
            d_k=raw.d_k,
            d_v=raw.d_v or raw.d_k,
            scale=raw.scale,
            softcap=raw.softcap,
            alibi_slope_base=raw.alibi_slope_base,
            default_proposal=_PROPOSAL_NAMES.get(raw.default_proposal, str(raw.default_proposal)),
            default_budget=raw.default_budget,
            signature_bits=raw.signature_bits,
            paper=(raw.paper_k, raw.paper_l),
            window=raw.window,
        )


@dataclass
class Spec:
    """What a context is made of. `fingerprint`: whatever the KV depends on besides the token ids, as bytes."""

    layers: Sequence[Layer]
    fingerprint: bytes = b""
    mode: int = 0o600
    seed: int = 0
    expected_tokens: int = 0


@dataclass
class DaemonStatus:
    epoch: int
    uptime_ns: int
    pool_bytes: int
    pool_used: int
    pool_metadata: int
    contexts: int
    clients: int
    queues: int
    attends: int
    appended_rows: int
    commits: int
    rows_read: int
    bytes_read: int
    errors: int
    quota_bytes: int
    quota_used: int
    workers: int
    pid: int
    version: str
    instance: str
    kernels: str
    io_backend: str
    pool_dir: str
    config_file: str
    stats_file: str


@dataclass
class ContextInfo:
    name: str
    fingerprint: bytes
    id: int
    committed: int
    indexed: int
    rows_bytes: int
    index_bytes: int
    metadata_bytes: int
    shared_bytes: int
    created_ns: int
    used_ns: int
    parent_id: int
    fork_tokens: int
    matched: int
    seed: int
    uid: int
    gid: int
    mode: int
    layer_count: int
    global_layers: int
    segments: int
    signature_version: int
    readers: int
    writer_pid: int


def _record(cls: type, raw: ctypes.Structure) -> Any:
    values = {}
    for name in cls.__dataclass_fields__:
        value = getattr(raw, name)
        if isinstance(value, ctypes.Array):
            value = bytes(value)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        values[name] = value
    return cls(**values)


@dataclass
class AttendResult:
    """out [T, heads, d_v], lse [T, heads] (natural log, -inf where no row was seen), rows [T, heads] attended, and the error
    terms; all fp32 or counts, of the same array library as q. Reusable: pass it as `result=` again for the same T."""

    out: Array
    lse: Array
    rows: Array
    error_v: Array | None = None
    error_a: Array | None = None
    raw: _lib.Result = field(default_factory=_lib.Result, repr=False)

    @classmethod
    def new(cls, example: Array, tokens: int, heads: int, d_v: int, errors: bool = False) -> AttendResult:
        result = cls(
            out=empty_like_kind(example, (tokens, heads, d_v)),
            lse=empty_like_kind(example, (tokens, heads)),
            rows=empty_like_kind(example, (tokens, heads), "u32"),
        )
        result.raw.size = ctypes.sizeof(_lib.Result)
        result.raw.out = address(result.out, "out", ("f32",))
        result.raw.lse = address(result.lse, "lse", ("f32",))
        result.raw.rows = address(result.rows, "rows", ("u32", "i32"))
        if errors:
            result.error_v = empty_like_kind(example, (tokens, heads))
            result.error_a = empty_like_kind(example, (tokens, heads))
            result.raw.error_v = address(result.error_v, "error_v", ("f32",))
            result.raw.error_a = address(result.error_a, "error_a", ("f32",))
        return result

    @property
    def committed(self) -> int:
        return self.raw.committed

    @property
    def rows_read(self) -> int:
        return self.raw.rows_read

    @property
    def bytes_read(self) -> int:
        return self.raw.bytes_read

    @property
    def service_ns(self) -> int:
        return self.raw.service_ns


@dataclass
class Completion:
    ticket: int
    status: int

    def check(self) -> None:
        if self.status < 0:
            raise errors.make(self.status, _lib.library().mpig_strerror(self.status).decode())


# ---- client ---------------------------------------------------------------------------------------------------------------


class Client:
    """A connection to the daemon. Times in milliseconds, 0 = the library's default."""

    def __init__(self, socket_path: str | None = None, *, timeout_ms: int = 0, reconnect_ms: int = 0):
        self._lib = _lib.library()
        self._handle: c_void_p | None = None
        self._children: weakref.WeakSet[Any] = weakref.WeakSet()
        options = _lib.ConnectOptions(
            size=ctypes.sizeof(_lib.ConnectOptions),
            socket_path=socket_path.encode() if socket_path else None,
            timeout_ms=timeout_ms,
            reconnect_ms=reconnect_ms,
        )
        handle = c_void_p()
        status = self._lib.mpig_connect(byref(options), byref(handle))
        if status < 0:
            where = socket_path or "the default socket"
            raise errors.make(status, f"{self._lib.mpig_strerror(status).decode()} ({where})")
        self._handle = handle

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError("the client is closed")
        return self._handle

    def _check(self, status: int) -> int:
        if status < 0:
            text = self._lib.mpig_last_error(self._handle) if self._handle is not None else b""
            raise errors.make(status, (text or self._lib.mpig_strerror(status)).decode(errors="replace"))
        return status

    def close(self) -> None:
        """Closes queues, contexts and the connection; the KV stays in the daemon. Closing twice is allowed."""
        if self._handle is not None:
            for child in list(self._children):
                child.close()
            self._lib.mpig_disconnect(self._handle)
            self._handle = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def ping(self) -> None:
        self._check(self._lib.mpig_ping(self._open_handle()))

    def status(self) -> DaemonStatus:
        raw = _lib.DaemonStatus(size=ctypes.sizeof(_lib.DaemonStatus))
        self._check(self._lib.mpig_daemon_status(self._open_handle(), byref(raw)))
        return _record(DaemonStatus, raw)

    def config(self) -> dict[str, str]:
        """The configuration in force, "section.key" -> value."""
        size = 4096
        while True:
            text = ctypes.create_string_buffer(size)
            needed = self._check(self._lib.mpig_daemon_config(self._open_handle(), text, size))
            if needed < size:
                break
            size = needed + 1
        pairs = (line.partition("=") for line in text.value.decode().splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}

    def create(self, name: str, spec: Spec) -> Context:
        """An empty context whose writer lease is ours."""
        layers = (_lib.Layer * len(spec.layers))(*(layer._pack() for layer in spec.layers))
        print_bytes = ctypes.create_string_buffer(spec.fingerprint, max(1, len(spec.fingerprint)))
        raw = _lib.Spec(
            size=ctypes.sizeof(_lib.Spec),
            layer_count=len(spec.layers),
            layers=layers,
            fingerprint=ctypes.cast(print_bytes, c_void_p) if spec.fingerprint else None,
            fingerprint_bytes=len(spec.fingerprint),
            mode=spec.mode,
            seed=spec.seed,
            expected_tokens=spec.expected_tokens,
        )
        handle = c_void_p()
        self._check(self._lib.mpig_context_create(self._open_handle(), name.encode(), byref(raw), byref(handle)))
        return Context(self, handle)

    @staticmethod
    def _open_options(write: bool, fingerprint: bytes, fork_name: str | None, min_tokens: int) -> _lib.OpenOptions:
        options = _lib.OpenOptions(
            size=ctypes.sizeof(_lib.OpenOptions),
            mode=1 if write else 0,
            fingerprint_bytes=len(fingerprint),
            fork_name=fork_name.encode() if fork_name else None,
            min_tokens=min_tokens,
        )
        if fingerprint:
            options.keepalive = ctypes.create_string_buffer(fingerprint, len(fingerprint))
            options.fingerprint = ctypes.cast(options.keepalive, c_void_p)
        return options

    def open(self, name: str, *, write: bool = False, fingerprint: bytes = b"") -> Context:
        options = self._open_options(write, fingerprint, None, 0)
        handle = c_void_p()
        self._check(self._lib.mpig_context_open(self._open_handle(), name.encode(), byref(options), byref(handle)))
        return Context(self, handle)

    def open_prefix(
        self,
        tokens: Any,
        *,
        fingerprint: bytes,
        write: bool = False,
        fork_name: str | None = None,
        min_tokens: int = 0,
    ) -> tuple[Context, int]:
        """The readable context with the longest common prefix of `tokens`, and that prefix's length."""
        ids = token_array(tokens)
        options = self._open_options(write, fingerprint, fork_name, min_tokens)
        handle, matched = c_void_p(), c_uint64()
        self._check(
            self._lib.mpig_context_open_prefix(
                self._open_handle(), ids.ctypes.data, ids.size, byref(options), byref(handle), byref(matched)
            )
        )
        return Context(self, handle), matched.value

    def drop(self, name: str) -> None:
        self._check(self._lib.mpig_context_drop(self._open_handle(), name.encode()))

    def chmod(self, name: str, mode: int, uid: int = _UNCHANGED, gid: int = _UNCHANGED) -> None:
        self._check(self._lib.mpig_context_chmod(self._open_handle(), name.encode(), mode, uid, gid))

    def info(self, name: str) -> ContextInfo:
        raw = _lib.ContextInfo(size=ctypes.sizeof(_lib.ContextInfo))
        self._check(self._lib.mpig_context_info(self._open_handle(), name.encode(), byref(raw)))
        return _record(ContextInfo, raw)

    def layers(self, name: str) -> list[Layer]:
        count = self._check(self._lib.mpig_context_layers(self._open_handle(), name.encode(), None, 0))
        raw = (_lib.Layer * max(1, count))()
        count = min(count, self._check(self._lib.mpig_context_layers(self._open_handle(), name.encode(), raw, count)))
        return [Layer._unpack(raw[i]) for i in range(count)]

    def contexts(self) -> Iterator[ContextInfo]:
        """Every context this process may read."""
        cursor, page = c_uint64(0), (_lib.ContextInfo * 32)()
        for record in page:
            record.size = ctypes.sizeof(_lib.ContextInfo)
        while count := self._check(self._lib.mpig_context_list(self._open_handle(), byref(cursor), page, len(page))):
            yield from [_record(ContextInfo, page[i]) for i in range(count)]

    def queue(self, *, entries: int = 0, slots: int = 0, slot_bytes: int = 0, spin_us: int = 0, timeout_ms: int = 0) -> Queue:
        options = _lib.QueueOptions(
            size=ctypes.sizeof(_lib.QueueOptions),
            entries=entries,
            slots=slots,
            slot_bytes=slot_bytes,
            spin_us=spin_us,
            timeout_ms=timeout_ms,
        )
        handle = c_void_p()
        self._check(self._lib.mpig_queue_create(self._open_handle(), byref(options), byref(handle)))
        return Queue(self, handle)


class Context:
    """An open context. Close it (or the client) to give handle and lease back; the KV stays in the daemon."""

    def __init__(self, client: Client, handle: c_void_p):
        self.client = client
        self._handle: c_void_p | None = handle
        self._layers: list[Layer] | None = None
        self.name = client._lib.mpig_context_name(handle).decode()
        client._children.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError(f"context {self.name} is closed")
        return self._handle

    def close(self) -> None:
        if self._handle is not None:
            self.client._lib.mpig_context_close(self._handle)
            self._handle = None

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def committed(self) -> int:
        """Committed tokens as of the last completion seen."""
        return self.client._lib.mpig_context_committed(self._open_handle())

    @property
    def signature_version(self) -> int:
        return self.client._lib.mpig_context_signature_version(self._open_handle())

    @property
    def layers(self) -> list[Layer]:
        if self._layers is None:
            self._layers = self.client.layers(self.name)
        return self._layers

    def info(self) -> ContextInfo:
        return self.client.info(self.name)

    def fork(self, name: str, tokens: int) -> Context:
        """A new context sharing our first `tokens` committed tokens, opened for writing; nothing is copied."""
        handle = c_void_p()
        lib = self.client._lib
        self.client._check(lib.mpig_context_fork(self._open_handle(), name.encode(), tokens, byref(handle)))
        return Context(self.client, handle)


# ---- the data path ----------------------------------------------------------------------------------------------------


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
        client._children.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError("the queue is closed")
        return self._handle

    def close(self) -> None:
        if self._handle is not None:
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
            proposal=_choice(PROPOSALS, proposal, "proposal"),
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
        )
        if window_lse is not None:
            lse_shape = wanted[:2] if window_lse.ndim == 2 else wanted[1:2]
            raw.window_lse = address(window_lse, "window_lse", ("f32",), lse_shape)
        d_v = shape.d_v or shape.d_k
        if result is None:
            result = AttendResult.new(q, tokens, shape.query_heads, d_v, errors)
        elif tuple(result.out.shape) != (tokens, shape.query_heads, d_v):
            raise ValueError(f"result: shape {tuple(result.out.shape)} where {(tokens, shape.query_heads, d_v)} is needed")
        return raw, result

    def attend(self, context: Context, layer: int, q: Array, **options: Any) -> AttendResult:
        """Attends to rows begin..end of one layer. q [T, heads, d_k] or [heads, d_k] in fp32, fp16 or bf16.

        Options: proposal, begin, end (<= 0: relative to the committed length), budget, seed, query_position, causal_base,
        error_target, budget_floor, budget_cap, window_lse, errors (also return the error terms), result (to reuse one)."""
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
        ids, flags = token_array(tokens), _COMMIT_SEAL if seal else 0
        call = self._lib.mpig_commit
        self.client._check(
            call(self._open_handle(), context._open_handle(), position, ids.size, ids.ctypes.data, flags)
        )

    def submit_commit(self, context: Context, position: int, tokens: Any, *, seal: bool = False) -> int:
        ids, flags = token_array(tokens), _COMMIT_SEAL if seal else 0
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


# ---- joining partial results ------------------------------------------------------------------------------------------


def merge(out_a: Array, lse_a: Array, out_b: Array, lse_b: Array) -> None:
    """Merges (out_b, lse_b) into (out_a, lse_a) in place: fp32, out [..., d_v], lse [...]."""
    heads, d_v = _heads(out_a, lse_a), out_a.shape[-1]
    _lib.library().mpig_merge(
        heads,
        d_v,
        address(out_a, "out_a", ("f32",), None, True),
        address(lse_a, "lse_a", ("f32",), None, True),
        address(out_b, "out_b", ("f32",), out_a.shape),
        address(lse_b, "lse_b", ("f32",), lse_a.shape),
    )


def merge_error(partials: Sequence[tuple[Array, Array, Array | None, Array | None]], merged_out: Array) -> Array:
    """Estimated relative error per head of `merged_out`, the merge of partials (out, lse, error_v, error_a)."""
    if not partials:
        raise ValueError("merge_error needs at least one partial")
    out, lse = partials[0][:2]
    heads, d_v = _heads(out, lse), out.shape[-1]
    err = empty_like_kind(out, lse.shape)
    columns = []
    for column, shape in zip(zip(*partials), (out.shape, lse.shape, lse.shape, lse.shape)):
        at = [None if array is None else address(array, "partial", ("f32",), shape) for array in column]
        columns.append((c_void_p * len(at))(*at))
    _lib.library().mpig_merge_error(
        heads, d_v, len(partials), *columns, address(merged_out, "merged_out", ("f32",), out.shape), address(err, "err", ("f32",))
    )
    return err


def _heads(out: Array, lse: Array) -> int:
    if tuple(out.shape[:-1]) != tuple(lse.shape):
        raise ValueError(f"lse: shape {tuple(lse.shape)} where {tuple(out.shape[:-1])} is needed")
    heads = 1
    for n in lse.shape:
        heads *= n
    return heads
