"""Published numbers, each with its source, to draw one's own curves over.

Losses compare only under the same corpus, tokenizer and evaluation: `setting` says which those were. Perplexities are
as printed; losses are their logarithms, in nats per token. FLOPs were not printed: 6ND with the printed N stands in.
"""

import math
from dataclasses import dataclass

import polars as pl

from analysis.findings import RefusalError
from analysis.laws.additive import AdditiveLaw

_XLSTM = "Beck et al. 2024, arXiv 2405.04517v2"
_SLIMPAJAMA = "SlimPajama, GPT-2 tokens, context 2048"


@dataclass(frozen=True)
class Published:
    """One trained model of a paper's table."""

    family: str
    size: str
    parameters: float
    tokens: float
    perplexity: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return math.log(self.perplexity)


@dataclass(frozen=True)
class Table:
    """A table of a paper: what was trained, on what, where it is printed."""

    name: str
    source: str
    setting: str
    rows: tuple[Published, ...]

    def frame(self) -> pl.DataFrame:
        """Columns family, size, parameters, tokens, flops (6ND), loss and perplexity."""
        columns = ("family", "size", "parameters", "tokens", "perplexity", "loss")
        rows = [{name: getattr(row, name) for name in columns} for row in self.rows]
        return pl.DataFrame(rows).with_columns(flops=6 * pl.col("parameters") * pl.col("tokens"))


@dataclass(frozen=True)
class PublishedLaw:
    """The parameters of L = E + A/N^alpha + B/D^beta as a source gives them."""

    name: str
    source: str
    setting: str
    law: AdditiveLaw


# One epoch of 28,170 steps of 256 sequences of 2048 tokens; the paper rounds to 15B. 600,000 such steps are "300B".
_15B, _300B = 28_170 * 256 * 2048, 600_000 * 256 * 2048

_TABLE_1 = (
    ("GPT-3", 356, 14.26),
    ("llama", 407, 14.25),
    ("H3", 420, 18.23),
    ("mamba", 423, 13.70),
    ("Hyena", 435, 17.59),
    ("rwkv4", 430, 15.62),
    ("rwkv5", 456, 14.25),
    ("rwkv6", 442, 15.03),
    ("retnet", 431, 16.23),
    ("hgrn", 411, 17.59),
    ("gla", 412, 16.15),
    ("hgrn2", 411, 14.32),
    ("xlstm[1:0]", 409, 13.43),
    ("xlstm[7:1]", 408, 13.48),
)
_TABLE_3 = {
    "rwkv4": ((169.4, 16.66), (430.5, 12.62), (891.0, 10.55), (1515.2, 9.83)),
    "llama": ((162.2, 15.89), (406.6, 12.19), (834.1, 10.60), (1420.4, 9.44)),
    "mamba": ((167.8, 15.08), (423.1, 11.64), (870.5, 10.24), (1475.3, 9.14)),
    "xlstm[1:0]": ((163.8, 14.63), (409.3, 11.31), (840.4, 9.86), (1422.6, 8.89)),
    "xlstm[7:1]": ((163.7, 14.60), (408.4, 11.37), (839.7, 9.91), (1420.1, 9.00)),
}
_SIZES = ("125M", "350M", "760M", "1.3B")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "xlstm-table-1",
            f"{_XLSTM}, Table 1",
            f"{_SLIMPAJAMA}, one epoch (15B tokens)",
            tuple(Published(family, "350M", n * 1e6, _15B, perplexity) for family, n, perplexity in _TABLE_1),
        ),
        Table(
            "xlstm-table-3",
            f"{_XLSTM}, Table 3; the best of three precisions of evaluation",
            f"{_SLIMPAJAMA}, 300B tokens",
            tuple(
                Published(family, size, n * 1e6, _300B, perplexity)
                for family, rows in _TABLE_3.items()
                for size, (n, perplexity) in zip(_SIZES, rows, strict=True)
            ),
        ),
    )
}
_MASSIVETEXT = "MassiveText, its own tokenizer"
LAWS: dict[str, PublishedLaw] = {
    law.name: law
    for law in (
        PublishedLaw(
            "chinchilla",
            "Hoffmann et al. 2022, arXiv 2203.15556, equation 10, with the digits of its TeX source",
            _MASSIVETEXT,
            AdditiveLaw(
                E=math.exp(0.5267228), A=math.exp(6.0073404), B=math.exp(6.0179186), alpha=0.33917084, beta=0.2849083
            ),
        ),
        PublishedLaw(
            "chinchilla-rounded",
            "Hoffmann et al. 2022, arXiv 2203.15556, equation 10, as printed",
            _MASSIVETEXT,
            AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        ),
        PublishedLaw(
            "chinchilla-replicated",
            "Besiroglu et al. 2024, arXiv 2404.10102",
            _MASSIVETEXT,
            AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
        ),
    )
}


def find(name: str) -> Table | PublishedLaw:
    """A table or law by name. RefusalError lists the names there are."""
    known: dict[str, Table | PublishedLaw] = {**TABLES, **LAWS}
    if name not in known:
        raise RefusalError("no-such-reference", f"no reference {name!r}; there are: {', '.join(known)}")
    return known[name]
