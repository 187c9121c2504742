"""What the layers of a cache ask of the daemon: one context through one queue."""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Sequence

import torch

from .client import Client, Context
from .errors import Again, Error
from .options import Options, Stats
from .records import AttendResult, Completion, Layer

_MIN_SLOT_BYTES = 256 * 1024
_SEAL_TIMEOUT_MS = 600_000  # sealing indexes a whole prompt


def token_major(states: torch.Tensor) -> torch.Tensor:
    """[1, heads, T, d] on any device -> [T, heads, d], contiguous, in host memory, in a dtype the daemon reads."""
    states = states.detach()[0].transpose(0, 1).cpu()
    if states.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        states = states.float()
    return states.contiguous()


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
        self._appends: deque[int] = deque()  # tickets of this step's rows
        self._polled: dict[int, Completion] = {}  # taken by poll() before anybody waited for them
        per_token = max(layer.query_heads * ((layer.d_k + (layer.d_v or layer.d_k)) * 4 + 32) for layer in table)
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
        self._queue.append(self.context, index, position, token_major(keys), token_major(values), queries)

    def submit_append(self, index: int, position: int, keys, values) -> None:
        """Without waiting; collect() or discard() sees to the completions."""
        layer = self.table[index]
        k, v = token_major(keys), token_major(values)
        per_row = layer.kv_heads * (layer.d_k + (layer.d_v or layer.d_k)) * k.element_size()
        most = max(1, (_MIN_SLOT_BYTES - 8192) // per_row)
        for begin in range(0, k.shape[0], most):
            part = slice(begin, begin + most)
            ticket = self._when_room(
                lambda: self._queue.submit_append(self.context, index, position + begin, k[part], v[part])
            )
            self._appends.append(ticket)

    def submit_attend(
        self, index: int, q: torch.Tensor, position: int, end: int, lse: torch.Tensor | None
    ) -> list[tuple[int, int, AttendResult]]:
        """Asks for rows sinks..end: (first query token, ticket, result) for each slot's worth of queries; none if the range
        is empty. lse [T, heads]: of the client's exact part, which only an adaptive budget looks at."""
        options, begin = self.options, self.options.sinks
        if end <= begin or options.proposal == "window":
            return []
        sampled = options.sampled_layers is None or index in options.sampled_layers
        self.stats.rows_visible += q.shape[0] * q.shape[1] * (end - begin)
        pending: list[tuple[int, int, AttendResult]] = []
        for first in range(0, q.shape[0], self._request_tokens):
            part = slice(first, first + self._request_tokens)
            submit: Callable[[], Any] = lambda: self._queue.submit_attend(
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
                window_lse=None if lse is None else lse[part],
            )
            ticket, result = self._when_room(submit)
            pending.append((first, ticket, result))
        return pending

    def _when_room(self, submit: Callable[[], Any]) -> Any:
        """Submits; while the queue is full, waits for the oldest append, or for the oldest request to leave its slot."""
        while True:
            try:
                return submit()
            except Again:
                if self._appends:
                    self.wait(self._appends.popleft())
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
            self._queue.read(self.context, index, position, count, k, v)
        home = self._homes(index)
        return tuple(x.transpose(0, 1)[None].to(home.device, home.dtype) for x in (k, v))

    def collect(self) -> None:
        """Waits for every row submitted; raises the first error."""
        while self._appends:
            self.wait(self._appends.popleft())

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
        self._queue.truncate(self.context, position)

    def close(self) -> None:
        self._queue.close()
        self.context.close()
