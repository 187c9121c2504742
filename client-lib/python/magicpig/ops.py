"""Attention over a GPU's own rows and the daemon's, as operators of torch: `torch.ops.magicpig.submit`, `window`, `merge`, `attend`.

    attention = [Attention(Plan(gpu, [context], layer, sinks=4), device) for layer in layers]
    out, lse = attention[0](q, k, v, split, rows)

q [B, T, query_heads, d], K and V [B, N, kv_heads, d] (or pages of it), split and rows int64 [B], all on the GPU, with any strides but a
contiguous last dimension. Row r of a context is the client's if r < sinks or r >= split, the daemon's otherwise; the last T of `rows`
rows are the query tokens' own. Everything that changes from step to step is read from those tensors when the kernels run: what is
captured in a CUDA graph, or compiled, can be replayed for ever. Nothing waits for the host, and nothing is synchronised.

The operators know of what the eye does not see, the queue in host memory, by a tensor of their Gpu that each of them is said to change
(`order`): so compilers keep their order, and drop none. `plan` is a Plan's number.

A step that fails gives NaN, and so do all after it, until Gpu.recover(); see Gpu.check(). Inference only: there is no backward.
"""

from __future__ import annotations

import weakref

import torch

from . import cuda
from .arrays import DTYPE_CODES, dtype_name

__all__ = ["Attention", "KERNELS", "serves"]

_SCHEMAS = {
    "submit": "(Tensor(a!) order, Tensor q, Tensor? split, Tensor? rows, SymInt plan) -> ()",
    "window": "(Tensor(a!) order, Tensor q, Tensor k, Tensor v, Tensor split, Tensor rows, SymInt plan, SymInt ring_rows=0, "
    "Tensor? page_table=None) -> ()",
    "merge": "(Tensor(a!) order, Tensor(b!) out, Tensor(c!)? lse, SymInt plan, int flags=0) -> ()",
    "attend": "(Tensor(a!) order, Tensor q, Tensor k, Tensor v, Tensor split, Tensor rows, SymInt plan, SymInt ring_rows=0, "
    "Tensor? page_table=None, int flags=0) -> (Tensor, Tensor)",
}


# ---- tensors as a step wants them ------------------------------------------------------------------------------------------


def _code(x: torch.Tensor, what: str) -> int:
    name = dtype_name(x)
    if name not in ("f32", "bf16", "f16"):
        raise TypeError(f"{what}: dtype {x.dtype} where float32, float16 or bfloat16 is needed")
    return DTYPE_CODES[name]


def _contiguous_rows(x: torch.Tensor, what: str) -> None:
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"{what}: the last dimension must be contiguous; strides are {tuple(x.stride())}")


def _numbers(x: torch.Tensor | None, what: str, contexts: int) -> int:
    if x is None:
        return 0
    if x.dtype != torch.int64 or tuple(x.shape) != (contexts,) or not x.is_contiguous():
        raise ValueError(f"{what}: {x.dtype} {tuple(x.shape)} where contiguous int64 {(contexts,)} is needed")
    return x.data_ptr()


def _put_query(step: cuda.Step, plan: cuda.Plan, q, split, rows) -> None:
    contexts = len(plan.contexts)
    wanted = (contexts, plan.tokens, plan.query_heads, plan.d_k)
    if tuple(q.shape) != wanted:
        raise ValueError(f"q: shape {tuple(q.shape)} where {wanted} is needed")
    if dtype_name(q) != plan.dtype:
        raise TypeError(f"q: dtype {q.dtype} where the plan has {plan.dtype}")
    _contiguous_rows(q, "q")
    step.q = q.data_ptr()
    step.q_context, step.q_token, step.q_head = q.stride()[:3]
    step.split, step.rows = _numbers(split, "split", contexts), _numbers(rows, "rows", contexts)


def _put_rows(step: cuda.Step, plan: cuda.Plan, k, v, ring_rows: int, page_table) -> None:
    contexts, paged = len(plan.contexts), page_table is not None
    first = k.shape[0] if paged else contexts
    if k.ndim != 4 or (k.shape[0], *k.shape[2:]) != (first, plan.kv_heads, plan.d_k):
        raise ValueError(
            f"k: shape {tuple(k.shape)} where ({'pages' if paged else contexts}, rows, {plan.kv_heads}, {plan.d_k}) is needed"
        )
    if v.shape != k.shape or v.stride() != k.stride() or v.dtype != k.dtype:
        raise ValueError(
            f"v: {v.dtype} {tuple(v.shape)} by {tuple(v.stride())} is not laid out as k, {k.dtype} {tuple(k.shape)} by "
            f"{tuple(k.stride())}"
        )
    _contiguous_rows(k, "k")
    if ring_rows < 0 or (ring_rows and not paged and k.shape[1] < plan.sinks + ring_rows):
        raise ValueError(f"ring_rows: {plan.sinks} sinks and a ring of {ring_rows} rows do not fit {k.shape[1]} rows")
    step.k, step.v, step.kv_dtype = k.data_ptr(), v.data_ptr(), _code(k, "k")
    step.kv_row, step.kv_head, step.ring_rows = k.stride(1), k.stride(2), ring_rows
    if not paged:
        step.kv_context = k.stride(0)
        return
    if page_table.dtype != torch.int32 or page_table.ndim != 2 or page_table.shape[0] != contexts or page_table.stride(1) != 1:
        raise ValueError(f"page_table: {page_table.dtype} {tuple(page_table.shape)} where int32 ({contexts}, pages) is needed")
    step.page_table, step.page_stride = page_table.data_ptr(), page_table.stride(0)
    step.kv_page, step.page_rows = k.stride(0), k.shape[1]


def _put_answer(step: cuda.Step, plan: cuda.Plan, out, lse, flags: int) -> None:
    wanted = (len(plan.contexts), plan.tokens, plan.query_heads, plan.d_v)
    if tuple(out.shape) != wanted:
        raise ValueError(f"out: shape {tuple(out.shape)} where {wanted} is needed")
    _contiguous_rows(out, "out")
    step.out, step.out_dtype, step.flags = out.data_ptr(), _code(out, "out"), flags
    step.out_context, step.out_token, step.out_head = out.stride()[:3]
    if lse is not None:
        if lse.dtype != torch.float32 or tuple(lse.shape) != wanted[:3] or not lse.is_contiguous():
            raise ValueError(f"lse: {lse.dtype} {tuple(lse.shape)} where contiguous float32 {wanted[:3]} is needed")
        step.lse = lse.data_ptr()


def _stream(x: torch.Tensor) -> int:
    """Streams of a device that has none are the default one."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0


def _together(order: torch.Tensor, *tensors: torch.Tensor | None) -> None:
    for x in tensors:
        if x is not None and x.device != order.device:
            raise ValueError(f"a tensor is on {x.device}, the GPU's queue on {order.device}")


# ---- the operators ---------------------------------------------------------------------------------------------------------


def _submit(order, q, split, rows, plan):
    _together(order, q, split, rows)
    plan, step = cuda.plan_of(plan), cuda.Step()
    _put_query(step, plan, q, split, rows)
    plan.submit(step, _stream(q))


def _window(order, q, k, v, split, rows, plan, ring_rows=0, page_table=None):
    _together(order, q, k, v, split, rows, page_table)
    plan, step = cuda.plan_of(plan), cuda.Step()
    _put_query(step, plan, q, split, rows)
    _put_rows(step, plan, k, v, ring_rows, page_table)
    plan.window(step, _stream(q))


def _merge(order, out, lse, plan, flags=0):
    _together(order, out, lse)
    plan, step = cuda.plan_of(plan), cuda.Step()
    _put_answer(step, plan, out, lse, flags)
    plan.merge(step, _stream(out))


def _attend(order, q, k, v, split, rows, plan, ring_rows=0, page_table=None, flags=0):
    _together(order, q, k, v, split, rows, page_table)
    plan, step = cuda.plan_of(plan), cuda.Step()
    out, lse = _answers(q)
    _put_query(step, plan, q, split, rows)
    _put_rows(step, plan, k, v, ring_rows, page_table)
    _put_answer(step, plan, out, lse, flags)
    stream = _stream(q)
    plan.run(step, stream)
    return out, lse


def _answers(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def _nothing(*arguments, **options) -> None:
    return None


KERNELS = {"submit": _submit, "window": _window, "merge": _merge, "attend": _attend}
_library = torch.library.Library("magicpig", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, KERNELS[_name], "CUDA")
    _fake = (lambda order, q, *arguments, **options: _answers(q)) if _name == "attend" else _nothing
    torch.library.register_fake(f"magicpig::{_name}", _fake, lib=_library)


def serves(device: torch.device) -> bool:
    """Whether the operators take tensors of this device."""
    key = {"cuda": "CUDA", "cpu": "CPU"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key("magicpig::attend", key)


# ---- for people ------------------------------------------------------------------------------------------------------------

_orders: weakref.WeakKeyDictionary[cuda.Gpu, torch.Tensor] = weakref.WeakKeyDictionary()


def _order_of(gpu: cuda.Gpu, device: torch.device) -> torch.Tensor:
    order = _orders.get(gpu)
    if order is None:
        order = torch.zeros(1, dtype=torch.int32, device=device)
        torch._dynamo.mark_static_address(order)  # a graph that changes it can be captured all the same
        _orders[gpu] = order
    return order


class Attention:
    """A plan's operators. `lse2`: LSEs in base 2, as FlashInfer's."""

    def __init__(self, plan: cuda.Plan, device: torch.device | str, *, lse2: bool = False):
        device = torch.empty(0, device=device).device  # with its number
        if not serves(device):
            raise ValueError(f"device: {device}; a GPU is needed")
        self.plan, self.number, self.order = plan, plan.number, _order_of(plan.gpu, device)
        self.flags = cuda.LSE2 if lse2 else 0

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        split: torch.Tensor,
        rows: torch.Tensor,
        *,
        ring_rows: int = 0,
        page_table: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """out [B, T, query_heads, d] in q's dtype, and LSE [B, T, query_heads], float. K and V: row r of context b is k[b, r]; with
        ring_rows, rows from `sinks` on go round: k[b, sinks + (r - sinks) % ring_rows]; with a page_table, int32 [B, pages], k is
        [pages, page_rows, kv_heads, d] and row r of context b is k[page_table[b, r // page_rows], r % page_rows]."""
        return torch.ops.magicpig.attend(
            self.order, q, k, v, split, rows, self.number, ring_rows, page_table, self.flags
        )

    # The same in three, for what the GPU can do meanwhile: submit; then window, or nothing (then there are no own rows); then merge. With
    # plan.own_first: window, or nothing; submit; merge.

    def submit(self, q: torch.Tensor, split: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> None:
        """Without split and rows the daemon attends [sinks, committed - the plan's window)."""
        torch.ops.magicpig.submit(self.order, q, split, rows, self.number)

    def window(self, q, k, v, split, rows, *, ring_rows: int = 0, page_table: torch.Tensor | None = None) -> None:
        torch.ops.magicpig.window(self.order, q, k, v, split, rows, self.number, ring_rows, page_table)

    def merge(self, out: torch.Tensor, lse: torch.Tensor | None = None, *, daemon_only: bool = False) -> None:
        """Into out [B, T, query_heads, d_v] and lse. daemon_only: the daemon's part alone, for callers that merge by themselves."""
        torch.ops.magicpig.merge(
            self.order, out, lse, self.number, self.flags | (cuda.DAEMON_ONLY if daemon_only else 0)
        )
