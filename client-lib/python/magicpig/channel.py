"""What the layers of a cache ask of the daemon: one context through one queue."""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Sequence, TypeVar

import torch

from .client import Client, Context
from .errors import Again, Error, OutOfRange, Retry
from .options import Options, Stats
from .records import AttendResult, Completion, Layer

_MIN_SLOT_BYTES = 256 * 1024
_SEAL_TIMEOUT_MS = 600_000  # sealing indexes a whole prompt
_TRIES = 8  # of a call during which the daemon goes away

_T = TypeVar("_T")
Pending = tuple[int, int, AttendResult, Callable[[], tuple[int, AttendResult]]]  # first query token, ticket, result, the same again


def again(call: Callable[[], _T]) -> _T:
    """What call() returns. It is made again when the daemon goes away meanwhile: the library connects to its successor, which
    has all that was committed. NoDaemon if none comes within the client's reconnect_ms."""
    for left in reversed(range(_TRIES)):
        try:
            return call()
        except Retry:
            if not left:
                raise
    raise AssertionError("not reached")


def readable(states: torch.Tensor) -> torch.Tensor:
    """In a dtype the daemon reads."""
    states = states.detach()
    return states if states.dtype in (torch.float32, torch.float16, torch.bfloat16) else states.float()


def token_major(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, d] on any device -> [T, heads, d], contiguous, in host memory, in a dtype the daemon reads."""
    return readable(states[0].transpose(0, 1)).cpu().contiguous()


class Channel:
    """Belongs to one thread at a time. homes(layer): a tensor whose device and dtype rows read back shall have."""

    def __init__(
        self,
        client: Client,
        context: Context,
        table: Sequence[Layer],
        homes: Callable[[int], torch.Tensor],
        options: Options,
        stats: Stats,
    ):
        self.context, self.table, self.options, self.stats = context, table, options, stats
        self._homes = homes
        self.lost = False  # a daemon went away with rows that were not committed: nothing is appended until they are again
        self._appends: deque[int] = deque()  # tickets of this step's rows
        self._polled: dict[int, Completion] = {}  # taken by poll() before anybody waited for them
        per_token = max(layer.query_heads * ((layer.d_k + 2 * (layer.d_v or layer.d_k)) * 4 + 32) for layer in table)
        slot_bytes = max(_MIN_SLOT_BYTES, 8192 + 16 * per_token)
        self._request_tokens = (slot_bytes - 8192) // per_token
        self._queue = client.queue(slot_bytes=slot_bytes, timeout_ms=_SEAL_TIMEOUT_MS)

    def check_layer(self, index: int, query: torch.Tensor, scale: float, softcap: float) -> None:
        """ValueError if the model's layer is not the context's."""
        layer = self.table[index]
        if query.shape[1] != layer.query_heads or query.shape[3] != layer.d_k:
            raise ValueError(
                f"layer {index}: queries have {query.shape[1]} heads of {query.shape[3]}, the context {layer.query_heads} "
                f"of {layer.d_k}"
            )
        if abs(scale - (layer.scale or layer.d_k**-0.5)) > 1e-6 or abs(softcap - layer.softcap) > 1e-6:
            raise ValueError(f"layer {index}: the model's scale {scale} or soft cap {softcap} is not the context's")

    def append(self, index: int, position: int, keys, values, queries: torch.Tensor | None = None) -> None:
        self.append_rows(index, position, token_major(keys), token_major(values), queries)

    def append_rows(self, index: int, position: int, k: torch.Tensor, v: torch.Tensor, queries: torch.Tensor | None = None) -> None:
        """The same for [n, kv_heads, d] in host memory."""
        if self.lost:
            return
        try:
            self._queue.append(self.context, index, position, k, v, queries)
        except (Retry, OutOfRange):  # of range: those before went with a daemon
            self.lost = True

    def append_again(self, index: int, position: int, keys, values, queries: torch.Tensor | None = None) -> None:
        """With every error raised."""
        self._queue.append(self.context, index, position, token_major(keys), token_major(values), queries)

    def reconnect(self) -> int:
        """The tokens that a daemon has committed, which lives."""
        self._queue.nop()
        return self.context.committed

    def submit_append(self, index: int, position: int, keys, values) -> None:
        """Without waiting; collect() or discard() sees to the completions."""
        self.submit_rows(index, position, token_major(keys), token_major(values))

    def submit_rows(self, index: int, position: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """The same for [n, kv_heads, d] in host memory; they are copied before this returns."""
        layer = self.table[index]
        per_row = layer.kv_heads * (layer.d_k + (layer.d_v or layer.d_k)) * k.element_size()
        most = max(1, (_MIN_SLOT_BYTES - 8192) // per_row)
        for begin in range(0, k.shape[0], most):
            part = slice(begin, begin + most)
            if self.lost:
                return
            try:
                ticket = self._when_room(
                    lambda: self._queue.submit_append(self.context, index, position + begin, k[part], v[part])
                )
            except Retry:
                self.lost = True
            else:
                self._appends.append(ticket)

    def submit_attend(
        self, index: int, q: torch.Tensor, position: int, end: int, exact: tuple[torch.Tensor, torch.Tensor] | None
    ) -> list[Pending]:
        """Asks for rows sinks..end, a slot's worth of queries at a time; none if the range is empty. exact: out [T, heads, d_v] and LSE [T, heads]
        of the client's exact part, which only an adaptive budget looks at."""
        options, begin = self.options, self.options.sinks
        if end <= begin or options.proposal == "window":
            return []
        sampled = options.sampled_layers is None or index in options.sampled_layers
        self.stats.rows_visible += q.shape[0] * q.shape[1] * (end - begin)
        pending: list[Pending] = []
        for first in range(0, q.shape[0], self._request_tokens):
            part = slice(first, first + self._request_tokens)
            submit: Callable[[], Any] = lambda part=part, first=first: self._queue.submit_attend(
                self.context,
                index,
                q[part],
                proposal=options.proposal if sampled else "dense",
                begin=begin,
                end=end,
                budget=options.budget if sampled else 0.0,
                seed=options.seed,
                query_position=position + first,
                error_target=options.error_target if sampled else 0.0,
                window_lse=None if exact is None else exact[1][part],
                window_out=None if exact is None else exact[0][part],
            )
            ticket, result = again(lambda: self._when_room(submit))
            pending.append((first, ticket, result, submit))
        return pending

    def answer(self, pending: Pending) -> AttendResult:
        """Waits for it. It reads committed rows only, so that any daemon answers the same."""
        _, ticket, result, submit = pending

        def ask() -> AttendResult:
            number, answer = self._when_room(submit)
            self.wait(number)
            return answer

        try:
            self.wait(ticket)
        except Retry:
            return again(ask)
        return result

    def _when_room(self, submit: Callable[[], Any]) -> Any:
        """Submits; while the queue is full, waits for the oldest append, or for the oldest request to leave its slot."""
        while True:
            try:
                return submit()
            except Again:
                if self._appends:
                    self._wait_append()
                else:
                    self._polled.update((completion.ticket, completion) for completion in self._queue.poll())

    def wait(self, ticket: int) -> None:
        """Waits for one ticket and raises its error, if any."""
        done = self._polled.pop(ticket, None)
        if done is not None:
            done.check()
        else:
            self._queue.wait(ticket)

    def read(self, index: int, position: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [1, kv_heads, count, d] on the layer's device in the model's dtype."""
        layer = self.table[index]
        k = torch.empty(count, layer.kv_heads, layer.d_k)
        v = torch.empty(count, layer.kv_heads, layer.d_v or layer.d_k)
        if count:
            again(lambda: self._queue.read(self.context, index, position, count, k, v))
        home = self._homes(index)
        return tuple(x.transpose(0, 1)[None].to(home.device, home.dtype) for x in (k, v))

    def _wait_append(self) -> None:
        try:
            self.wait(self._appends.popleft())
        except (Retry, OutOfRange):
            self.lost = True

    def collect(self) -> None:
        """Waits for every row submitted; raises the first error that is not a daemon's going away."""
        while self._appends:
            self._wait_append()

    def discard(self) -> None:
        """Waits for every row submitted; what went wrong with them does not matter any more."""
        while self._appends:
            try:
                self.wait(self._appends.popleft())
            except Error:
                continue

    def commit(self, position: int, tokens: Any, seal: bool = False) -> None:
        self._queue.commit(self.context, position, tokens, seal=seal)

    def truncate(self, position: int) -> None:
        again(lambda: self._queue.truncate(self.context, position))

    def forget_rows_from(self, position: int) -> None:
        """Rows behind the prompt's end, of steps that failed or were taken back: while there are any, the daemon seals nothing."""
        if self.lost:
            return
        try:
            self._queue.truncate(self.context, position)
        except (Retry, OutOfRange):  # of range: all that were not committed went with a daemon
            self.lost = True

    def close(self) -> None:
        self._queue.close()
        self.context.close()
