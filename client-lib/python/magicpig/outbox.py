"""Rows of a prompt on their way from a GPU to the daemon: through pinned blocks, on a stream of their own, while the GPU goes on."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch

from .channel import readable

if TYPE_CHECKING:
    from .channel import Channel

_BLOCK_BYTES = 8 << 20
_BLOCKS = 4


def _element(x: torch.Tensor) -> int:
    return 2 if x.dtype in (torch.float16, torch.bfloat16) else 4


class _Job(NamedTuple):
    copied: object  # an event
    block: torch.Tensor
    index: int
    position: int
    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor | None


class Outbox:
    """Belongs to one thread at a time. Rows are appended in the order given; errors are the channel's."""

    def __init__(self, channel: Channel, device: torch.device):
        self.channel, self.device = channel, device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device) if device.type == "cuda" else self._module.Stream()
        self._free: list[torch.Tensor] = []
        self._made = 0
        self._jobs: deque[_Job] = deque()

    def mark(self) -> object:
        """What append() waits for: all that the current stream has been given so far."""
        event = self._module.Event()
        event.record(self._module.current_stream(self.device))
        return event

    def append(
        self, ready: object, index: int, position: int, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor | None = None
    ) -> None:
        """keys, values [1, kv_heads, n, d], queries [R, heads, d], on the GPU, there since `ready` and not written again; queries go with
        the last row."""
        row = keys.shape[1] * (keys.shape[3] + values.shape[3]) * _element(keys) + 32
        last = 0 if queries is None else queries.numel() * _element(queries) + 16
        if row + last > _BLOCK_BYTES:
            raise ValueError(f"layer {index}: a row of {row} bytes and its queries' {last} do not fit {_BLOCK_BYTES}")
        self._stream.wait_event(ready)
        count, at = keys.shape[2], 0
        while at < count:
            n = min(count - at, _BLOCK_BYTES // row)
            if at + n == count and n * row + last > _BLOCK_BYTES:
                n = max(1, n - -(-last // row)) if n > 1 else n
            part, end = slice(at, at + n), at + n == count
            self._send(index, position + at, keys[0, :, part], values[0, :, part], queries if end else None)
            at += n

    def _send(self, index: int, position: int, keys, values, queries) -> None:
        block = self._block()
        used, hosts = 0, []
        with self._module.stream(self._stream):
            for x in (keys.transpose(0, 1), values.transpose(0, 1), queries):
                if x is None:
                    hosts.append(None)
                    continue
                x = readable(x)
                if self.device.type == "cuda":
                    x.record_stream(self._stream)
                size = x.numel() * x.element_size()
                host = block[used : used + size].view(x.dtype).view(x.shape)
                host.copy_(x.contiguous(), non_blocking=True)
                hosts.append(host)
                used += -(-size // 16) * 16
            copied = self._module.Event()
            copied.record(self._stream)
        self._jobs.append(_Job(copied, block, index, position, *hosts))

    def _block(self) -> torch.Tensor:
        if not self._free and self._made < _BLOCKS:
            self._made += 1
            return torch.empty(_BLOCK_BYTES, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        if not self._free:
            self._append_oldest()
        return self._free.pop()

    def _append_oldest(self) -> None:
        job = self._jobs.popleft()
        job.copied.synchronize()
        try:
            self.channel.append_rows(job.index, job.position, job.keys, job.values, job.queries)
        finally:
            self._free.append(job.block)

    def finish(self) -> None:
        """All of it is the daemon's, or the channel is lost."""
        while self._jobs:
            self._append_oldest()

    def discard(self) -> None:
        for job in self._jobs:
            job.copied.synchronize()
            self._free.append(job.block)
        self._jobs.clear()
