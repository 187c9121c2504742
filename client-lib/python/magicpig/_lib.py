"""ctypes bindings of magicpig.h: the structs, the functions' types, and where the shared library is found."""

from __future__ import annotations

import ctypes
import os
import pathlib
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_uint,
    c_void_p,
)

SONAME = "libmagicpig.so.0"
VERSION = (0, 1)  # MPIG_VERSION_MAJOR, MPIG_VERSION_MINOR of the header these bindings were written against


class ConnectOptions(Structure):
    _fields_ = [("size", c_size_t), ("socket_path", c_char_p), ("timeout_ms", c_int), ("reconnect_ms", c_int)]


class DaemonStatus(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("epoch", c_uint64),
        ("uptime_ns", c_uint64),
        ("pool_bytes", c_uint64),
        ("pool_used", c_uint64),
        ("pool_metadata", c_uint64),
        ("contexts", c_uint64),
        ("clients", c_uint64),
        ("queues", c_uint64),
        ("attends", c_uint64),
        ("appended_rows", c_uint64),
        ("commits", c_uint64),
        ("rows_read", c_uint64),
        ("bytes_read", c_uint64),
        ("errors", c_uint64),
        ("quota_bytes", c_uint64),
        ("quota_used", c_uint64),
        ("workers", c_uint32),
        ("pid", c_uint32),
        ("version", c_char * 32),
        ("instance", c_char * 64),
        ("kernels", c_char * 64),
        ("io_backend", c_char * 16),
        ("pool_dir", c_char * 256),
        ("config_file", c_char * 256),
        ("stats_file", c_char * 256),
        ("drained", c_uint32),
    ]


class Layer(Structure):
    _fields_ = [
        ("kind", c_int),
        ("row_dtype", c_int),
        ("query_heads", c_int),
        ("kv_heads", c_int),
        ("d_k", c_int),
        ("d_v", c_int),
        ("scale", c_float),
        ("softcap", c_float),
        ("alibi_slope_base", c_float),
        ("default_proposal", c_int),
        ("default_budget", c_float),
        ("signature_bits", c_int),
        ("paper_k", c_int),
        ("paper_l", c_int),
        ("window", c_int),
        ("table_hash", c_int),
        ("table_balance", c_int),
        ("signature_bytes", c_int),
    ]


class Spec(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer_count", c_int),
        ("layers", POINTER(Layer)),
        ("fingerprint", c_void_p),
        ("fingerprint_bytes", c_size_t),
        ("mode", c_uint),
        ("seed", c_uint64),
        ("expected_tokens", c_uint64),
        ("persist", c_int),
        ("idle_s", c_uint32),
        ("ttl_s", c_uint32),
        ("ttl_erase", c_int),
    ]


class ContextInfo(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char * 128),
        ("fingerprint", c_uint8 * 64),
        ("id", c_uint64),
        ("committed", c_uint64),
        ("indexed", c_uint64),
        ("rows_bytes", c_uint64),
        ("index_bytes", c_uint64),
        ("metadata_bytes", c_uint64),
        ("shared_bytes", c_uint64),
        ("created_ns", c_uint64),
        ("used_ns", c_uint64),
        ("parent_id", c_uint64),
        ("fork_tokens", c_uint64),
        ("matched", c_uint64),
        ("seed", c_uint64),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("mode", c_uint32),
        ("layer_count", c_uint32),
        ("global_layers", c_uint32),
        ("segments", c_uint32),
        ("signature_version", c_uint32),
        ("readers", c_uint32),
        ("writer_pid", c_uint32),
        ("flags", c_uint32),
        ("persist", c_int),
        ("idle_s", c_uint32),
        ("ttl_s", c_uint32),
        ("ttl_erase", c_int),
        ("pinned_until_ns", c_uint64),
        ("profile", c_int),
    ]


class Head(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_int),
        ("kv_head", c_int),
        ("signature_bits", c_int),
        ("signature_version", c_uint32),
        ("samples", c_uint64),
        ("rows", c_uint64),
        ("noise", c_float),
        ("n_eff", c_float),
        ("mass_1", c_float),
        ("mass_5", c_float),
        ("drawn", c_float),
        ("best_bits", c_uint32),
    ]


class Region(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("base", c_void_p),
        ("bytes", c_uint64),
        ("sq_offset", c_uint64),
        ("cq_offset", c_uint64),
        ("slots_offset", c_uint64),
        ("slot_bytes", c_uint64),
        ("entries", c_uint32),
        ("slots", c_uint32),
        ("sq_tail", c_uint32),
        ("cq_head", c_uint32),
    ]


class Signature(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("version", c_uint32),
        ("bits", c_uint32),
        ("d_k", c_uint32),
        ("d_pad", c_uint32),
        ("kv_heads", c_uint32),
        ("signs", c_uint8 * 96),
    ]


class Verification(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("bytes", c_uint64),
        ("checked", c_uint32),
        ("unchecked", c_uint32),
        ("damaged", c_uint32),
    ]


class ReindexResult(Structure):
    _fields_ = [("size", c_size_t), ("tokens", c_uint64), ("signature_version", c_uint32)]


PROGRESS = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)


class DiskOptions(Structure):
    _fields_ = [("size", c_size_t), ("progress", PROGRESS), ("argument", c_void_p)]


class DiskResult(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("tokens", c_uint64),
        ("bytes", c_uint64),
        ("moved", c_uint64),
        ("segments", c_uint32),
        ("shared", c_uint32),
        ("name", c_char * 128),
    ]


class GcResult(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("leftovers", c_uint32),
        ("orphans", c_uint32),
        ("damaged", c_uint32),
        ("bytes", c_uint64),
    ]


class SavedInfo(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char * 128),
        ("fingerprint", c_uint8 * 64),
        ("committed", c_uint64),
        ("bytes", c_uint64),
        ("saved_ns", c_uint64),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("mode", c_uint32),
        ("persist", c_int),
        ("idle_s", c_uint32),
        ("ttl_s", c_uint32),
        ("ttl_erase", c_int),
        ("pinned_until_ns", c_uint64),
    ]


class ClientInfo(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("id", c_uint64),
        ("connected_ns", c_uint64),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("pid", c_uint32),
        ("flags", c_uint32),
        ("queues", c_uint32),
        ("contexts", c_uint32),
        ("leases", c_uint32),
        ("in_flight", c_uint32),
        ("region_bytes", c_uint64),
        ("requests", c_uint64),
        ("attends", c_uint64),
        ("errors", c_uint64),
        ("rows_read", c_uint64),
        ("bytes_read", c_uint64),
        ("appended_rows", c_uint64),
        ("service_ns", c_uint64),
        ("command", c_char * 32),
    ]


class Quota(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("bytes", c_uint64),
        ("bytes_limit", c_uint64),
        ("contexts", c_uint64),
        ("contexts_limit", c_uint64),
        ("clients", c_uint64),
        ("clients_limit", c_uint64),
        ("queues", c_uint64),
        ("queues_limit", c_uint64),
        ("region_bytes", c_uint64),
        ("region_bytes_limit", c_uint64),
        ("uid", c_uint32),
        ("group", c_uint32),
        ("requests_limit", c_uint64),
    ]


class DrainState(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("clients", c_uint64),
        ("queues", c_uint64),
        ("drained", c_uint32),
    ]


class TraceOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("ring_bytes", c_size_t),
    ]


class TraceState(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("began_ns", c_uint64),
        ("context_id", c_uint64),
        ("answers", c_uint64),
        ("lost", c_uint64),
        ("too_long", c_uint64),
        ("ended", c_uint32),
    ]


class OpenOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("mode", c_int),
        ("fingerprint", c_void_p),
        ("fingerprint_bytes", c_size_t),
        ("fork_name", c_char_p),
        ("min_tokens", c_uint64),
    ]


class QueueOptions(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("entries", c_uint),
        ("slots", c_uint),
        ("slot_bytes", c_size_t),
        ("spin_us", c_uint),
        ("timeout_ms", c_int),
    ]


class Attend(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_int),
        ("proposal", c_int),
        ("dtype", c_int),
        ("tokens", c_uint),
        ("q", c_void_p),
        ("begin", c_uint64),
        ("end", c_int64),
        ("budget", c_float),
        ("seed", c_uint64),
        ("query_position", c_uint64),
        ("causal", c_int),
        ("causal_base", c_uint64),
        ("error_target", c_float),
        ("budget_floor", c_float),
        ("budget_cap", c_float),
        ("window_lse", c_void_p),
        ("signature", c_void_p),
        ("signature_scale", c_void_p),
        ("signature_version", c_uint32),
        ("delta", c_float),
        ("window_out", c_void_p),
    ]


class Result(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("error_v", c_void_p),
        ("error_a", c_void_p),
        ("rows", c_void_p),
        ("committed", c_uint64),
        ("rows_read", c_uint64),
        ("bytes_read", c_uint64),
        ("service_ns", c_uint64),
    ]


class Traced(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("attend", POINTER(Attend)),
        ("number", c_uint64),
        ("taken_ns", c_uint64),
        ("service_ns", c_uint64),
        ("rows_read", c_uint64),
        ("bytes_read", c_uint64),
        ("committed", c_uint64),
        ("client", c_uint64),
        ("queue", c_uint32),
        ("signature_version", c_uint32),
        ("units", c_uint32),
        ("asked_dtype", c_int),
        ("had_signature", c_int),
    ]


class Completion(Structure):
    _fields_ = [("user_data", c_uint64), ("status", c_int)]


# The struct names of the header, for the test that holds sizes and offsets together.
STRUCTS = {
    "mpig_connect_options": ConnectOptions,
    "mpig_daemon_status": DaemonStatus,
    "mpig_client_info": ClientInfo,
    "mpig_quota": Quota,
    "mpig_drain_state": DrainState,
    "mpig_layer": Layer,
    "mpig_spec": Spec,
    "mpig_context_info": ContextInfo,
    "mpig_head": Head,
    "mpig_region": Region,
    "mpig_signature": Signature,
    "mpig_verification": Verification,
    "mpig_disk_options": DiskOptions,
    "mpig_disk_result": DiskResult,
    "mpig_gc_result": GcResult,
    "mpig_reindex_result": ReindexResult,
    "mpig_saved_info": SavedInfo,
    "mpig_open_options": OpenOptions,
    "mpig_queue_options": QueueOptions,
    "mpig_attend": Attend,
    "mpig_result": Result,
    "mpig_trace_options": TraceOptions,
    "mpig_trace_state": TraceState,
    "mpig_traced": Traced,
    "mpig_completion": Completion,
}

_handle = c_void_p
_out = POINTER(c_void_p)
FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "mpig_strerror": (c_char_p, [c_int]),
    "mpig_version": (c_char_p, []),
    "mpig_connect": (c_int, [POINTER(ConnectOptions), _out]),
    "mpig_disconnect": (None, [_handle]),
    "mpig_last_error": (c_char_p, [_handle]),
    "mpig_ping": (c_int, [_handle]),
    "mpig_daemon_status": (c_int, [_handle, POINTER(DaemonStatus)]),
    "mpig_daemon_config": (c_int, [_handle, c_char_p, c_size_t]),
    "mpig_client_list": (c_int, [_handle, POINTER(c_uint64), POINTER(ClientInfo), c_int]),
    "mpig_client_kill": (c_int, [_handle, c_uint64]),
    "mpig_quota_get": (c_int, [_handle, c_uint32, POINTER(Quota)]),
    "mpig_quota_get_group": (c_int, [_handle, c_uint32, POINTER(Quota)]),
    "mpig_daemon_drain": (c_int, [_handle, c_int, POINTER(DrainState)]),
    "mpig_daemon_configure": (c_int, [_handle, c_char_p, c_char_p, c_size_t]),
    "mpig_context_create": (c_int, [_handle, c_char_p, POINTER(Spec), _out]),
    "mpig_context_open": (c_int, [_handle, c_char_p, POINTER(OpenOptions), _out]),
    "mpig_context_open_prefix": (c_int, [_handle, c_void_p, c_uint64, POINTER(OpenOptions), _out, POINTER(c_uint64)]),
    "mpig_context_fork": (c_int, [_handle, c_char_p, c_uint64, _out]),
    "mpig_context_close": (None, [_handle]),
    "mpig_context_drop": (c_int, [_handle, c_char_p]),
    "mpig_context_chmod": (c_int, [_handle, c_char_p, c_uint, c_uint32, c_uint32]),
    "mpig_context_info": (c_int, [_handle, c_char_p, POINTER(ContextInfo)]),
    "mpig_context_reindex": (c_int, [_handle, c_char_p, POINTER(ReindexResult)]),
    "mpig_context_verify": (c_int, [_handle, c_char_p, POINTER(Verification)]),
    "mpig_context_save": (c_int, [_handle, c_char_p, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_context_load": (c_int, [_handle, c_char_p, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_context_evict": (c_int, [_handle, c_char_p]),
    "mpig_context_pin": (c_int, [_handle, c_char_p, c_int]),
    "mpig_context_pin_for": (c_int, [_handle, c_char_p, c_uint64]),
    "mpig_context_persist": (c_int, [_handle, c_char_p, c_int, c_uint32]),
    "mpig_context_ttl": (c_int, [_handle, c_char_p, c_uint32, c_int]),
    "mpig_saved_gc": (c_int, [_handle, c_int, c_uint32, POINTER(GcResult)]),
    "mpig_context_export_file": (c_int, [_handle, c_char_p, c_char_p, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_context_export": (c_int, [_handle, c_char_p, c_int, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_context_import": (c_int, [_handle, c_int, c_char_p, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_saved_check": (c_int, [_handle, c_char_p, POINTER(DiskOptions), POINTER(DiskResult)]),
    "mpig_saved_erase": (c_int, [_handle, c_char_p]),
    "mpig_saved_list": (c_int, [_handle, c_char_p, POINTER(SavedInfo), c_int]),
    "mpig_context_layers": (c_int, [_handle, c_char_p, POINTER(Layer), c_int]),
    "mpig_context_heads": (c_int, [_handle, c_char_p, POINTER(Head), c_int]),
    "mpig_context_queries": (c_int, [_handle, c_char_p, c_int, c_int, c_void_p, c_int]),
    "mpig_profile_get": (c_int, [_handle, c_char_p, c_uint32, c_char_p, c_size_t, POINTER(c_uint32)]),
    "mpig_profile_set": (c_int, [_handle, c_char_p, c_uint32, c_char_p]),
    "mpig_profile_clear": (c_int, [_handle, c_char_p, c_uint32]),
    "mpig_profile_next": (c_int, [_handle, c_char_p, POINTER(c_uint32), c_char_p, c_size_t]),
    "mpig_context_list": (c_int, [_handle, POINTER(c_uint64), POINTER(ContextInfo), c_int]),
    "mpig_context_name": (c_char_p, [_handle]),
    "mpig_context_layer": (c_int, [_handle, c_int, POINTER(Layer)]),
    "mpig_context_handle": (c_uint32, [_handle]),
    "mpig_context_signature": (c_int, [_handle, c_int, POINTER(Signature), c_void_p]),
    "mpig_awake": (c_int, [_handle, c_int]),
    "mpig_queue_lend": (c_int, [_handle, POINTER(Region)]),
    "mpig_queue_renew": (c_int, [_handle, POINTER(Region)]),
    "mpig_queue_take_back": (None, [_handle]),
    "mpig_context_committed": (c_uint64, [_handle]),
    "mpig_context_signature_version": (c_uint32, [_handle]),
    "mpig_queue_create": (c_int, [_handle, POINTER(QueueOptions), _out]),
    "mpig_queue_destroy": (None, [_handle]),
    "mpig_attend": (c_int, [_handle, _handle, POINTER(Attend), POINTER(Result)]),
    "mpig_append": (c_int, [_handle, _handle, c_int, c_uint64, c_uint64, c_int, c_void_p, c_void_p, c_void_p, c_uint]),
    "mpig_commit": (c_int, [_handle, _handle, c_uint64, c_uint64, c_void_p, c_int]),
    "mpig_truncate": (c_int, [_handle, _handle, c_uint64]),
    "mpig_read": (c_int, [_handle, _handle, c_int, c_uint64, c_uint64, c_void_p, c_void_p]),
    "mpig_nop": (c_int, [_handle]),
    "mpig_submit_attend": (c_int64, [_handle, _handle, POINTER(Attend), POINTER(Result), c_uint64]),
    "mpig_submit_append": (
        c_int64,
        [_handle, _handle, c_int, c_uint64, c_uint64, c_int, c_void_p, c_void_p, c_void_p, c_uint, c_uint64],
    ),
    "mpig_submit_commit": (c_int64, [_handle, _handle, c_uint64, c_uint64, c_void_p, c_int, c_uint64]),
    "mpig_submit_nop": (c_int64, [_handle, c_uint64]),
    "mpig_trace_start": (c_int, [_handle, c_char_p, POINTER(TraceOptions), _out]),
    "mpig_trace_next": (c_int, [_handle, POINTER(Traced), c_int]),
    "mpig_trace_get": (c_int, [_handle, POINTER(TraceState)]),
    "mpig_trace_stop": (None, [_handle]),
    "mpig_poll": (c_int, [_handle, POINTER(Completion), c_int]),
    "mpig_wait": (c_int, [_handle, c_int64, c_int]),
    "mpig_merge": (None, [c_size_t, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p]),
    "mpig_merge_error": (
        None,
        [c_size_t, c_size_t, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
    ),
}


def candidates(soname: str = SONAME, variable: str = "MAGICPIG_LIBRARY") -> list[str]:
    """Where a library is looked for, in order."""
    named = os.environ.get(variable)
    if named:
        return [named]
    package = pathlib.Path(__file__).resolve().parent
    source = package.parents[2]  # the source tree, when the package is used from client-lib/python/
    return [str(package / soname), str(source / "build" / soname), soname]


def load(path: str | None = None) -> ctypes.CDLL:
    """Loads the library and types its functions. ImportError says which files were tried; a library of another major or
    minor version is refused, because the structs may differ."""
    loaded, candidate = load_typed(
        [path] if path else candidates(),
        FUNCTIONS,
        f"{SONAME} not found; set MAGICPIG_LIBRARY to its path, or build it with `make`",
    )
    version = loaded.mpig_version().decode()
    if tuple(int(part) for part in version.split(".")[:2]) != VERSION:
        raise ImportError(f"{candidate} is version {version}, this package needs {VERSION[0]}.{VERSION[1]}")
    return loaded


def load_typed(
    paths: list[str], functions: dict[str, tuple[object, list[object]]], missing: str
) -> tuple[ctypes.CDLL, str]:
    """The first of these files that can be loaded, its functions typed, and its name. ImportError: `missing`, and why not."""
    tried = []
    for candidate in paths:
        if os.sep in candidate and not os.path.exists(candidate):
            tried.append(f"{candidate}: no such file")
            continue
        try:
            loaded = ctypes.CDLL(candidate)
        except OSError as error:
            tried.append(f"{candidate}: {error}")
            continue
        try:
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name)
                function.restype = result
                function.argtypes = arguments
        except AttributeError as error:
            raise ImportError(f"{candidate} does not fit this package: {error}") from error
        return loaded, candidate
    raise ImportError(f"{missing}. Tried: " + "; ".join(tried))


_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The process's library, loaded at the first use (so that importing the package needs no shared object)."""
    global _library
    if _library is None:
        _library = load()
    return _library
