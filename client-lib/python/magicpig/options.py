"""How a MagicPigCache attends, and what that cost."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

from .records import PROPOSALS


@dataclass
class Options:
    """How steps after the prompt attend.

    proposal: one of magicpig.records.PROPOSALS ("window": no rows of the daemon); "default" with neither budget nor error_target is what the
    context's profile says, else its layers' default. budget: share of rows.
    window: at least this many recent rows are exact. sinks: so are the first rows. sampled_layers: the others attend
    densely; None = all sampled. error_target: eps of an adaptive budget, which comes before a share; with neither the layer's
    default counts, and then the daemon's, which is adaptive.

    gpu: whether steps of one token are asked for and answered by the GPU itself; None: if the model is on one and libmagicpig-cuda is there,
    with a warning if not. gpu_timeout_ms: the longest wait of a kernel for the daemon (0: 2000), after which a step is run again."""

    proposal: str = "default"
    budget: float = 0.0
    window: int = 64
    sinks: int = 4
    seed: int = 0
    sampled_layers: Sequence[int] | None = None
    error_target: float = 0.0
    gpu: bool | None = None
    gpu_timeout_ms: int = 0

    @property
    def may_adapt(self) -> bool:
        """Whether the daemon may set the rows by error: then the mass of the exact part matters."""
        return self.error_target > 0 or self.budget == 0

    def check(self) -> Options:
        if self.proposal not in PROPOSALS:
            raise ValueError(f"proposal: {self.proposal!r} is not one of {', '.join(PROPOSALS)}")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget: {self.budget} is not within 0..1")
        if not 0 <= self.error_target <= 1:
            raise ValueError(f"error_target: {self.error_target} is not within 0..1")
        if self.window < 1 or self.sinks < 0:
            raise ValueError(f"window ({self.window}) must be at least 1 and sinks ({self.sinks}) at least 0")
        if not 0 <= self.gpu_timeout_ms <= 60_000:
            raise ValueError(f"gpu_timeout_ms: {self.gpu_timeout_ms} is not within 0..60000")
        return self


@dataclass
class Stats:
    """Sums since the last reset(); `steps` counts forward passes after the prompt, `tokens` their tokens. What the daemon reads for a GPU's
    own requests is not known here: they count in steps, tokens, head_tokens and exact_rows only."""

    steps: int = 0
    tokens: int = 0
    rows_attended: int = 0  # by the daemon, over layers, heads and query tokens
    rows_visible: int = 0   # rows it could have attended, counted the same way
    exact_rows: int = 0     # attended by the client, counted the same way
    head_tokens: int = 0    # (layer, head, query token) triples
    bytes_read: int = 0     # rows and index the daemon looked at
    service_ns: int = 0
    repeated: int = 0       # steps on a GPU that were run again, since the daemon went away or stood still

    @property
    def kept(self) -> float:
        return self.rows_attended / self.rows_visible if self.rows_visible else 0.0

    def reset(self) -> None:
        for f in fields(self):
            setattr(self, f.name, 0)
