"""The records of the API as dataclasses, and the words for its codes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, Sequence

from . import _lib, errors
from .arrays import DTYPE_CODES, DTYPE_NAMES, Array, address, empty_like_kind

PROPOSALS = {
    "default": 0,
    "dense": 1,
    "signature": 2,
    "paper": 3,
    "topk": 4,
    "uniform": 5,
    "topk_estimated": 6,
    "heavy_uniform": 7,
    "heavy_uniform_estimated": 8,
    "window": 9,
    "crosspolytope": 10,
}
TABLE_HASHES = {"simhash": 0, "crosspolytope": 1}
_PROPOSAL_NAMES = {code: name for name, code in PROPOSALS.items()}
PERSISTS = {"default": 0, "none": 1, "shutdown": 2, "idle": 3, "commit": 4}
LAYER_KINDS = {"global": 0, "sliding": 1, "chunked": 2}
COMMIT_SEAL = 1  # enum mpig_commit_flags
_HASH_NAMES = {code: name for name, code in TABLE_HASHES.items()}
_PERSIST_NAMES = {code: name for name, code in PERSISTS.items()}
_PROFILE_NAMES = {0: "none", 1: "owner", 2: "common"}
_KIND_NAMES = {code: name for name, code in LAYER_KINDS.items()}
_ROW_DTYPES = ("bf16", "f16", "i8")


BITS_AUTO = 255


TABLES_AUTO = 65535  # as L of Layer.paper


def bits_name(raw: int) -> int | str:
    return "auto" if raw == BITS_AUTO else raw


def choice(table: dict[str, int], value: str, what: str) -> int:
    if value not in table:
        raise ValueError(f"{what}: {value!r} is not one of {', '.join(table)}")
    return table[value]


@dataclass
class Layer:
    """One layer of a spec; zero means the daemon's default. `paper` is (K, L) of the hash tables, (0, 0) for none, (0, L) for
    cross-polytope ones, (0, TABLES_AUTO) for those of the profile, else as published; `table_balance`: they hash balanced keys, as signatures do. `signature_bits` is 0 (none), 1, 2, 4 or "auto": chosen
    for each KV head by what answers cost, with at most `signature_bytes` of codes a row (mean over the KV heads; 0: no limit)."""

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
    signature_bits: int | str = 0
    paper: tuple[int, int] = (0, 0)
    window: int = 0
    table_hash: str = "simhash"
    table_balance: bool = False
    signature_bytes: int = 0

    def _pack(self) -> _lib.Layer:
        if self.row_dtype not in _ROW_DTYPES:
            raise ValueError(f"row_dtype: {self.row_dtype!r} is not one of {', '.join(_ROW_DTYPES)}")
        return _lib.Layer(
            kind=choice(LAYER_KINDS, self.kind, "kind"),
            row_dtype=DTYPE_CODES[self.row_dtype],
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            d_k=self.d_k,
            d_v=self.d_v,
            scale=self.scale,
            softcap=self.softcap,
            alibi_slope_base=self.alibi_slope_base,
            default_proposal=choice(PROPOSALS, self.default_proposal, "default_proposal"),
            default_budget=self.default_budget,
            signature_bits=BITS_AUTO if self.signature_bits == "auto" else int(self.signature_bits),
            paper_k=self.paper[0],
            paper_l=self.paper[1],
            window=self.window,
            table_hash=choice(TABLE_HASHES, self.table_hash, "table_hash"),
            table_balance=int(self.table_balance),
            signature_bytes=self.signature_bytes,
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
            signature_bits=bits_name(raw.signature_bits),
            paper=(raw.paper_k, raw.paper_l),
            window=raw.window,
            table_hash=_HASH_NAMES.get(raw.table_hash, str(raw.table_hash)),
            table_balance=bool(raw.table_balance),
            signature_bytes=raw.signature_bytes,
        )


@dataclass
class Spec:
    """What a context is made of. `fingerprint`: whatever the KV depends on besides the token ids, as bytes."""

    layers: Sequence[Layer]
    fingerprint: bytes = b""
    mode: int = 0o600
    seed: int = 0
    expected_tokens: int = 0
    persist: str = "default"  # when it is saved unasked: see Client.persist
    idle_s: int = 0
    ttl_s: int = 0  # see Client.ttl
    ttl_erase: bool = False


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
    drained: int


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
    flags: int
    persist: str
    idle_s: int
    ttl_s: int
    ttl_erase: bool
    pinned_until_ns: int
    profile: str  # what it is answered by, by default: none, owner (its owner's), common (that of all users)


@dataclass
class Head:
    """A KV head: how it is indexed, and running means over the answers the daemon looked at (one in 64; none: all 0). `noise`: root
    mean square of (estimated - true) logit; `n_eff`: effective number of rows; `mass_1`, `mass_5`: share of the mass in the
    largest 1 % and 5 % of the rows; `drawn`: rows an answer draws besides those that are certain; `best_bits`: signature_bits at
    which answers of the same error would read least."""

    layer: int
    kv_head: int
    signature_bits: int | str  # "auto": not chosen yet
    signature_version: int
    samples: int
    rows: int
    noise: float
    n_eff: float
    mass_1: float
    mass_5: float
    drawn: float
    best_bits: int


@dataclass
class Verification:
    """What a comparison with checksums read, and how many parts of the context have a checksum or none."""

    bytes: int
    checked: int
    unchecked: int


@dataclass
class DiskResult:
    """Tokens of the context, bytes of its files, bytes moved by the call, segments, and how many of them were there already;
    the context's name."""

    tokens: int
    bytes: int
    moved: int
    segments: int
    shared: int
    name: str


@dataclass
class GcResult:
    """Files of cut-off saves, segment files that no context had, damaged contexts; bytes that are free now."""

    leftovers: int
    orphans: int
    damaged: int
    bytes: int


@dataclass
class SavedInfo:
    """A context on the daemon's disk."""

    name: str
    fingerprint: bytes
    committed: int
    bytes: int
    saved_ns: int
    uid: int
    gid: int
    mode: int
    persist: str
    idle_s: int
    ttl_s: int
    ttl_erase: bool
    pinned_until_ns: int


@dataclass
class ClientInfo:
    """A connection of the daemon."""

    id: int
    connected_ns: int
    uid: int
    gid: int
    pid: int
    flags: int
    queues: int
    contexts: int
    leases: int
    in_flight: int
    region_bytes: int
    requests: int
    attends: int
    errors: int
    rows_read: int
    bytes_read: int
    appended_rows: int
    service_ns: int
    command: str


@dataclass
class Quota:
    """What a user, or a group (then `uid` is its number), holds and may hold; a limit of 0: unlimited. `requests_limit`: a second."""

    bytes: int
    bytes_limit: int
    contexts: int
    contexts_limit: int
    clients: int
    clients_limit: int
    queues: int
    queues_limit: int
    region_bytes: int
    region_bytes_limit: int
    uid: int
    group: int
    requests_limit: int


@dataclass
class DrainState:
    """Whether the daemon opens anything more, and how many clients and queues are still there."""

    clients: int
    queues: int
    drained: int


def record(cls: type, raw: ctypes.Structure) -> Any:
    values = {}
    for name in cls.__dataclass_fields__:
        value = getattr(raw, name)
        if isinstance(value, ctypes.Array):
            value = bytes(value)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif name == "persist":
            value = _PERSIST_NAMES.get(value, str(value))
        elif name == "profile":
            value = _PROFILE_NAMES.get(value, str(value))
        elif name == "ttl_erase":
            value = bool(value)
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
