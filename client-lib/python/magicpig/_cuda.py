"""ctypes bindings of magicpig_cuda.h: the structs, the functions' types, and where the shared library is found."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

from . import _lib

SONAME = "libmagicpig-cuda.so.0"
LSE2, DAEMON_ONLY = 1, 2  # enum mpig_cuda_flags


class _Sized(Structure):
    """Begins with its size, which nobody has to give."""

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        self.size = ctypes.sizeof(type(self))


class Options(_Sized):
    _fields_ = [("size", c_size_t), ("timeout_ms", c_int)]


class Info(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("device", c_char * 64),
        ("compute_major", c_int),
        ("compute_minor", c_int),
        ("region", c_uint64),
        ("bytes", c_uint64),
        ("entries", c_uint32),
        ("slots", c_uint32),
        ("stream_wait", c_int),
    ]


class Failure(_Sized):
    _fields_ = [("size", c_size_t), ("status", c_int), ("slot", c_uint32), ("sequence", c_uint64)]


class Answer(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("sequence", c_uint64),
        ("committed", c_uint64),
        ("rows_read", c_uint64),
        ("bytes_read", c_uint64),
        ("service_ns", c_uint64),
    ]


class Spec(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("layer", c_int),
        ("contexts", c_uint),
        ("context", POINTER(c_void_p)),
        ("tokens", c_uint),
        ("first_slot", c_uint),
        ("dtype", c_int),
        ("proposal", c_int),
        ("budget", c_float),
        ("error_target", c_float),
        ("budget_floor", c_float),
        ("budget_cap", c_float),
        ("seed", c_uint64),
        ("sinks", c_uint64),
        ("window", c_uint64),
        ("no_signature", c_uint),
        ("own_rows", c_uint),
        ("delta", c_float),
        ("own_first", c_uint),
    ]


class Step(_Sized):
    """struct mpig_cuda_step: device addresses and strides in elements. Fields that are not given are 0."""

    _fields_ = [
        ("size", c_size_t),
        ("q", c_uint64),
        ("q_context", c_int64),
        ("q_token", c_int64),
        ("q_head", c_int64),
        ("split", c_uint64),
        ("rows", c_uint64),
        ("k", c_uint64),
        ("v", c_uint64),
        ("kv_dtype", c_int),
        ("kv_context", c_int64),
        ("kv_page", c_int64),
        ("kv_row", c_int64),
        ("kv_head", c_int64),
        ("page_table", c_uint64),
        ("page_stride", c_int64),
        ("page_rows", c_uint),
        ("ring_rows", c_uint),
        ("out", c_uint64),
        ("out_dtype", c_int),
        ("out_context", c_int64),
        ("out_token", c_int64),
        ("out_head", c_int64),
        ("lse", c_uint64),
        ("flags", c_uint),
    ]


class IngestOptions(_Sized):
    _fields_ = [("size", c_size_t), ("slot_bytes", c_size_t), ("slots", c_uint), ("timeout_ms", c_int), ("blocks", c_uint), ("patience_ms", c_int)]


class Rows(_Sized):
    """struct mpig_cuda_rows: device addresses and strides in elements. Fields that are not given are 0."""

    _fields_ = [
        ("size", c_size_t),
        ("layer", c_int),
        ("dtype", c_int),
        ("first", c_uint64),
        ("count", c_uint64),
        ("k", c_uint64),
        ("v", c_uint64),
        ("k_row", c_int64),
        ("k_head", c_int64),
        ("v_row", c_int64),
        ("v_head", c_int64),
        ("queries", c_uint64),
        ("query_count", c_uint),
        ("q_row", c_int64),
        ("q_head", c_int64),
    ]


class IngestReport(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("rows", c_uint64),
        ("bytes", c_uint64),
        ("appends", c_uint64),
        ("commits", c_uint64),
        ("elapsed_ns", c_uint64),
        ("copy_ns", c_uint64),
        ("wait_ns", c_uint64),
        ("service_ns", c_uint64),
    ]


class IngestFailure(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("status", c_int),
        ("layer", c_int),
        ("first", c_uint64),
        ("count", c_uint64),
        ("context", c_void_p),
    ]


# The struct names of the header, for the test that holds sizes and offsets together.
STRUCTS = {
    "mpig_cuda_options": Options,
    "mpig_cuda_info": Info,
    "mpig_cuda_failure": Failure,
    "mpig_cuda_answer": Answer,
    "mpig_cuda_spec": Spec,
    "mpig_cuda_step": Step,
    "mpig_cuda_ingest_options": IngestOptions,
    "mpig_cuda_rows": Rows,
    "mpig_cuda_ingest_report": IngestReport,
    "mpig_cuda_ingest_failure": IngestFailure,
}

_handle = _stream = c_void_p
_out = POINTER(c_void_p)
FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "mpig_cuda_error": (c_char_p, []),
    "mpig_cuda_attach": (c_int, [_handle, POINTER(Options), _out]),
    "mpig_cuda_detach": (None, [_handle]),
    "mpig_cuda_get_info": (c_int, [_handle, POINTER(Info)]),
    "mpig_cuda_begin": (c_int, [_handle, c_int]),
    "mpig_cuda_failure": (c_int, [_handle, POINTER(Failure)]),
    "mpig_cuda_recover": (c_int, [_handle]),
    "mpig_cuda_last_answer": (c_int, [_handle, POINTER(Answer)]),
    "mpig_cuda_plan_create": (c_int, [_handle, POINTER(Spec), _out]),
    "mpig_cuda_plan_destroy": (None, [_handle]),
    "mpig_cuda_plan_refresh": (c_int, [_handle]),
    "mpig_cuda_submit": (c_int, [_handle, _stream, POINTER(Step)]),
    "mpig_cuda_window": (c_int, [_handle, _stream, POINTER(Step)]),
    "mpig_cuda_merge": (c_int, [_handle, _stream, POINTER(Step)]),
    "mpig_cuda_sign": (c_int, [_handle, _stream, POINTER(Step), c_uint64, c_uint64]),
    "mpig_cuda_nop": (c_int, [_handle, _stream, c_uint]),
    "mpig_cuda_wait": (c_int, [_handle, _stream, c_uint]),
    "mpig_cuda_round_trips": (c_int, [_handle, c_uint, POINTER(c_float)]),
    "mpig_cuda_ingest_create": (c_int, [_handle, POINTER(IngestOptions), _out]),
    "mpig_cuda_ingest_destroy": (None, [_handle]),
    "mpig_cuda_ingest_layer": (c_int64, [_handle, _handle, POINTER(Rows), _stream]),
    "mpig_cuda_ingest_release": (c_int, [_handle, c_int64, _stream]),
    "mpig_cuda_ingest_released": (c_int, [_handle, c_int64]),
    "mpig_cuda_ingest_commit": (c_int, [_handle, _handle, c_uint64, c_uint64, c_void_p, c_int]),
    "mpig_cuda_ingest_finish": (c_int, [_handle, POINTER(IngestReport)]),
    "mpig_cuda_ingest_failure": (c_int, [_handle, POINTER(IngestFailure)]),
    "mpig_cuda_ingest_recover": (c_int, [_handle]),
}

_library: ctypes.CDLL | None = None


def load(path: str | None = None) -> ctypes.CDLL:
    """Loads the library over the process's libmagicpig. ImportError says which files were tried."""
    _lib.library()  # the same that it is linked with: found by its name once it is loaded
    paths = [path] if path else _lib.candidates(SONAME, "MAGICPIG_CUDA_LIBRARY")
    missing = (
        f"{SONAME} not found; set MAGICPIG_CUDA_LIBRARY to its path, install it, or build it with `make` on a machine that "
        "has nvcc"
    )
    return _lib.load_typed(paths, FUNCTIONS, missing)[0]


def library() -> ctypes.CDLL:
    """The process's library, loaded at the first use."""
    global _library
    if _library is None:
        _library = load()
    return _library
