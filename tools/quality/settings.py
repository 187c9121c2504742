"""What is compared: proposals with their parameters, and the indexes they need.

Proposals the package knows and this file does not are run at a few budgets with whatever index a context has, so that a new one
appears in the report by itself; one the daemon refuses is listed with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

from magicpig.records import PROPOSALS

REFERENCE = "paper (10,150)"  # what the targets compare with
DEFAULT = "signature b=2 1 %"
MATCHED = "signature b=2, rows of paper"
ADAPTIVE = "signature b=2 adaptive"
BUDGETS = (0.005, 0.01, 0.02, 0.04)


@dataclass(frozen=True)
class Setting:
    name: str
    proposal: str                  # a proposal of the package, or "window": no rows of the daemon at all
    budget: float = 0.0
    error_target: float = 0.0
    bits: int = 0                  # signature it needs
    paper: tuple[int, int] = (0, 0)
    match: str = ""                # budget = share of rows which that setting kept on this document
    dense_layers: bool = False     # layers 0 and n/2 attend densely, as the paper's authors run it
    row_dtype: str = "f16"
    redraw: bool = True            # differs from seed to seed
    oracle: bool = False           # looks at every key: a bound, not a competitor
    whole_model: bool = True       # also run the model on it; the exact top-k orders all rows of all heads, which takes minutes

    @property
    def family(self) -> str:
        """Settings of one family are points of one curve."""
        if self.proposal == "paper" and not self.dense_layers:
            return "paper"
        if self.match:
            return self.label
        return self.name.rsplit(" ", 2)[0] if self.name.endswith(" %") else self.name

    @property
    def label(self) -> str:
        return self.proposal if self.proposal != "signature" else f"signature b={self.bits}"


def _signature(bits: int, budgets: tuple[float, ...]) -> list[Setting]:
    return [Setting(f"signature b={bits} {percent(b)}", "signature", budget=b, bits=bits) for b in budgets]


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def _fixed(proposal: str, **options) -> list[Setting]:
    return [Setting(f"{proposal} {percent(b)}", proposal, budget=b, **options) for b in BUDGETS]


def _tables(*shapes: tuple[int, int]) -> list[Setting]:
    return [Setting(f"paper ({k},{l})", "paper", paper=(k, l)) for k, l in shapes]


def unknown() -> list[Setting]:
    known = {"default", "dense", "signature", "paper", "topk", "uniform", "topk_estimated", "heavy_uniform", "heavy_uniform_estimated", "window"}
    return [setting for name in PROPOSALS if name not in known for setting in _fixed(name, bits=2)]


def quick() -> list[Setting]:
    return [
        Setting("dense", "dense", redraw=False),
        Setting("dense, int8 rows", "dense", redraw=False, row_dtype="i8"),
        Setting("window", "window", redraw=False),
        *_tables((10, 150), (8, 75)),
        Setting(MATCHED, "signature", bits=2, match=REFERENCE),
        *_signature(2, BUDGETS),
        Setting(ADAPTIVE, "signature", bits=2, error_target=0.02),
        *_signature(1, (0.01, 0.04)),
        *_signature(4, (0.01, 0.04)),
        *(replace(s, whole_model=s.budget == 0.02) for s in _fixed("topk", redraw=False, oracle=True)),
        *_fixed("uniform"),
        *unknown(),
    ]


def full() -> list[Setting]:
    more = _tables((9, 120), (10, 220), (11, 300))
    authors = Setting("paper (10,150), layers 0 and n/2 dense", "paper", paper=(10, 150), dense_layers=True)
    return [*quick(), *more, authors]


def indexes(settings: list[Setting]) -> list[tuple[int, tuple[int, int], str]]:
    """The contexts a document needs: (signature bits, (K, L), row dtype), as few as will do. A setting runs in the first that fits."""
    found: list[tuple[int, tuple[int, int], str]] = []
    for dtype in sorted({s.row_dtype for s in settings}):
        own = [s for s in settings if s.row_dtype == dtype and s.proposal != "window"]
        bits = sorted({s.bits for s in own if s.bits}, key=lambda b: (b != 2, b)) or [0]
        papers = sorted({s.paper for s in own if s.paper != (0, 0)}, key=lambda p: (p != (10, 150), p)) or [(0, 0)]
        for i in range(max(len(bits), len(papers))):
            found.append((bits[i] if i < len(bits) else 0, papers[i] if i < len(papers) else (0, 0), dtype))
    return found


def fits(setting: Setting, index: tuple[int, tuple[int, int], str]) -> bool:
    bits, paper, dtype = index
    return (
        setting.proposal != "window" and setting.row_dtype == dtype
        and setting.bits in (0, bits) and setting.paper in ((0, 0), paper)
    )
