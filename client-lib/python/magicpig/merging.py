"""Joining partial results over disjoint rows by their log-sum-exp."""

from __future__ import annotations

from ctypes import c_void_p
from typing import Sequence

from . import _lib
from .arrays import Array, address, empty_like_kind


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
