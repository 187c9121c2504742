"""What is compared: proposals with their parameters, and the indexes they need.

Proposals the package knows and this file does not are run at a few budgets with whatever index a context has, so that a new one
appears in the report by itself; one the daemon refuses is listed with its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from magicpig.records import PROPOSALS, Layer

REFERENCE = "paper (10,150)"  # what the targets compare with
DEFAULT = "signature b=2 1 %"
MATCHED = "signature b=2, rows of paper"
ADAPTIVE = "signature b=2 adaptive"
BUDGETS = (0.005, 0.01, 0.02, 0.04)


@dataclass(frozen=True)
class Index:
    """What a context is made with: a signature of so many bits, one set of tables, rows of a type."""

    bits: int = 0
    tables: tuple[int, int] = (0, 0)
    dtype: str = "f16"
    table_hash: str = "simhash"
    balanced: bool = False   # the tables hash balanced keys
    foreign: bool = False    # balance fitted to another document's queries

    def __str__(self) -> str:
        tables = "x".join(map(str, self.tables)) + ("" if self.table_hash == "simhash" else self.table_hash) + "balanced" * self.balanced
        return f"b{self.bits}-{tables}-{self.dtype}{'-foreign' * self.foreign}"

    @property
    def _tables(self) -> tuple:
        return self.tables, self.table_hash, self.balanced


@dataclass(frozen=True)
class Setting:
    name: str
    proposal: str                  # of the package
    budget: float = 0.0
    error_target: float = 0.0
    bits: int = 0                  # signature it needs
    paper: tuple[int, int] = (0, 0)
    match: str = ""                # budget = share of rows which that setting kept on this document
    dense_layers: bool = False     # layers 0 and n/2 attend densely, as the paper's authors run it
    row_dtype: str = "f16"
    redraw: bool = True            # differs from seed to seed
    oracle: bool = False           # looks at every key: a bound, not a competitor
    whole_model: bool = True       # also run the model on it; what scores every key of every head takes minutes
    table_hash: str = "simhash"
    balanced: bool = False
    foreign: bool = False

    @property
    def core(self) -> bool:
        """A target's ratio over seeds is made of it: runs for every seed, however few the others get."""
        return self.name in (REFERENCE, MATCHED, DEFAULT, ADAPTIVE, "signature b=2 2 %", "window")

    @property
    def family(self) -> str:
        """Settings of one family are points of one curve."""
        if self.paper != (0, 0) and not self.dense_layers:
            return self.label
        if self.match:
            return self.label
        return self.name.rsplit(" ", 2)[0] if self.name.endswith(" %") else self.name

    @property
    def label(self) -> str:
        if self.proposal == "signature":
            return f"signature b={self.bits}"
        return self.proposal + (" + balance" if self.balanced else "")


def _signature(bits: int, budgets: tuple[float, ...]) -> list[Setting]:
    return [Setting(f"signature b={bits} {percent(b)}", "signature", budget=b, bits=bits) for b in budgets]


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def _fixed(proposal: str, **options) -> list[Setting]:
    return [Setting(f"{proposal} {percent(b)}", proposal, budget=b, **options) for b in BUDGETS]


def _oracle(proposal: str, **options) -> list[Setting]:
    return [replace(s, whole_model=s.budget == 0.02) for s in _fixed(proposal, oracle=True, **options)]


def _tables(*shapes: tuple[int, int]) -> list[Setting]:
    return [Setting(f"paper ({k},{l})", "paper", paper=(k, l)) for k, l in shapes]


def _balanced(*shapes: tuple[int, int]) -> list[Setting]:
    return [Setting(f"paper + balance ({k},{l})", "paper", paper=(k, l), balanced=True) for k, l in shapes]


def _crosspolytope(*tables: int) -> list[Setting]:
    return [Setting(f"crosspolytope ({l})", "crosspolytope", paper=(0, l), table_hash="crosspolytope") for l in tables]


def _foreign() -> list[Setting]:
    name = "signature b=2, another document's balance"
    return [Setting(f"{name} {percent(b)}", "signature", budget=b, bits=2, foreign=True) for b in (0.01, 0.02)]


def unknown() -> list[Setting]:
    known = {
        "default", "dense", "signature", "paper", "crosspolytope", "topk", "uniform", "topk_estimated", "heavy_uniform", "heavy_uniform_estimated",
        "window",
    }
    return [setting for name in PROPOSALS if name not in known for setting in _fixed(name, bits=2)]


def _of_this_package(settings: list[Setting]) -> list[Setting]:
    """Those that the package can ask for."""
    layer = {field.name for field in fields(Layer)}
    return [
        s for s in settings
        if s.proposal in PROPOSALS and (s.table_hash == "simhash" or "table_hash" in layer) and (not s.balanced or "table_balance" in layer)
    ]


def quick() -> list[Setting]:
    return _of_this_package([
        Setting("dense", "dense", redraw=False),
        Setting("dense, int8 rows", "dense", redraw=False, row_dtype="i8"),
        Setting("window", "window", redraw=False),
        *_tables((10, 150), (8, 75)),
        *_balanced((10, 150)),
        *_crosspolytope(28),
        Setting(MATCHED, "signature", bits=2, match=REFERENCE),
        *_signature(2, BUDGETS),
        Setting(ADAPTIVE, "signature", bits=2, error_target=0.055),
        *_signature(1, (0.01, 0.04)),
        *_signature(4, (0.01, 0.04)),
        *_fixed("topk_estimated", bits=2),
        *_fixed("heavy_uniform_estimated", bits=2),
        *_oracle("topk", redraw=False),
        *_oracle("heavy_uniform"),
        *_fixed("uniform"),
        *unknown(),
    ])


def full() -> list[Setting]:
    more = [*_tables((9, 120), (10, 220), (11, 300)), *_balanced((8, 75)), *_crosspolytope(46, 75), *_foreign()]
    authors = Setting("paper (10,150), layers 0 and n/2 dense", "paper", paper=(10, 150), dense_layers=True)
    return [*quick(), *_of_this_package([*more, authors])]


def indexes(settings: list[Setting]) -> list[Index]:
    """The contexts a document needs, as few as will do. A setting runs in the first that fits."""
    found: list[Index] = []
    for dtype, foreign in sorted({(s.row_dtype, s.foreign) for s in settings if s.proposal != "window"}):
        own = [s for s in settings if (s.row_dtype, s.foreign) == (dtype, foreign) and s.proposal != "window"]
        bits = sorted({s.bits for s in own if s.bits}, key=lambda b: (b != 2, b)) or [0]
        tables = {(s.paper, s.table_hash, s.balanced) for s in own if s.paper != (0, 0)}
        plain = ((0, 0), "simhash", False)
        ordered = sorted(tables, key=lambda t: (t != ((10, 150), "simhash", False), t)) or [plain]
        for i in range(max(len(bits), len(ordered))):
            shape, hashed, balanced = ordered[i] if i < len(ordered) else plain
            found.append(Index(bits[i] if i < len(bits) else 0, shape, dtype, hashed, balanced, foreign))
    return found


def parts(settings: list[Setting], seed: int, others: bool) -> dict[str, list[Setting]]:
    """What is to be run for a seed, in parts that can be run apart: what targets are made of first, then (others) the rest, context by context."""
    wanted = [s for s in settings if seed == 1 or s.redraw]
    found = {"core": [s for s in wanted if s.core]}
    rest = [s for s in wanted if not s.core] if others else []
    for index in indexes(rest):
        here = [s for s in rest if fits(s, index)]
        rest = [s for s in rest if s not in here]
        if here:
            found[str(index)] = here
    found["core"] += rest  # no context has what they need: refused there
    return found


def fits(setting: Setting, index: Index) -> bool:
    wants = setting.paper, setting.table_hash, setting.balanced
    return (
        setting.proposal != "window" and (setting.row_dtype, setting.foreign) == (index.dtype, index.foreign)
        and setting.bits in (0, index.bits) and (setting.paper == (0, 0) or wants == index._tables)
    )
