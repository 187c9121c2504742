"""One-token steps of a model with a MagicPigCache as a CUDA graph: the host launches one thing a token."""

from __future__ import annotations

import contextlib
import inspect
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator

import torch

if TYPE_CHECKING:
    from .transformers import MagicPigCache

_WARM_UP = 2  # steps before the capture: libraries that the model uses make their workspaces then

_running: MagicPigCache | None = None  # whose step is being captured: a global, because compilers see through it
_thread = 0  # ... by this thread
_one_at_a_time = threading.RLock()


def running() -> MagicPigCache | None:
    """The cache whose graph this thread makes: its layers then do nothing but what belongs into the graph."""
    if _running is not None and (torch.compiler.is_compiling() or _thread == threading.get_ident()):
        return _running
    return None


@contextlib.contextmanager
def _run_for(cache: MagicPigCache) -> Iterator[None]:
    global _running, _thread
    with _one_at_a_time:
        _running, _thread = cache, threading.get_ident()
        try:
            yield
        finally:
            _running = None


class DecodeGraph:
    """Made by MagicPigCache.graph(). Captured at the first call, with that call's kernels; whatever the cache is used for between calls
    (generate, longer steps, crop) may happen, and a daemon's death is handled as in any other step. The graph ends with its cache."""

    def __init__(self, model: torch.nn.Module, cache: MagicPigCache, compiled: bool | dict[str, Any] = False):
        if cache.gpu is None:
            raise ValueError("graph: the cache's steps are not made by a GPU; make it with gpu=True to see why")
        if any(layer.is_sliding for layer in cache.layers):
            raise NotImplementedError("graph: layers with a sliding window make new tensors in each step")
        self.cache, self._forward = cache, model
        if compiled is not False:
            self._forward = torch.compile(model, fullgraph=True, **(compiled if isinstance(compiled, dict) else {}))
        device = cache.gpu.device
        self._ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, 1, dtype=torch.int64, device=device)
        named = inspect.signature(model.forward).parameters
        self._positions = {"position_ids": self._position}
        if "cache_position" in named:  # until transformers 5
            self._positions["cache_position"] = self._position[0]
        self._logits: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] after one more token, ids [1, 1]. The tensor is the graph's: the next call writes over it."""
        cache = self.cache
        if ids.numel() != 1:
            raise ValueError(f"ids: {tuple(ids.shape)}; a graph takes one token a step")
        cache.in_graph = True
        try:
            cache.begin_step(ids)
            if not cache.step_on_gpu:
                raise ValueError("graph: the context is empty or shorter than the sinks; run the model on its prompt first")
            self._ids.copy_(ids.reshape(1, 1))
            if self._replay is None:
                self._capture()
            while True:
                self._replay()
                for layer in cache.layers:
                    layer.length = cache.length + 1
                if cache.end_step():
                    return self._logits
        finally:
            cache.in_graph = False

    def _run(self) -> None:
        self.cache.gpu.advance()
        torch.sub(self.cache.gpu.rows, 1, out=self._position.view(1))
        with _run_for(self.cache):
            out = self._forward(input_ids=self._ids, past_key_values=self.cache, use_cache=True, **self._positions)
        self._logits = out.logits[:, -1]

    def _capture(self) -> None:
        cache, device = self.cache, self.cache.gpu.device
        if device.type != "cuda":  # nothing to capture on: each step runs anew
            self._replay = self._run
            return
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._run()
                cache.gpu.take_back_step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Left to itself torch would capture on a stream of the device that is current, where the kernels of this one are not.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self._run()
        cache.gpu.take_back_step()
        self._replay = graph.replay
