"""Rows of a prompt on their way from a GPU to the daemon, while the GPU goes on with the prompt."""

from __future__ import annotations

import contextlib

import torch

from . import cuda
from .arrays import DTYPE_CODES, dtype_name
from .channel import Channel
from .client import Client
from .errors import Error, OutOfRange, Retry, Shutdown, TimedOut

_TRIES = 8  # of waiting for what a daemon still works on


class PromptRows:
    """Belongs to one thread at a time. When the daemon goes away with rows, the channel is lost, as by its own appends."""

    def __init__(self, client: Client, channel: Channel, device: torch.device):
        self.client, self.channel, self.device = client, channel, device
        self._ingest: cuda.Ingest | None = None
        self._kept: list[torch.Tensor] = []  # what kernels may still read

    def append(
        self, index: int, position: int, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor | None = None
    ) -> None:
        """keys, values [1, kv_heads, n, d], queries [R, heads, d], the layer's last ones, on the GPU and not written again before
        finish()."""
        if self.channel.lost:
            return
        values, queries = values.to(keys.dtype), None if queries is None else queries.to(keys.dtype)
        rows = cuda.Rows(layer=index, dtype=DTYPE_CODES[dtype_name(keys)], first=position, count=keys.shape[2])
        rows.k, rows.k_row, rows.k_head = keys.data_ptr(), keys.stride(2), keys.stride(1)
        rows.v, rows.v_row, rows.v_head = values.data_ptr(), values.stride(2), values.stride(1)
        if queries is not None:
            rows.queries, rows.query_count = queries.data_ptr(), queries.shape[0]
            rows.q_row, rows.q_head = queries.stride(0), queries.stride(1)
        on_gpu = self.device.type == "cuda"
        stream = torch.cuda.current_stream(self.device).cuda_stream if on_gpu else 0
        if self._ingest is None:
            with torch.cuda.device(self.device) if on_gpu else contextlib.nullcontext():
                self._ingest = cuda.Ingest(self.client)
        self._kept += [keys, values] if queries is None else [keys, values, queries]
        try:
            self._ingest.layer(self.channel.context, rows, stream)
        except Error as error:
            self._fail(error)

    def finish(self) -> None:
        """All of it is the daemon's, or the channel is lost."""
        if self._kept:
            try:
                self._ingest.finish()
            except Error as error:
                self._fail(error)
            self._kept.clear()

    def _fail(self, error: Error) -> None:
        self._recover()
        if not isinstance(error, (Retry, OutOfRange, Shutdown, TimedOut)):  # of range: those before went with a daemon
            raise error
        self.channel.lost = True

    def _recover(self) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._ingest.recover()
                break
            except (TimedOut, Retry):
                if not left:
                    raise
        self._kept.clear()

    def discard(self) -> None:
        """Waits for all of it; what went wrong does not matter any more."""
        if self._kept:
            try:
                self._ingest.finish()
            except Error:
                self._recover()
            self._kept.clear()

    def close(self) -> None:
        if self._ingest is not None:
            self._ingest.close()
            self._ingest = None
        self._kept.clear()
