"""numpy arrays and torch tensors as the library sees them: an address, a dtype code and a shape. Nothing is copied."""

from __future__ import annotations

import sys
from typing import Any, Sequence, Union

import numpy as np

F32, BF16, F16, I8 = 0, 1, 2, 3
DTYPE_CODES = {"f32": F32, "bf16": BF16, "f16": F16, "i8": I8}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}

Array = Union[np.ndarray, "torch.Tensor"]  # noqa: F821 (torch is optional)

_numpy_names = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(np.int8): "i8",
    np.dtype(np.uint32): "u32",
    np.dtype(np.int32): "i32",
}
_torch_names = {
    "torch.float32": "f32",
    "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.int8": "i8",
    "torch.uint32": "u32",
    "torch.int32": "i32",
}


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")  # an array can be a tensor only if torch has been imported
    return torch is not None and isinstance(array, torch.Tensor)


def dtype_name(array: Any) -> str:
    """"f32", "bf16", "f16", ... or TypeError."""
    if is_torch(array):
        name = _torch_names.get(str(array.dtype))
    elif isinstance(array, np.ndarray):
        name = _numpy_names.get(array.dtype)
    else:
        raise TypeError(f"expected a numpy array or a torch tensor, got {type(array).__name__}")
    if name is None:
        raise TypeError(f"dtype {array.dtype} is not supported; use float32, float16 or (torch) bfloat16")
    return name


def address(array: Any, what: str, dtypes: Sequence[str], shape: Sequence[int] | None = None, writable: bool = False) -> int:
    """The address of a C-contiguous array in host memory after all checks: TypeError for the dtype, ValueError for shape,
    layout, device or a read-only output."""
    name = dtype_name(array)
    if name not in dtypes:
        raise TypeError(f"{what}: dtype {array.dtype} where one of {', '.join(dtypes)} is needed")
    if shape is not None and tuple(array.shape) != tuple(shape):
        raise ValueError(f"{what}: shape {tuple(array.shape)} where {tuple(shape)} is needed")
    if is_torch(array):
        if array.device.type != "cpu":
            raise ValueError(f"{what}: tensor on {array.device}; the daemon reads host memory, use .cpu()")
        if not array.is_contiguous():
            raise ValueError(f"{what}: not contiguous; use .contiguous()")
        return int(array.data_ptr())
    if not array.flags.c_contiguous:
        raise ValueError(f"{what}: not C-contiguous; use numpy.ascontiguousarray")
    if writable and not array.flags.writeable:
        raise ValueError(f"{what}: read-only array given for an output")
    return int(array.ctypes.data)


def empty_like_kind(example: Any, shape: Sequence[int], name: str = "f32") -> Any:
    """A new array of the same library as `example`. Unsigned 32-bit counts are int32 in torch, which has few operations on
    uint32; rows of one request are far below 2^31."""
    if is_torch(example):
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=torch.float32 if name == "f32" else torch.int32)
    return np.empty(tuple(shape), dtype=np.float32 if name == "f32" else np.uint32)


def token_array(tokens: Any) -> np.ndarray:
    """Token ids as contiguous uint32; ValueError if one does not fit. An array that already is uint32 is used as it is."""
    if is_torch(tokens):
        tokens = tokens.detach().cpu().numpy()
    ids = np.asarray(tokens).reshape(-1)
    if ids.dtype == np.uint32:
        return np.ascontiguousarray(ids)
    if ids.size == 0:
        return np.zeros(0, dtype=np.uint32)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"token ids must be integers, not {ids.dtype}")
    if int(ids.min()) < 0 or int(ids.max()) > 0xFFFFFFFF:
        raise ValueError("token ids must be between 0 and 2^32-1")
    return ids.astype(np.uint32)
