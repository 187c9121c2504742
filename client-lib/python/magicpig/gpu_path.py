"""Decode steps of a MagicPigCache whose model is on a GPU: what is sampled is asked for, answered and merged without the host.

One token a step. Each layer's sinks and recent rows lie in a ring on the GPU, [2, sinks + ring, kv_heads, d]; where the step's row goes,
where the daemon's rows end and how many there are is in tensors there, so that kernels of a step can be captured and replayed. The host
waits once, when all of a step is launched: then it is known whether the daemon has answered. Rows of steps that went well are fetched
some at a time, and appended and committed while the GPU works on a later step: they are the daemon's some tokens late, which the window
covers."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Sequence

import torch

from . import cuda, errors, ops
from .arrays import dtype_name, token_array
from .channel import again
from .records import Layer

if TYPE_CHECKING:
    from .transformers import MagicPigCache

_FETCHED = 8  # tokens at a time
_AWAKE_MS = 1000
_TRIES = 8    # of a step during which the daemon goes away or stands still
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of K and V
_PASSING = (errors.TimedOut.status, errors.Retry.status, errors.Shutdown.status)
_GONE = "{}: the daemon is gone, and none came back within the client's reconnect_ms; start it, and go on with MagicPigCache.open"


def open_gpu_path(
    cache: MagicPigCache, table: Sequence[Layer], windows: Sequence[int | None], homes: Sequence[torch.Tensor]
) -> GpuPath | None:
    """None where the host's path has to do, with a warning on a GPU; with options.gpu, what is in the way is raised instead."""
    device, wanted = homes[0].device, cache.options.gpu
    if wanted is False or (wanted is None and device.type != "cuda"):
        return None
    try:
        if not ops.serves(device):
            raise ValueError(f"gpu: the model is on {device}")
        if {home.device for home in homes} != {device}:
            raise ValueError("gpu: the model is on several devices")
        wide = {home.dtype for home in homes if home.is_floating_point()} - set(_DTYPES)
        if wide:
            raise ValueError(f"gpu: the model's parameters are {', '.join(map(str, wide))}, not float32, float16 or bfloat16")
        if any(layer.d_v not in (0, layer.d_k) for layer in table):
            raise ValueError("gpu: keys and values have different sizes")
        if cache.options.proposal == "window":
            raise ValueError("gpu: there is nothing to ask the daemon for")
        with torch.inference_mode(False):  # its tensors outlive the caller's mode
            return GpuPath(cache, table, windows, device)
    except (ImportError, ValueError, errors.NotSupported) as error:
        if wanted:
            raise
        warnings.warn(f"attention goes through host memory: {error}", RuntimeWarning, stacklevel=5)
        return None


class GpuPath:
    """Belongs to one thread at a time. `holds`: the rows are in the rings, else in the layers. `length`: tokens of steps that went well;
    `taken` of them are committed or fetched."""

    def __init__(self, cache: MagicPigCache, table, windows, device: torch.device):
        self.cache, self.options, self.table, self.device = cache, cache.options, table, device
        self._asked = [index for index, window in enumerate(windows) if window is None]
        self._stored = [index for index in range(len(table)) if table[index].kind == "global"]
        self._module = torch.get_device_module(device)
        self.holds, self.length, self.taken = False, 0, 0
        self._failures, self._signature_version, self._split_value = 0, 0, -1
        self._fetched: _Fetched | None = None
        self._attention: dict[int, ops.Attention] = {}
        self._groups: list[tuple[list[int], torch.Tensor]] = []  # layers of one shape, and their rings
        self._rings: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # K and V of a layer
        self.ring_rows = 2 * self.options.window + 2 * _FETCHED
        slot = max((layer.query_heads * (16 * layer.d_k + 64) for layer in table), default=0) + 8192
        self._queue = cache.client.queue(entries=4, slots=1, slot_bytes=slot)
        try:
            with self._module.device(device) if device.type == "cuda" else contextlib.nullcontext():
                torch.empty(1, device=device)  # torch's CUDA context is there, and current
                self.gpu = cuda.Gpu(self._queue, timeout_ms=self.options.gpu_timeout_ms)
            self.rows, self.split, self.place = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(3))
            self._padded = torch.zeros(1, dtype=torch.bool, device=device)
            self._padded_host = self._host_tensor(1, dtype=torch.bool).zero_()
            self._tokens = torch.zeros(self.ring_rows, dtype=torch.int64, device=device)
        except BaseException:
            self._queue.close()
            raise

    def close(self) -> None:
        """Without what is not committed: flush() before."""
        self._queue.close()

    # ---- memory

    def _host_tensor(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _make_rings(self, dtype: torch.dtype) -> None:
        """Of every layer whose rows the daemon stores; a sliding layer's is only for those on their way. Layers of one shape have
        theirs in one tensor, so that one kernel gathers the rows of all. Once: graphs know the addresses."""
        if self._rings:
            return
        shapes: dict[tuple[int, int], list[int]] = {}
        for index in self._stored:
            shapes.setdefault((self.table[index].kv_heads, self.table[index].d_k), []).append(index)
        size = self.options.sinks + self.ring_rows
        with torch.inference_mode(False):  # they outlive the caller's mode
            for (kv_heads, d), members in shapes.items():
                rings = torch.zeros(len(members), 2, size, kv_heads, d, dtype=dtype, device=self.device)
                self._groups.append((members, rings))
                self._rings.update((index, (rings[n, 0], rings[n, 1])) for n, index in enumerate(members))

    def _places(self, *ranges: tuple[int, int]) -> torch.Tensor:
        """Where rows begin..end of each range lie in a ring."""
        rows = torch.cat([torch.arange(begin, end, device=self.device) for begin, end in ranges])
        sinks = self.options.sinks
        return torch.where(rows < sinks, rows, sinks + (rows - sinks) % self.ring_rows)

    def _held(self) -> torch.Tensor:
        sinks = self.options.sinks
        return self._places((0, sinks), (max(self.cache.window_start, sinks), self.length))

    def can_take(self, length: int) -> bool:
        held = self.cache.layers[self._asked[0]].rows if self._asked else None
        return held is not None and held.k.dtype in _DTYPES and length >= self.options.sinks

    @torch.no_grad()
    def take(self, length: int) -> None:
        """Rows 0..sinks and window_start..length of the layers move into the rings; all are committed."""
        self.length = self.taken = length
        self._make_rings(self.cache.layers[self._asked[0]].rows.k.dtype)
        self._make_plans()
        places = self._held()
        for index in self._asked:
            for ring, rows in zip(self._rings[index], self.cache.layers[index].rows.view()):
                ring.index_copy_(0, places, rows[0].transpose(0, 1).to(ring.dtype))
        self._set_counters()
        self.holds = True

    @torch.no_grad()
    def rows_of(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same rows again, [1, kv_heads, count, d]."""
        k, v = (ring.index_select(0, self._held()).transpose(0, 1)[None] for ring in self._rings[index])
        return k, v

    def _make_plans(self) -> None:
        options = self.options
        for index in self._asked if not self._attention else ():
            sampled = options.sampled_layers is None or index in options.sampled_layers
            plan = cuda.Plan(
                self.gpu,
                [self.cache.context],
                index,
                dtype=dtype_name(self._rings[index][0]),
                proposal=options.proposal if sampled else "dense",
                budget=options.budget if sampled else 0.0,
                error_target=options.error_target if sampled else 0.0,
                seed=options.seed,
                sinks=options.sinks,
                own_rows=options.sinks + 2 * options.window,
            )
            self._attention[index] = ops.Attention(plan, self.device)
            self._signature_version = self.cache.context.signature_version
        self._refresh_plans()

    def _refresh_plans(self) -> None:
        """The context may have been indexed again. Nothing runs."""
        if self.cache.context.signature_version != self._signature_version:
            for attention in self._attention.values():
                attention.plan.refresh()
            self._signature_version = self.cache.context.signature_version

    def _set_counters(self) -> None:
        """As they are between steps."""
        self.rows.fill_(self.length)
        if self._split_value != self.cache.window_start:
            self._split_value = self.cache.window_start
            self.split.fill_(self._split_value)

    # ---- a step

    @torch.no_grad()
    def begin(self, ids: torch.Tensor) -> None:
        """Before a step's kernels: the daemon lives, its workers are awake, and it has the rows that it will be asked for."""
        if self.gpu.failure() is not None:
            self._recover()
        if self.cache.committed < self.cache.window_start:
            self.flush()
        self._begin_daemon()
        self._set_counters()
        at = self.length % self.ring_rows
        self._tokens[at : at + 1].copy_(ids.reshape(1), non_blocking=True)

    @torch.no_grad()
    def advance(self) -> None:
        """The first kernels of a step: counters go one token on."""
        self.rows.add_(1)
        torch.sub(self.rows, 1 + self.options.sinks, out=self.place)
        self.place.remainder_(self.ring_rows).add_(self.options.sinks)

    @torch.no_grad()
    def see_padding(self, mask: torch.Tensor) -> None:
        """A mask with zeros is refused when the step ends: nobody waits for it here."""
        self._padded.copy_(mask.to(self.device, torch.bool, non_blocking=True).logical_not().any())
        self._padded_host.copy_(self._padded, non_blocking=True)

    @torch.no_grad()
    def update(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's row joins the ring. All of the ring, [1, kv_heads, sinks + ring, d], for the model to hand to its attention."""
        k, v = self._rings[index]
        k.index_copy_(0, self.place, key[0].transpose(0, 1).to(k.dtype))
        v.index_copy_(0, self.place, value[0].transpose(0, 1).to(v.dtype))
        return k.transpose(0, 1)[None], v.transpose(0, 1)[None]

    @torch.no_grad()
    def attend(self, index: int, query: torch.Tensor, sink_logit: torch.Tensor | None) -> torch.Tensor:
        """query [1, heads, 1, d] -> [1, 1, heads, d]."""
        k, v = self._rings[index]
        out, lse = self._attention[index](
            query.transpose(1, 2).to(k.dtype), k[None], v[None], self.split, self.rows, ring_rows=self.ring_rows
        )
        if sink_logit is not None:  # it takes mass and has no value
            out = out * torch.sigmoid(lse - sink_logit.float())[..., None].to(out.dtype)
        return out.to(query.dtype)

    def end(self) -> bool:
        """All of a step is launched: commits what was fetched, fetches what there is to fetch, and waits for the GPU. False: the daemon
        went away or stood still; everything is as before begin(), and the step is to be run again."""
        if self._fetched is not None:
            self._commit_fetched()
        if self.length - self.taken >= _FETCHED:
            self._fetch()
        self._wait()
        failed = self.gpu.failure()
        if failed is not None:
            self._recover()
            self._failures += 1
            if failed.status not in _PASSING or self._failures >= _TRIES:
                raise errors.make(failed.status, self._advice(failed))
            return False
        self._failures = 0
        if self._padded_host[0]:
            self._padded_host.zero_()
            raise ValueError("MagicPigCache serves one sequence without padding: the attention mask has zeros")
        self.length += 1
        self._refresh_plans()
        return True

    def _advice(self, failed: cuda.Failure) -> str:
        what = errors.BY_STATUS.get(failed.status, errors.Error).__doc__
        if failed.status == errors.TimedOut.status:
            todo = "see what holds the daemon up (magicpigctl top), or give it longer (gpu_timeout_ms)"
        elif failed.status in (errors.NotFound.status, errors.Lost.status):
            todo = "run the prompt again with a new cache"
        elif failed.status == errors.NotSupported.status:
            todo = f"the context has no index for {self.options.proposal}: make it with one (signature_bits, paper)"
        else:
            todo = "see the daemon's log"
        tries = f", {self._failures} times in a row" if self._failures > 1 else ""
        return f"the daemon's answer to a step of {self.cache.context.name} failed{tries}: {what}; {todo}"

    def _begin_daemon(self) -> None:
        try:
            again(lambda: self.gpu.begin(_AWAKE_MS))
        except errors.NoDaemon as error:
            raise errors.NoDaemon(_GONE.format(self.cache.context.name)) from error

    def _wait(self) -> None:
        event = self._module.Event()
        event.record(self._module.current_stream(self.device))
        event.synchronize()

    def _recover(self) -> None:
        """The daemon is done with what it was asked, or another one has the queue."""
        for left in reversed(range(_TRIES)):
            try:
                self.gpu.recover()
                break
            except errors.NoDaemon as error:
                raise errors.NoDaemon(_GONE.format(self.cache.context.name)) from error
            except (errors.TimedOut, errors.Retry):
                if not left:
                    raise
        self._set_counters()

    def abandon(self) -> None:
        """The step that has begun does not end."""
        self._wait()
        if self.gpu.failure() is not None:
            self._recover()
        self._set_counters()

    def take_back_step(self) -> None:
        """What has been run of the step that has begun was a trial: everything is as after begin(). Raises what has failed."""
        self._wait()
        self.gpu.check()
        self._set_counters()
        for layer in self.cache.layers:
            layer.drop_last(self.length)

    # ---- rows on their way to the daemon

    @torch.no_grad()
    def _fetch(self) -> None:
        """Rows and tokens taken..length set out for host memory; they are there when the stream has come to this place."""
        begin, end = self.taken, self.length
        places = self._places((begin, end))
        fetched = _Fetched(begin, end - begin, {})
        for members, ring in self._groups:
            rows = ring.index_select(2, places)  # [layers, 2, n, kv_heads, d]
            host = self._host_tensor(*rows.shape, dtype=rows.dtype)
            host.copy_(rows, non_blocking=True)
            fetched.rows.update((index, host[n]) for n, index in enumerate(members))
        at = torch.arange(begin, end, device=self.device) % self.ring_rows
        fetched.tokens = self._host_tensor(end - begin, dtype=torch.int64)
        fetched.tokens.copy_(self._tokens[at], non_blocking=True)
        self._fetched, self.taken = fetched, end

    def _commit_fetched(self) -> None:
        fetched = self._fetched
        self.cache.commit_rows(fetched.begin, token_array(fetched.tokens), fetched.rows)
        self._fetched = None

    def flush(self) -> None:
        """Everything is committed when this returns. Between steps."""
        if self._fetched is not None:
            self._wait()
            self._commit_fetched()
        if self.taken < self.length:
            self._fetch()
            self._wait()
            self._commit_fetched()


class _Fetched:
    """Rows of some tokens in host memory: by layer, [2, n, kv_heads, d]."""

    def __init__(self, begin: int, count: int, rows: dict[int, torch.Tensor]):
        self.begin, self.count, self.rows = begin, count, rows
        self.tokens: torch.Tensor | None = None
