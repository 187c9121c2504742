"""Client and Context: the control side of magicpig.h with Python's manners.

Lifetimes: a Client owns its queues and contexts; closing it closes them. All three are context managers. Threads as in the
header: a Client and its Contexts may be used by any thread, a Queue by one thread at a time. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import byref, c_uint64, c_void_p
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Iterator

from . import _lib, errors
from .arrays import token_array
from .queue import Queue
from .records import (
    PERSISTS,
    ClientInfo,
    ContextInfo,
    DaemonStatus,
    DiskResult,
    DrainState,
    GcResult,
    Head,
    Layer,
    Quota,
    SavedInfo,
    Spec,
    Verification,
    choice,
    bits_name,
    record,
)

if TYPE_CHECKING:
    from .cuda import Gpu, Ingest, Plan

_UNCHANGED = 0xFFFFFFFF  # of a uid or gid
ALL_USERS = 0xFFFFFFFE  # as the uid of a profile: all users who have none of their own


class Client:
    """A connection to the daemon. Times in milliseconds, 0 = the library's default."""

    def __init__(self, socket_path: str | None = None, *, timeout_ms: int = 0, reconnect_ms: int = 0):
        self._lib = _lib.library()
        self._handle: c_void_p | None = None
        self._children: weakref.WeakSet[Any] = weakref.WeakSet()
        self._gpus: set[Gpu | Ingest] = set()  # kept until closed: kernels write into their queues
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
            for gpu in list(self._gpus):
                gpu.close()
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
        return record(DaemonStatus, raw)

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

    def configure(self, key: str, value: str) -> list[str]:
        """Sets an option of the daemon until its next reload or restart. For administrators. What has changed, a line each."""
        return self._configure(f"{key}={value}".encode())

    def reload(self) -> list[str]:
        """Lets the daemon read its configuration again. For administrators. What differs, a line each."""
        return self._configure(None)

    def _configure(self, assignment: bytes | None) -> list[str]:
        text = ctypes.create_string_buffer(65536)
        self._check(self._lib.mpig_daemon_configure(self._open_handle(), assignment, text, len(text)))
        return text.value.decode().splitlines()

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
            persist=choice(PERSISTS, spec.persist, "persist"),
            idle_s=spec.idle_s,
            ttl_s=spec.ttl_s,
            ttl_erase=spec.ttl_erase,
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
        """The readable context with the longest common prefix of `tokens`, in memory or on disk, and that prefix's length."""
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
        return record(ContextInfo, raw)

    def verify(self, name: str) -> Verification:
        """Compares what the daemon holds of a context with its checksums; raises magicpig.Error if it differs."""
        raw = _lib.Verification(size=ctypes.sizeof(_lib.Verification))
        self._check(self._lib.mpig_context_verify(self._open_handle(), name.encode(), byref(raw)))
        return record(Verification, raw)

    def reindex(self, name: str) -> int:
        """Makes a new index for a context, for its rows and recent queries, while it is served; returns its signature version."""
        raw = _lib.ReindexResult(size=ctypes.sizeof(_lib.ReindexResult))
        self._check(self._lib.mpig_context_reindex(self._open_handle(), name.encode(), byref(raw)))
        return int(raw.signature_version)

    def _disk(self, call: Callable, name: str, progress: Callable[[int, int], None] | None) -> DiskResult:
        options = _lib.DiskOptions(size=ctypes.sizeof(_lib.DiskOptions))
        if progress is not None:
            options.progress = _lib.PROGRESS(lambda _, done, total: progress(done, total))
        raw = _lib.DiskResult(size=ctypes.sizeof(_lib.DiskResult))
        self._check(call(self._open_handle(), name.encode(), byref(options), byref(raw)))
        return record(DiskResult, raw)

    def save(self, name: str, progress: Callable[[int, int], None] | None = None) -> DiskResult:
        """Writes what is committed to the daemon's disk; `progress` is called with bytes done and in all."""
        return self._disk(self._lib.mpig_context_save, name, progress)

    def load(self, name: str, progress: Callable[[int, int], None] | None = None) -> DiskResult:
        """Brings a saved context back into memory."""
        return self._disk(self._lib.mpig_context_load, name, progress)

    def export(self, name: str, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> DiskResult:
        """Writes a whole context into one file of this process's: all of it is there, durably, or nothing."""

        def call(handle: c_void_p, name: bytes, options: Any, result: Any) -> int:
            return self._lib.mpig_context_export_file(handle, name, os.fsencode(path), options, result)

        return self._disk(call, name, progress)

    def import_file(
        self, path: str | os.PathLike[str], name: str | None = None, progress: Callable[[int, int], None] | None = None
    ) -> DiskResult:
        """Makes a context of such a file, as this user's, under `name` or the one it had (`.name` of what is returned)."""
        with open(path, "rb", buffering=0) as file:

            def call(handle: c_void_p, name: bytes, options: Any, result: Any) -> int:
                return self._lib.mpig_context_import(handle, file.fileno(), name or None, options, result)

            return self._disk(call, name or "", progress)

    def evict(self, name: str) -> None:
        """Takes a context out of memory that is on disk as it is and that nobody has open."""
        self._check(self._lib.mpig_context_evict(self._open_handle(), name.encode()))

    def pin(self, name: str, pinned: bool = True, *, seconds: int = 0) -> None:
        """Whether a context must stay in memory; for so many seconds, or (0) until it is unpinned, over restarts."""
        if pinned and seconds:
            self._check(self._lib.mpig_context_pin_for(self._open_handle(), name.encode(), seconds))
        else:
            self._check(self._lib.mpig_context_pin(self._open_handle(), name.encode(), pinned))

    def persist(self, name: str, policy: str, idle_s: int = 0) -> None:
        """When a context is saved unasked: none, shutdown, idle, commit, or default (as the daemon is configured)."""
        code = choice(PERSISTS, policy, "policy")
        self._check(self._lib.mpig_context_persist(self._open_handle(), name.encode(), code, idle_s))

    def ttl(self, name: str, seconds: int, *, erase: bool = False) -> None:
        """A context unused for so long leaves memory (0: never), saved first if its policy says so; `erase`: it is erased from disk, too."""
        self._check(self._lib.mpig_context_ttl(self._open_handle(), name.encode(), seconds, erase))

    def check_saved(self, name: str, progress: Callable[[int, int], None] | None = None) -> DiskResult:
        """Compares a saved context with its checksums; raises magicpig.Error if a file is damaged."""
        return self._disk(self._lib.mpig_saved_check, name, progress)

    def erase_saved(self, name: str) -> None:
        """Removes what is saved of a context; what is in memory stays."""
        self._check(self._lib.mpig_saved_erase(self._open_handle(), name.encode()))

    def gc(self, *, dry_run: bool = False, damaged_days: int | None = None) -> GcResult:
        """Removes from the daemon's disk what nothing needs; with `damaged_days`, what was put aside as damaged so long ago, too."""
        raw = _lib.GcResult(size=ctypes.sizeof(_lib.GcResult))
        days = 0xFFFFFFFF if damaged_days is None else damaged_days
        self._check(self._lib.mpig_saved_gc(self._open_handle(), dry_run, days, byref(raw)))
        return record(GcResult, raw)

    def saved(self) -> Iterator[SavedInfo]:
        """Every context on the daemon's disk that this process may read."""
        after, page = b"", (_lib.SavedInfo * 32)()
        for info in page:
            info.size = ctypes.sizeof(_lib.SavedInfo)
        while count := self._check(self._lib.mpig_saved_list(self._open_handle(), after, page, len(page))):
            after = page[count - 1].name
            yield from [record(SavedInfo, page[i]) for i in range(count)]

    def layers(self, name: str) -> list[Layer]:
        count = self._check(self._lib.mpig_context_layers(self._open_handle(), name.encode(), None, 0))
        raw = (_lib.Layer * max(1, count))()
        count = min(count, self._check(self._lib.mpig_context_layers(self._open_handle(), name.encode(), raw, count)))
        return [Layer._unpack(raw[i]) for i in range(count)]

    def heads(self, name: str) -> list[Head]:
        """Every KV head of a context's global layers, with what the daemon has seen of it."""
        lib, handle = self._lib, self._open_handle()
        count = self._check(lib.mpig_context_heads(handle, name.encode(), None, 0))
        raw = (_lib.Head * max(1, count))()
        raw[0].size = ctypes.sizeof(_lib.Head)
        count = min(count, self._check(lib.mpig_context_heads(handle, name.encode(), raw, count)))
        heads = [record(Head, raw[i]) for i in range(count)]
        return [replace(head, signature_bits=bits_name(head.signature_bits)) for head in heads]

    def queries(self, name: str, layer: int, kv_head: int) -> list[list[float]]:
        """What a KV head was asked of late, of one query head in turn: those the daemon has noted (one in 64, at most 16), the latest first."""
        most, d_k = 16, self.layers(name)[layer].d_k
        raw = (ctypes.c_float * (most * d_k))()
        count = self._check(self._lib.mpig_context_queries(self._open_handle(), name.encode(), layer, kv_head, raw, most))
        return [list(raw[i * d_k : (i + 1) * d_k]) for i in range(count)]

    def profile(self, fingerprint: bytes, uid: int = _UNCHANGED) -> str:
        """The profile by which contexts of a fingerprint (`ContextInfo.fingerprint`) are answered by default: this user's, else that of all
        users (`uid`: only that user's, ALL_USERS: only that of all). NotFound: there is none."""
        raw = ctypes.create_string_buffer(65536)
        self._check(self._lib.mpig_profile_get(self._open_handle(), self._print(fingerprint), uid, raw, len(raw), None))
        return raw.value.decode()

    def set_profile(self, fingerprint: bytes, text: str, uid: int = _UNCHANGED) -> None:
        """Sets it; it holds for contexts that are opened or made from now on."""
        self._check(self._lib.mpig_profile_set(self._open_handle(), self._print(fingerprint), uid, text.encode()))

    def clear_profile(self, fingerprint: bytes, uid: int = _UNCHANGED) -> None:
        self._check(self._lib.mpig_profile_clear(self._open_handle(), self._print(fingerprint), uid))

    def profiles(self) -> Iterator[tuple[bytes, int, str]]:
        """Fingerprint, uid (ALL_USERS: that of all) and text of every profile that this process may look at."""
        place, uid, raw = ctypes.create_string_buffer(64), ctypes.c_uint32(), ctypes.create_string_buffer(65536)
        try:
            while True:
                self._check(self._lib.mpig_profile_next(self._open_handle(), place, ctypes.byref(uid), raw, len(raw)))
                yield place.raw, uid.value, raw.value.decode()
        except errors.NotFound:
            pass

    @staticmethod
    def _print(fingerprint: bytes) -> bytes:
        if len(fingerprint) != 64:
            raise ValueError(f"a fingerprint has 64 bytes, as ContextInfo.fingerprint; this has {len(fingerprint)}")
        return fingerprint

    def contexts(self) -> Iterator[ContextInfo]:
        """Every context this process may read."""
        cursor, page = c_uint64(0), (_lib.ContextInfo * 32)()
        for info in page:
            info.size = ctypes.sizeof(_lib.ContextInfo)
        while count := self._check(self._lib.mpig_context_list(self._open_handle(), byref(cursor), page, len(page))):
            yield from [record(ContextInfo, page[i]) for i in range(count)]

    def clients(self) -> Iterator[ClientInfo]:
        """Connections of the daemon: this user's; root and the daemon's user see all."""
        cursor, page = c_uint64(0), (_lib.ClientInfo * 32)()
        page[0].size = ctypes.sizeof(_lib.ClientInfo)
        while count := self._check(self._lib.mpig_client_list(self._open_handle(), byref(cursor), page, len(page))):
            yield from [record(ClientInfo, page[i]) for i in range(count)]

    def kill(self, client_id: int) -> None:
        """Ends a connection: its queues and leases are given back, what it did not commit is lost."""
        self._check(self._lib.mpig_client_kill(self._open_handle(), client_id))

    def quota(self, uid: int = _UNCHANGED, *, gid: int | None = None) -> Quota:
        """What a user (default: this one), or the group `gid`, holds of the daemon and may hold."""
        raw = _lib.Quota(size=ctypes.sizeof(_lib.Quota))
        get = self._lib.mpig_quota_get if gid is None else self._lib.mpig_quota_get_group
        self._check(get(self._open_handle(), uid if gid is None else gid, byref(raw)))
        return record(Quota, raw)

    def drain(self, on: bool | None = None) -> DrainState:
        """True: the daemon opens no queue and no context any more; False: again; None: only tells."""
        raw = _lib.DrainState(size=ctypes.sizeof(_lib.DrainState))
        self._check(self._lib.mpig_daemon_drain(self._open_handle(), 0 if on is None else 1 if on else 2, byref(raw)))
        return record(DrainState, raw)

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
        self._plans: weakref.WeakSet[Plan] = weakref.WeakSet()  # of GPUs
        self._ingests: set[Ingest] = set()  # which ask about it until they have finished or recovered
        self._left: c_void_p | None = None  # closed, but for those
        self.name = client._lib.mpig_context_name(handle).decode()
        client._children.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError(f"context {self.name} is closed")
        return self._handle

    def close(self) -> None:
        if self._handle is not None:
            for plan in list(self._plans):
                plan.close()
            self._left, self._handle = self._handle, None
            self._close_left()

    def _close_left(self) -> None:
        if self._left is not None and not self._ingests:
            self.client._lib.mpig_context_close(self._left)
            self._left = None

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
