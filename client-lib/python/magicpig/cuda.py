"""A GPU that talks to the daemon by itself: libmagicpig-cuda with Python's manners. No torch in here: addresses and streams are numbers.

    with magicpig.Client() as client, client.queue(slot_bytes=1 << 20) as queue, Gpu(queue) as gpu:
        plans = [Plan(gpu, [context], layer, dtype="bf16", proposal="signature", budget=.01, sinks=4) for layer in layers]
        gpu.begin()
        for plan, step in zip(plans, steps):      # or once, while a CUDA graph is captured
            plan.run(step, stream)                # or submit, window, merge; window, submit, merge of a plan with own_first
        ...                                       # the stream is synchronised
        gpu.check()

`magicpig.ops` has the same as operators of torch. Ownership: a Gpu belongs to its queue and plans to their Gpu and contexts; whatever is
closed first closes what depends on it. Threads: as in magicpig_cuda.h, one at a time. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from . import _cuda, errors
from ._cuda import DAEMON_ONLY, LSE2, Rows, Step
from .arrays import DTYPE_CODES, token_array
from .records import COMMIT_SEAL, PROPOSALS, choice, record

if TYPE_CHECKING:
    from .client import Client, Context
    from .queue import Queue

__all__ = [
    "Answer",
    "DAEMON_ONLY",
    "Failure",
    "Gpu",
    "Info",
    "Ingest",
    "IngestFailure",
    "IngestReport",
    "LSE2",
    "Plan",
    "Rows",
    "Step",
    "available",
]

_PLAN_DTYPES = {name: DTYPE_CODES[name] for name in ("f32", "bf16", "f16")}


@dataclass
class Info:
    """`region`: device address of the queue's memory, of which `bytes` are registered. stream_wait: see magicpig_cuda.h."""

    device: str
    compute_major: int
    compute_minor: int
    region: int
    bytes: int
    entries: int
    slots: int
    stream_wait: int


@dataclass
class Failure:
    """The first failure of a kernel: of which request, and the status of the exception that check() raises."""

    status: int
    slot: int
    sequence: int


@dataclass
class Answer:
    """Of the last request that was waited for."""

    sequence: int
    committed: int
    rows_read: int
    bytes_read: int
    service_ns: int


def available() -> str | None:
    """None if libmagicpig-cuda is installed, else why not. Whether there is a GPU is known when one is attached."""
    try:
        _cuda.library()
    except ImportError as error:
        return str(error)
    return None


def _check(lib: ctypes.CDLL, status: int) -> int:
    if status < 0:
        text = lib.mpig_cuda_error() or b"libmagicpig-cuda: invalid argument"
        raise errors.make(status, text.decode(errors="replace"))
    return status


class Gpu:
    """A queue that a GPU feeds, in the CUDA context that is current, or that of GPU 0. The queue is lent meanwhile: its own calls raise Busy.

    timeout_ms: the longest wait of a kernel for the daemon (0: 2000). ImportError: libmagicpig-cuda is not installed; NotSupported: no
    driver, no GPU, or one that is too old."""

    def __init__(self, queue: Queue, *, timeout_ms: int = 0):
        self._handle: c_void_p | None = None
        self._lib = _cuda.library()
        self._plans: set[Plan] = set()  # until they are closed: captured graphs may hold their kernels
        if queue._gpu is not None:
            raise errors.Busy("the queue already is a GPU's")
        handle = c_void_p()
        options = _cuda.Options(timeout_ms=timeout_ms)
        _check(self._lib, self._lib.mpig_cuda_attach(queue._open_handle(), byref(options), byref(handle)))
        self.queue, self._handle = queue, handle
        queue._gpu = self
        queue.client._gpus.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError("the GPU is detached")
        return self._handle

    def close(self) -> None:
        """Waits until the GPU is done with the queue and takes it back. Graphs that hold kernels of its plans must not be launched again."""
        if self._handle is not None:
            for plan in list(self._plans):
                plan.close()
            self._lib.mpig_cuda_detach(self._handle)
            self._handle = self.queue._gpu = None
            self.queue.client._gpus.discard(self)

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def info(self) -> Info:
        raw = _cuda.Info()
        _check(self._lib, self._lib.mpig_cuda_get_info(self._open_handle(), byref(raw)))
        return record(Info, raw)

    def begin(self, awake_ms: int = 100) -> bool:
        """Before each launch: the daemon lives, and its workers stay awake for so long. True: it is another one than before; plans and
        graphs serve as they are, rows that were not committed are lost."""
        return bool(_check(self._lib, self._lib.mpig_cuda_begin(self._open_handle(), awake_ms)))

    def failure(self) -> Failure | None:
        """What has failed, if the stream has been synchronised. Reads host memory only."""
        raw = _cuda.Failure()
        status = self._lib.mpig_cuda_failure(self._open_handle(), byref(raw))
        return record(Failure, raw) if status else None

    def check(self) -> None:
        """Raises what has failed. Outputs since then are NaN, until recover()."""
        failed = self.failure()
        if failed is not None:
            what = errors.BY_STATUS.get(failed.status, errors.Error).__doc__
            raise errors.make(
                failed.status,
                f"request {failed.sequence} of the GPU's queue, in slot {failed.slot}: {what}; outputs since then are NaN: "
                "recover(), and run the step again",
            )

    def recover(self) -> bool:
        """After a failure: waits until the daemon is done with what it was asked, or goes to its successor (True) if it is gone.
        TimedOut: it lives and still works; call again."""
        return bool(_check(self._lib, self._lib.mpig_cuda_recover(self._open_handle())))

    def last_answer(self) -> Answer:
        """Reads host memory only."""
        raw = _cuda.Answer()
        _check(self._lib, self._lib.mpig_cuda_last_answer(self._open_handle(), byref(raw)))
        return record(Answer, raw)

    def nop(self, slot: int, stream: int = 0) -> None:
        """Launches a request that does nothing; wait() for it."""
        _check(self._lib, self._lib.mpig_cuda_nop(self._open_handle(), stream, slot))

    def wait(self, slot: int, stream: int = 0) -> None:
        _check(self._lib, self._lib.mpig_cuda_wait(self._open_handle(), stream, slot))

    def round_trips(self, count: int) -> np.ndarray:
        """Nanoseconds that each of `count` requests took which do nothing, one after another. Nothing may be in flight."""
        ns = np.zeros(max(0, count), np.float32)
        at = ns.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        _check(self._lib, self._lib.mpig_cuda_round_trips(self._open_handle(), max(0, count), at))
        return ns


_numbers = itertools.count(1)
_numbered: dict[int, Plan] = {}


def plan_of(number: int) -> Plan:
    """The plan with this .number; ValueError if it is closed."""
    plan = _numbered.get(number)
    if plan is None:
        raise ValueError(f"plan {number} is closed")
    return plan


class Plan:
    """One layer of some contexts, `tokens` query tokens each: everything that is the same in every step. Arguments are those of struct
    mpig_cuda_spec. `number` names it in operators of `magicpig.ops`. `signature`: whether the GPU computes signatures. `own_first`: whether
    own rows are attended before the request, which then carries their LSE and output; None: where the daemon goes by them, which it does
    for rows by error, also verified ones (delta), and not for a budget or a proposal that reads all rows."""

    def __init__(
        self,
        gpu: Gpu,
        contexts: Sequence[Context],
        layer: int,
        *,
        tokens: int = 1,
        first_slot: int = 0,
        dtype: str = "bf16",
        proposal: str = "default",
        budget: float = 0.0,
        error_target: float = 0.0,
        budget_floor: float = 0.0,
        budget_cap: float = 0.0,
        seed: int = 0,
        sinks: int = 0,
        window: int = 0,
        signature: bool = True,
        own_rows: int = 0,
        delta: float = 0.0,
        own_first: bool | None = None,
    ):
        self._handle: c_void_p | None = None
        self._lib, self.gpu, self.contexts = gpu._lib, gpu, tuple(contexts)
        self.layer, self.tokens, self.dtype, self.sinks = layer, tokens, dtype, sinks
        if not self.contexts:
            raise ValueError("contexts: at least one is needed")
        layers = self.contexts[0].layers
        if not 0 <= layer < len(layers):
            raise ValueError(f"layer: {layer} is not within 0..{len(layers) - 1}")
        shape = layers[layer]
        self.query_heads, self.kv_heads, self.d_k, self.d_v = shape.query_heads, shape.kv_heads, shape.d_k, shape.d_v or shape.d_k
        adapts = proposal in ("default", "signature") and (error_target > 0 or budget == 0)
        self.own_first = adapts and self.d_k == self.d_v if own_first is None else own_first
        handles = (c_void_p * len(self.contexts))(*[context._open_handle() for context in self.contexts])
        spec = _cuda.Spec(
            layer=layer,
            contexts=len(self.contexts),
            context=handles,
            tokens=tokens,
            first_slot=first_slot,
            dtype=choice(_PLAN_DTYPES, dtype, "dtype"),
            proposal=choice(PROPOSALS, proposal, "proposal"),
            budget=budget,
            error_target=error_target,
            budget_floor=budget_floor,
            budget_cap=budget_cap,
            seed=seed,
            sinks=sinks,
            window=window,
            no_signature=not signature,
            own_rows=own_rows,
            delta=delta,
            own_first=self.own_first,
        )
        handle = c_void_p()
        _check(self._lib, self._lib.mpig_cuda_plan_create(gpu._open_handle(), byref(spec), byref(handle)))
        self._handle = handle
        self.number = next(_numbers)
        _numbered[self.number] = self
        gpu._plans.add(self)
        for context in self.contexts:
            context._plans.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError(f"the plan of layer {self.layer} is closed")
        return self._handle

    def close(self) -> None:
        """The stream must be done with it."""
        if self._handle is not None:
            self._lib.mpig_cuda_plan_destroy(self._handle)
            self._handle = None
            _numbered.pop(self.number, None)
            self.gpu._plans.discard(self)

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Fetches parameters of signatures anew where a context has others; captured graphs use them. Nothing of the plan may run."""
        _check(self._lib, self._lib.mpig_cuda_plan_refresh(self._open_handle()))

    def submit(self, step: Step, stream: int = 0) -> None:
        """Launches: q, its signature and the entry into the ring."""
        _check(self._lib, self._lib.mpig_cuda_submit(self._open_handle(), stream, byref(step)))

    def window(self, step: Step, stream: int = 0) -> None:
        """Launches: attention over own rows, while the daemon works, or with own_first before it is asked."""
        _check(self._lib, self._lib.mpig_cuda_window(self._open_handle(), stream, byref(step)))

    def merge(self, step: Step, stream: int = 0) -> None:
        """Launches: the wait for the answer, and the merge of both parts."""
        _check(self._lib, self._lib.mpig_cuda_merge(self._open_handle(), stream, byref(step)))

    def run(self, step: Step, stream: int = 0) -> None:
        """Launches all of a step with own rows, in the plan's order."""
        for launch in (self.window, self.submit) if self.own_first else (self.submit, self.window):
            launch(step, stream)
        self.merge(step, stream)

    def sign(self, step: Step, signature: int, scale: int, stream: int = 0) -> None:
        """Launches: signatures [B][T][query_heads][d_pad] int8 and their scales, float, to these device addresses."""
        _check(self._lib, self._lib.mpig_cuda_sign(self._open_handle(), stream, byref(step), signature, scale))


@dataclass
class IngestReport:
    """What an Ingest has done since it was made, recovered or finished before; times in ns. See struct mpig_cuda_ingest_report."""

    rows: int
    bytes: int
    appends: int
    commits: int
    elapsed_ns: int
    copy_ns: int
    wait_ns: int
    service_ns: int


@dataclass
class IngestFailure:
    """The first failure: of which request, layer -1: of none or a commit; `context` is its name."""

    status: int
    layer: int
    first: int
    count: int
    context: str | None


class Ingest:
    """Rows of prompts from the GPU's memory to the daemon, by a kernel beside those that compute. Belongs to its client. A context that is closed
    meanwhile keeps handle and lease until finish() or recover() has come back, or close().

    slot_bytes and slots: of the staging memory (0: 4 of 16 MiB); timeout_ms: the longest time in which the daemon answers nothing (0:
    30000); blocks: of the kernel that copies; patience_ms: the longest time that a call waits while nothing moves, as when a stream of the
    caller's is blocked (0: 120000; negative: no limit). Then it raises Again: nothing is lost, and the same call goes on. Errors as of a Gpu."""

    def __init__(
        self, client: Client, *, slot_bytes: int = 0, slots: int = 0, timeout_ms: int = 0, blocks: int = 0, patience_ms: int = 0
    ):
        self._handle: c_void_p | None = None
        self._lib, self.client = _cuda.library(), client
        self._contexts: set[Context] = set()  # since it was made, recovered or finished: it asks about them
        handle = c_void_p()
        options = _cuda.IngestOptions(slot_bytes=slot_bytes, slots=slots, timeout_ms=timeout_ms, blocks=blocks, patience_ms=patience_ms)
        _check(self._lib, self._lib.mpig_cuda_ingest_create(client._open_handle(), byref(options), byref(handle)))
        self._handle = handle
        client._gpus.add(self)

    def _open_handle(self) -> c_void_p:
        if self._handle is None:
            raise ValueError("the ingest is closed")
        return self._handle

    def close(self) -> None:
        """Waits for what is under way. Rows that were not committed are lost."""
        if self._handle is not None:
            self._lib.mpig_cuda_ingest_destroy(self._handle)
            self._handle = None
            self.client._gpus.discard(self)
            self._let_go()

    def _hold(self, context: Context) -> c_void_p:
        if context.client is not self.client:
            raise ValueError(f"context {context.name} is of another client")
        handle = context._open_handle()
        self._contexts.add(context)
        context._ingests.add(self)
        return handle

    def _let_go(self) -> None:
        while self._contexts:
            context = self._contexts.pop()
            context._ingests.discard(self)
            context._close_left()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def layer(self, context: Context, rows: Rows, stream: int = 0) -> int:
        """Rows of a layer, as what is on `stream` before leaves them; a ticket. They must stay as they are until it is released."""
        return _check(self._lib, self._lib.mpig_cuda_ingest_layer(self._open_handle(), self._hold(context), byref(rows), stream))

    def release(self, ticket: int, stream: int = 0) -> None:
        """What is launched on `stream` from now on may write the memory of this ticket and those before it."""
        _check(self._lib, self._lib.mpig_cuda_ingest_release(self._open_handle(), ticket, stream))

    def released(self, ticket: int) -> bool:
        """Whether it may be written now."""
        return bool(_check(self._lib, self._lib.mpig_cuda_ingest_released(self._open_handle(), ticket)))

    def commit(self, context: Context, position: int, tokens: Any, *, seal: bool = False) -> None:
        """Behind the rows before it, without waiting; token ids are copied."""
        ids, flags = token_array(tokens), COMMIT_SEAL if seal else 0
        call = self._lib.mpig_cuda_ingest_commit
        _check(self._lib, call(self._open_handle(), self._hold(context), position, ids.size, ids.ctypes.data, flags))

    def finish(self) -> IngestReport:
        """Waits until the daemon has answered everything."""
        raw = _cuda.IngestReport()
        _check(self._lib, self._lib.mpig_cuda_ingest_finish(self._open_handle(), byref(raw)))
        self._let_go()
        return record(IngestReport, raw)

    def failure(self) -> IngestFailure | None:
        """The failure that all calls raise until recover()."""
        raw = _cuda.IngestFailure()
        if not self._lib.mpig_cuda_ingest_failure(self._open_handle(), byref(raw)):
            return None
        name = self.client._lib.mpig_context_name(raw.context).decode() if raw.context else None
        return IngestFailure(raw.status, raw.layer, raw.first, raw.count, name)

    def recover(self) -> bool:
        """After a failure: waits for the GPU and the daemon, or goes to its successor (True). Then contexts' `committed` says from where
        on rows are to be given again."""
        again = bool(_check(self._lib, self._lib.mpig_cuda_ingest_recover(self._open_handle())))
        self._let_go()
        return again
