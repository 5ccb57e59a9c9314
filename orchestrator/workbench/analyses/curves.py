"""Laws of curves, fitted to a source and asked for the losses of schedules that nobody ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.curves import laws, read
from analysis.curves.curve import schedule as schedule_of
from analysis.curves.fit import CurveFit
from analysis.curves.fit import fit as fit_law
from analysis.curves.read import Group
from analysis.data.runs import Kind
from analysis.findings import RefusalError
from analysis.laws import objectives
from analysis.source import Source
from orchestrator.errors import InputError
from orchestrator.workbench.analyses.laws import open_source, refusals_in_a_line
from xlstm.quantities import nearest
from xlstm.run.json_files import DamagedFileError, read_json
from xlstm.run.records import write_json

_SAVED = "curves.json"
"""The file beside saved fits that holds laws of curves."""
SCHEDULES = ("constant", "cosine", "wsd")
_SHARES = np.linspace(0.02, 1.0, 50)
"""Parts of a run, among which that of the best decay is looked for."""


@dataclass(frozen=True)
class Wishes:
    """A question about curves as it is typed."""

    form: str = "multi-power"
    delta: float | None = None
    fit_runs: Sequence[str] = ()
    """The runs that are fitted; all where none are named."""
    warmup_steps: float | None = None
    decimal_comma: bool = False


@refusals_in_a_line()
def fit(typed: str, columns: Mapping[str, str], wishes: Wishes) -> tuple[list[dict[str, Any]], list[Path]]:
    """A document for each group of runs that one law can describe, and what was written: the laws and a figure."""
    from analysis.report import curve_plots, plots

    law, objective = laws.find(wishes.form), objectives.find("huber", wishes.delta)
    source = open_source((typed,), {})
    groups = _groups(source, columns, wishes)
    found, refusals = [], []
    for group in groups:
        try:
            chosen = [curve for curve in group.curves if not wishes.fit_runs or curve.run in wishes.fit_runs]
            found.append((group, fit_law(chosen, law, objective)))
        except RefusalError as refusal:
            refusals.append(f"{group.name}: {refusal}")
    if not found:
        raise InputError(f"{typed}: {'; '.join(refusals)}")
    source.folder.mkdir(parents=True, exist_ok=True)
    saved = [fitted.saved() | _usual(group) for group, fitted in found]
    write_json(source.folder / _SAVED, {"groups": saved})
    with plots.style():
        figure = curve_plots.curves_figure(found)
        written = plots.save(figure, source.folder / "curves", ("png",))
    documents = [{"group": group.name} | fitted.to_json(group.after_warmup) for group, fitted in found]
    documents[0]["refused"] = refusals
    return documents, [source.folder / _SAVED, *written]


@refusals_in_a_line()
def predict(
    typed: str,
    schedule: str,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    decay_share: float | None = None,
    peak: float | None = None,
    final: float | None = None,
) -> list[dict[str, Any]]:
    """The loss at the end of a run under a schedule, a document for each group of the last fit.

    The warm-up is that of the group's runs. Left out, so is the peak rate, the final rate is a tenth of the peak, and
    the share of the run in which wsd decays is the one that gives the least loss.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"--schedule {schedule}: {nearest(schedule, SCHEDULES)}")
    if (steps is None) == (tokens is None):
        raise InputError("--schedule: say how long the run is, by --steps or by --tokens")
    source = open_source((typed,), {})
    path = source.folder / _SAVED
    remedy = f"fit again: scaling fit {typed} --curves"
    stored = read_json(path, remedy)
    if not stored:
        raise InputError(f"{typed}: no law of curves was fitted; scaling fit {typed} --curves")
    documents = []
    for group in stored["groups"]:
        try:
            fitted, name = CurveFit.of_saved(group), group["group"]
            usual = {key: group[key] for key in ("peak", "warmup_steps", "longest", "tokens_per_step")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFileError(path, f"is no law of curves ({error!r})", remedy) from None
        if steps is None and usual["tokens_per_step"] is None:
            raise InputError(f"{typed}: says nothing of tokens; give --steps")
        length = steps if steps is not None else (tokens or 0) // usual["tokens_per_step"]
        top = usual["peak"] if peak is None else peak
        low = top if schedule == "constant" else 0.1 * top if final is None else final
        warm = usual["warmup_steps"]
        if length <= warm:
            raise InputError(f"{name}: a run of {length:,} steps is no longer than its warm-up of {warm:g}")
        longest = (length - warm) / length
        shares = _SHARES[longest >= _SHARES] if decay_share is None else [min(decay_share, longest)]
        ends = {
            float(share): fitted.predict(
                schedule_of(schedule, length, peak=top, final=low, warmup_steps=warm, decay_share=float(share))
            )
            for share in (shares if schedule == "wsd" else shares[:1])
        }
        best = min(ends, key=lambda share: float(ends[share][0][-1]))
        loss, least, most = (float(bound[-1]) for bound in ends[best])
        beyond = length / usual["longest"]
        documents.append(
            {"group": name, "form": fitted.law.name, "schedule": schedule, "steps": length, "loss": loss}
            | {"new_run_interval": [least, most], "peak_rate": top, "final_rate": low, "warmup_steps": warm}
            | {"decay_share": best if schedule == "wsd" else None}
            | {"beyond": f"{beyond:.3g} times the longest run that was fitted" if beyond > 1.001 else ""}
        )
    return documents


def _groups(source: Source, columns: Mapping[str, str], wishes: Wishes) -> list[Group]:
    if source.kind is Kind.TABLE:
        path = Path(source.name)
        groups = read.from_table(path, columns, warmup_steps=wishes.warmup_steps, decimal_comma=wishes.decimal_comma)
    elif source.kind is Kind.SWEEP:
        groups = read.from_runs(source.workspace, source.frame)
    else:
        raise InputError(f"{source.name}: curves are read from a submitted sweep or a table")
    known = [curve.run for group in groups for curve in group.curves]
    if unknown := [run for run in wishes.fit_runs if run not in known]:
        raise InputError(f"--fit-runs {unknown[0]}: {nearest(unknown[0], known)}")
    return groups


def _usual(group: Group) -> dict[str, Any]:
    """What a schedule that nobody ran takes from the group's runs where it is not said."""
    return {
        "group": group.name,
        "peak": max(float(curve.rates.max()) for curve in group.curves),
        "warmup_steps": max(curve.warmup_steps for curve in group.curves),
        "longest": max(float(curve.steps[-1]) for curve in group.curves),
        "tokens_per_step": group.tokens_per_step,
    }
