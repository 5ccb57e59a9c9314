"""Which rows may be fitted: rules that exclude a row with its reason, each of which can be switched off.

A frame's columns `state` and `quality` say what is known; `judge` turns them into `excluded`; no row is dropped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from analysis.data.columns import NO_FAMILY, NUMBERS, ROW_OF_A_NAME
from analysis.data.selection import SEARCHED
from analysis.findings import FitWarning, RefusalError

RULES = {
    "unfinished": "the run has not completed",
    "diverged": "the loss became infinite or not a number",
    "not-decayed": "the learning rate had not decayed at the end of training",
    "repeated-data": "the run saw tokens more than once",
    "damaged-checkpoint": "the run went on after a damaged checkpoint",
    "exploded": "the loss is far above that of a uniform guess",
    "loss-rose": "the loss is above an earlier one of the same run",
    "duplicate": "another row is the same run, or has the same numbers throughout",
}
"""Rules that `--keep` can switch off, and why each excludes. Numbers that cannot be a run's are always excluded."""
CODES = {
    "not-decayed": "learning-rate-not-decayed",
    "repeated-data": "repeated-data",
    "damaged-checkpoint": "damaged-checkpoint",
    "exploded": "loss-above-uniform",
    "loss-rose": "loss-rose",
}
"""The code of a run's result that a rule looks for."""
COMPARABLE = {
    "evaluation": "losses of different evaluations (data, context or tokens)",
    "data": "runs on different texts",
    "context_length": "losses at different context lengths",
    "precision": "runs of different precision",
    "tokenizer": "losses per token of different tokenizers",
    "schedule": "learning-rate schedules",
}
"""Columns in which the runs of one fit must agree, and what a difference mixes."""
NOISE, NOISE_OF_SEEDS = 0.01, 0.05
"""How far losses at one (N, D) may lie apart, relatively, before something else than chance is at work.

Runs that are repetitions by their seeds differ by a few per mille, the smallest ones by some per cent.
"""
SMALLEST_COUNT, UNLIKE_6ND = 1000, 1000
"""Fewer parameters or tokens than this, or FLOPs so many times another number than 6ND, are counts in another unit."""


@dataclass(frozen=True)
class Rules:
    """Which rules to switch off, and inside which ranges (low, high), both included, rows are wanted."""

    keep: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given, known in ((self.keep, tuple(RULES)), (self.ranges, NUMBERS)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise RefusalError("unknown-rule", f"no rule {unknown[0]!r}; there are: {', '.join(known)}")
        for name, (low, high) in self.ranges.items():
            if not low <= high:
                raise RefusalError("empty-range", f"{name} from {low:g} to {high:g} holds nothing")

    def to_json(self) -> dict[str, Any]:
        """What was applied, as `scaling fit --json` reports it."""
        return {
            "applied": [name for name in RULES if name not in self.keep],
            "switched_off": sorted(self.keep),
            "ranges": {
                name: [bound if math.isfinite(bound) else None for bound in bounds]
                for name, bounds in self.ranges.items()
            },
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Rules":
        """From what `to_json` gave."""
        ranges = {
            name: (-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in stored["ranges"].items()
        }
        return cls(frozenset(stored["switched_off"]), ranges)


def judge(frame: pl.DataFrame, rules: Rules = Rules()) -> pl.DataFrame:
    """The frame with `excluded`: null, or the first reason why the row is not to be fitted.

    A reason that stands already stays. Reasons begin with the rule's name.
    """
    reasons = [pl.col("excluded")]
    state = pl.col("state")
    for rule, hit, reason in (
        ("diverged", state.str.starts_with("DIVERGED"), pl.lit("diverged")),
        ("unfinished", ~state.str.starts_with("COMPLETED"), pl.format("unfinished ({})", state)),
    ):
        if rule not in rules.keep:
            reasons.append(pl.when(hit).then(reason))
    for rule, code in CODES.items():
        if rule not in rules.keep:
            found = pl.col("quality").str.extract(f"({code}[^,]*)")
            reasons.append(pl.when(found.is_not_null()).then(pl.format(f"{rule} ({{}})", found)))
    for name in ("parameters", "tokens", "loss"):
        column = pl.col(name)
        bad = column.is_null() | ~column.is_finite() | (column <= 0) | (column >= math.sqrt(1.7e308))
        reasons.append(pl.when(bad).then(pl.lit(f"{name} is not a positive finite number")))
    bad = ~pl.col("flops").is_finite() | (pl.col("flops") <= 0)
    reasons.append(pl.when(bad).then(pl.lit("flops is not a positive finite number")))
    for name, (low, high) in rules.ranges.items():
        column = pl.col(name)
        outside = column.is_null() | ~column.is_between(low, high)
        reasons.append(pl.when(outside).then(pl.lit(f"{name} outside {low:g} to {high:g}")))
    judged = frame.with_columns(pl.coalesce(reasons).alias("excluded"))
    return judged if "duplicate" in rules.keep else _without_duplicates(judged)


def refuse_mixed(family: str, rows: pl.DataFrame) -> None:
    """RefusalError where usable rows of one family do not compare; it says what is mixed, in which shares."""
    for name, what in COMPARABLE.items():
        if name in rows.columns and rows[name].n_unique() > 1:
            shares = rows.group_by(name, maintain_order=True).len()
            listed = ", ".join(f"{value or 'not stated'} ({count} runs)" for value, count in shares.iter_rows())
            raise RefusalError(
                "mixed-rows",
                f"{family}: {what} do not mix in one fit: {name} is {listed}; leave rows out, or allow mixed rows",
            )


def count_reasons(rows: pl.DataFrame) -> str:
    """How many rows there are and why some are left out, such as `12 rows: 7 unfinished (RUNNING), 5 …`.

    Empty where none is. Of reasons that differ in what stands in brackets, the first is shown.
    """
    left_out = rows["excluded"].drop_nulls().to_list()
    if not left_out:
        return ""
    kinds: dict[str, list[str]] = {}
    for reason in left_out:
        kinds.setdefault(reason.partition(" (")[0], []).append(reason)
    most = sorted(kinds.values(), key=lambda reasons: -len(reasons))
    listed = [f"{len(reasons)} left out because: {reasons[0]}" for reasons in most[:5]]
    more = [f"{sum(map(len, most[5:]))} for other reasons"] if len(most) > 5 else []
    return f"{rows.height} rows: {', '.join([*listed, *more])}"


def usable(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not excluded."""
    return frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame


def several_losses(rows: pl.DataFrame, family: str, inputs: Sequence[str] = ()) -> Iterator[FitWarning]:
    """A warning where usable rows of one (N, D) differ in loss by more than chance; the fit takes each as measured.

    Rows that differ in one of the form's other `inputs` are of different points.
    """
    known = dict.fromkeys(("parameters", "tokens", "unique_tokens", *inputs))
    points = [name for name in known if name in rows.columns and name != "flops"]
    seeded = rows if "seed" in rows.columns else rows.with_columns(seed=pl.lit(None, pl.Int64))
    of_seeds = seeded.filter(pl.col("seed").is_not_null()).group_by(points)
    spread = pl.col("loss").max() / pl.col("loss").min() - 1
    apart = pl.concat(
        alike.agg(spread=spread).filter(pl.col("spread") > most).select(*points, "spread")
        for alike, most in ((seeded.group_by([*points, "seed"]), NOISE), (of_seeds, NOISE_OF_SEEDS))
    )
    if apart.height:
        count, of = apart.select(points).n_unique(), rows.select(points).n_unique()
        several = " and rows of several families by --columns family=…" if family == NO_FAMILY else ""
        yield FitWarning(
            "several-losses",
            f"at {count} of {of} points (N, D) several rows differ in loss, by up to "
            f"{100 * float(apart['spread'].max()):.2g} %: if an axis such as the learning rate was searched, "
            f"name it with --best-of{several}",
        )


def other_units(rows: pl.DataFrame) -> Iterator[FitWarning]:
    """A warning where numbers of usable rows are too small for counts, or FLOPs far from 6ND: their unit is another."""
    ratio = (rows["flops"] / (6 * rows["parameters"] * rows["tokens"])).log().abs()
    strange = {name: rows.filter(rows[name] < SMALLEST_COUNT)[name] for name in ("parameters", "tokens")} | {
        "flops": rows.filter(ratio > math.log(UNLIKE_6ND))["flops"]
    }
    listed = ", ".join(f"{name} is {found[0]:g} in {len(found)} rows" for name, found in strange.items() if len(found))
    if listed:
        units = "counts are single parameters, tokens and FLOPs; write 12M or 12e6 for twelve millions"
        yield FitWarning("other-units", f"{listed}: {units}")


def along_runs(rows: pl.DataFrame) -> Iterator[FitWarning]:
    """A warning where rows of a table share a name and N at several D: they may be losses along one run.

    Those before the end of a schedule lie above the law of runs that end there (Hoffmann et al. 2022, section 3).
    """
    if "run_id" not in rows.columns:
        return
    named = rows.with_columns(name=pl.col("run_id").str.extract(ROW_OF_A_NAME)).filter(pl.col("name").is_not_null())
    times = named.group_by("name", "parameters").agg(budgets=pl.col("tokens").n_unique()).filter(pl.col("budgets") > 1)
    if times.height:
        yield FitWarning(
            "several-budgets-of-one-run",
            f"{times.height} names stand at {int(times['budgets'].sum())} budgets, such as "
            f"{times.sort('name')['name'][0]}: if these are losses along one run, those before its end are not of a "
            "finished schedule, and lie above the law; keep the last of each",
        )


def several_machines(frame: pl.DataFrame) -> Iterator[FitWarning]:
    """A warning where usable rows were computed on different devices or by different kernels, as far as they tell."""
    if "computed_on" not in frame.columns:
        return
    told = usable(frame).filter(pl.col("computed_on").is_not_null())
    shares = told.group_by("computed_on", maintain_order=True).len()
    if shares.height > 1:
        listed = "; ".join(f"{place} ({count} runs)" for place, count in shares.iter_rows())
        what = "so that rounding alone sets their losses apart; `scaling noise RUN` measures by how much"
        yield FitWarning("several-machines", f"runs were computed on {listed}, {what}")


def not_comparable(frame: pl.DataFrame) -> str | None:
    """In what the usable rows of several families differ, so that the families' losses do not compare; None if not."""
    usable = frame.filter(pl.col("excluded").is_null())
    for name in ("evaluation", "data", "context_length", "tokenizer"):
        if usable[name].n_unique() > 1:
            values = usable.group_by("family", maintain_order=True).agg(pl.col(name).unique())
            listed = "; ".join(f"{family}: {', '.join(map(str, each))}" for family, each in values.iter_rows())
            return f"{COMPARABLE[name]}: {name} is {listed}"
    return None


def _without_duplicates(frame: pl.DataFrame) -> pl.DataFrame:
    """Exclude all but the first usable one of rows with one run_id, or with the same numbers and description."""
    indexed = frame.with_row_index("_row")
    usable = indexed.filter(pl.col("excluded").is_null())
    searched = [name for name in frame.columns if name.startswith(SEARCHED)]
    copies = [
        usable.filter(pl.col("run_id").is_not_null() & ~pl.struct(keys).is_first_distinct()).select("_row")
        for keys in (["run_id"], ["family", "seed", "evaluation", *NUMBERS, *searched])
    ]
    copied = pl.concat(copies)["_row"].unique().implode()
    reason = pl.when(pl.col("_row").is_in(copied)).then(pl.lit("duplicate"))
    return indexed.with_columns(pl.coalesce("excluded", reason).alias("excluded")).drop("_row")
