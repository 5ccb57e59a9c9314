"""Tables of plans and standings for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from orchestrator.display.columns import Cell, Columns
from orchestrator.display.progress import STYLES, USUAL, state_word
from orchestrator.standing.decisions import sentence
from orchestrator.standing.ledger import Ledger
from orchestrator.standing.status import RunStanding
from xlstm.quantities import compact, duration
from xlstm.run.records import Measured, State
from xlstm.run.sweep_directory import Decision

_LEFT = frozenset({"run", "state", "starts from", "reason"})
"""Columns of words; the others hold numbers."""
WATCHED = 6
"""Decisions of an adaptive sweep that are shown while it is watched: the last ones."""


def swept(planned: Sequence[Mapping[str, Any]]) -> list[str]:
    """What people chose and the ids of the runs do not tell: sizes by own names, and further axes that vary."""
    points = [row.get("point", {}) for row in planned]
    own = any(f"-{row['size']}-" not in row["run_id"] for row in planned)
    axes = dict.fromkeys(name for point in points for name in point if name not in USUAL)
    varying = [name for name in axes if len({repr(point.get(name)) for point in points}) > 1]
    return [*(["size"] if own else []), *varying]


def _choice(planned: Mapping[str, Any], name: str) -> str:
    value = planned["size"] if name == "size" else planned.get("point", {}).get(name, "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_table(document: Mapping[str, Any], width: int | None = None) -> Group:
    """What each run of a plan is, costs and shares, within so many characters."""
    priced = ("cost",) if "cost" in document["totals"] else ()
    numbers = ("parameters", "FLOPs", "tokens", "steps", "devices", "GiB/device", "disk GiB", "device time", *priced)
    chosen = swept(document["runs"])
    names = ("run", *chosen, *numbers, "state", "starts from")
    costs = ("disk GiB", "FLOPs", "devices", "steps", "GiB/device", "parameters")
    table = Columns(names, _LEFT, dispensable=(*costs, "starts from", "tokens", "state", "device time"))
    for run in document["runs"]:
        fork, state = run["forks_from"], State(run["state"])
        table.rows.append(
            [
                run["run_id"],
                *(_choice(run, name) for name in chosen),
                compact(run["parameters"]["total"]),
                f"{run['flops']['exact']:.2e}",
                compact(run["tokens"]),
                f"{run['steps']:,}" + (f" × {run['accumulation']}" if run["accumulation"] > 1 else ""),
                str(run["ranks"]) if run["nodes"] == 1 else f"{run['nodes']} × {run['ranks'] // run['nodes']}",
                _memory(run),
                f"{run['disk_gib']:.2f}",
                duration(run["device_hours"] * 3600),
                *(f"{run[name]:,.2f}" for name in priced),
                (state.value.lower(), STYLES[state]),
                (f"step {fork['step']} of {fork['run_id']}" if fork else "", "dim"),
            ]
        )
    return table.draw(width)


def decisions_lines(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """What an adaptive sweep decided, a line each."""
    return [Text(sentence(row), style="dim" if row["decision"] == Decision.BOUGHT else "") for row in rows]


def _memory(run: Mapping[str, Any]) -> Cell:
    text = f"{run['memory_gib_per_device']:.2f}"
    if run["fits"] is None:
        return text
    return f"{text} of {run['usable_gib_per_device']:.0f}", "" if run["fits"] else "bold red"


def plan_summary(document: Mapping[str, Any]) -> str:
    """The plan in a sentence: what is done, what is to do, what sharing saves."""
    totals = document["totals"]
    if document.get("pool"):
        missing = totals["runs"] - totals["complete"]
        return f"a pool of {totals['runs']} runs, {totals['complete']} complete; of {missing} its design buys some"
    pruned = sum(run["state"] == State.PRUNED for run in document["runs"])
    others = totals["settled"] - pruned
    settled = f"; {others} diverged or were set aside: `scaling retry`" if others else ""
    settled += f"; {pruned} pruned" if pruned else ""
    missing = totals["runs"] - totals["complete"] - totals["settled"]
    if not missing:
        complete = f"{totals['complete']} complete" if settled else "all complete"
        return f"{totals['runs']} runs, {complete}: nothing to train{settled}"
    to_train = [run for run in document["runs"] if run["state"] != State.COMPLETED and not run["settled"]]
    basis = sorted({run["device_hours_basis"] for run in to_train})
    cards = sorted({run["gpu"] for run in to_train if run["gpu"]})
    hours = {on: sum(run["device_hours"] for run in to_train if bool(run["gpu"]) is on) for on in (True, False)}
    times = [f"{duration(hours[True] * 3600)} of device time on {' and '.join(cards)}"] if cards else []
    if hours[False] or not cards:
        times.append(f"{duration(hours[False] * 3600)} of {'CPU' if cards else 'device'} time")
    text = (
        f"{totals['runs']} runs, {totals['complete']} complete; to train: {missing} runs, {compact(totals['tokens'])} "
        f"tokens, {totals['flops']:.2e} FLOPs, {' and '.join(times)} at {' and '.join(basis)} speed"
    )
    if "cost" in totals:
        text += f", cost {totals['cost']:,.2f}"
    if totals["independent_flops"] > totals["flops"]:
        text += f"; shared stable phases save {1 - totals['flops'] / totals['independent_flops']:.0%}"
    return text + settled


def runs_table(runs: Sequence[RunStanding], width: int | None = None, chosen: Sequence[str] | None = None) -> Group:
    """The table of a sweep's runs, as status and the end of a submission show it, within so many characters.

    `chosen` is what `swept` gives, where it is known already.
    """
    chosen = swept([run.planned for run in runs]) if chosen is None else chosen
    numbers = ("parameters", "tokens", "loss", "perplexity", "bits/byte", "attempts")
    gone = ("attempts", "bits/byte", "parameters", "tokens", "loss")
    table = Columns(("run", *chosen, "state", *numbers, "reason"), _LEFT, dispensable=gone)
    for run in runs:
        validation = run.result.validation if run.result and run.state is State.COMPLETED else None
        loss = validation.loss if validation else run.loss
        table.rows.append(
            [
                run.run_id,
                *(_choice(run.planned, name) for name in chosen),
                (state_word(run.state, run.tokens), STYLES[run.state]),
                compact(run.planned["parameters"]["total"]),
                compact(run.tokens) if validation else f"{compact(run.tokens)}/{compact(run.planned['tokens'])}",
                f"{loss:.4f}" if loss is not None else "",
                f"{validation.perplexity:.3f}" if validation else "",
                f"{validation.bits_per_byte:.4f}" if validation and validation.bits_per_byte is not None else "",
                str(run.attempts),
                (run.reason, "dim"),
            ]
        )
    return table.draw(width)


def measured_table(measured: Sequence[Measured]) -> Table:
    """A row for each evaluation of each run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "evaluation", "kind"):
        table.add_column(column, no_wrap=True)
    names = list(dict.fromkeys(name for one in measured for name in one.measures))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for one in measured:
        cells = [f"{one.measures[name]:.4f}" if name in one.measures else "" for name in names]
        table.add_row(one.run_id, one.name, one.kind, *cells)
    return table


def ledger_line(ledger: Ledger) -> str:
    """What was spent, wasted and saved, in a sentence."""
    spent, wasted, saved = ledger.spent, ledger.wasted, ledger.saved
    text = f"spent {compact(spent.tokens)} tokens, {spent.flops:.2e} FLOPs, "
    text += f"{duration(spent.device_hours * 3600)} of device time"
    text += f"; wasted {compact(wasted.tokens)} tokens, {duration(wasted.device_hours * 3600)}"
    if saved.tokens:
        text += f"; saved by shared stable phases {compact(saved.tokens)} tokens"
    if ledger.pruned.tokens:
        text += f"; saved by pruned runs {compact(ledger.pruned.tokens)} tokens, {ledger.pruned.flops:.2e} FLOPs"
    return text


def _table(*columns: str | Column, title: str | None = None) -> Table:
    """A table whose columns are numbers, at the right, where they are not said to be another."""
    every = [Column(one, justify="right") if isinstance(one, str) else one for one in columns]
    return Table(*every, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")


def fit_table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """Fitted laws with their intervals, one column per family."""
    table = _table(Column(), *(Column(one["family"], justify="right", no_wrap=True) for one in documents))
    for name in documents[0]["parameters"]:
        table.add_row(name, *(_parameter(fit, name) for fit in documents))
    optimal = [fit["compute_optimal"] for fit in documents]
    if all(optimal):
        bound = [" (bound)" if set(fit["certificate"]["bounds_hit"]) & {"alpha", "beta"} else "" for fit in documents]
        estimates = (estimate(one["parameters_exponent"], one["interval"]) for one in optimal)
        table.add_row("a in N* ~ C^a", *(f"{estimate}{said}" for estimate, said in zip(estimates, bound, strict=True)))
    certificates = [fit["certificate"] for fit in documents]
    table.add_row("converged", *("yes" if one["converged"] else "no" for one in certificates))
    table.add_row("starts that agree", *(f"{one['agreeing_starts']:.0%}" for one in certificates))
    table.add_row("condition number", *(f"{one['condition_number']:.1e}" for one in certificates))
    table.add_row("bounds hit", *(", ".join(one["bounds_hit"]) or "none" for one in certificates))
    table.add_row("runs used", *(str(fit["rows"]["used"]) for fit in documents))
    table.add_row("runs left out", *(str(len(fit["rows"]["excluded"])) for fit in documents))
    return table


def forms_line(document: Mapping[str, Any]) -> str:
    """How the forms stand: AICc above the least, and the rollout to the dear runs."""
    least = min((one["aicc"] for one in document["forms"] if one["aicc"] is not None), default=0.0)
    said = []
    for one in document["forms"]:
        words = [f"{one['form']}{' (chosen)' if one['chosen'] else ''}"]
        if one["aicc"] is not None:
            words.append(f"AICc +{one['aicc'] - least:.1f}")
        if one["rollout"] is not None:
            rolled = one["rollout"]
            words.append(f"rollout {rolled['error']:.2%}, {rolled['outside']} of {rolled['runs']} outside")
        said.append(" ".join(words))
    return f"{document['family']}: " + "; ".join(said)


def noise_line(document: Mapping[str, Any]) -> str:
    """What rounding alone does to the log losses that were fitted, beside Huber's delta."""
    noise = document["noise"]
    count = len(noise["runs"])
    said = f"rounding alone moves log losses by {noise['floor']:.2g} ({count} run{'s' if count > 1 else ''} repeated)"
    delta = "" if noise["delta"] is None else f", Huber's delta is {noise['delta']:g}"
    return f"{document['family']}: {said}{delta}"


def _parameter(fit: Mapping[str, Any], name: str) -> str:
    """A parameter and its interval; what lies on a bound is said to: that value is the bound's, not the data's."""
    value, (low, high) = fit["parameters"][name], fit["intervals"][name]
    bound = " (bound)" if name in fit["certificate"]["bounds_hit"] else ""
    return f"{value:.4g}{bound} [{low:.3g}, {high:.3g}]"


def estimate(value: float, interval: Sequence[float]) -> str:
    """A number and its interval."""
    return f"{value:.4g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def conventions_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """The exponent a by approach (rows) and by convention of N and C (columns), for each family."""
    columns = list(dict.fromkeys((one["parameters"], one["flops"]) for one in found))
    counted = (f"N {parameters.replace('_', ' ')}\nC {flops}" for parameters, flops in columns)
    table = _table(Column("family"), Column("approach"), *counted)
    answers = {(one["family"], one["approach"], one["parameters"], one["flops"]): one for one in found}
    for family, approach in dict.fromkeys((one["family"], one["approach"]) for one in found):
        cells = (_exponent(answers.get((family, approach, *column))) for column in columns)
        table.add_row(family, approach, *cells)
    return table


def _exponent(answer: Mapping[str, Any] | None) -> str:
    if answer is None or answer["exponent"] is None:
        return ""
    low, high = answer["interval"]
    return f"{answer['exponent']:.3f} [{low:.3f}, {high:.3f}]"


def design_table(document: Mapping[str, Any]) -> Table:
    """The next runs in their order, with what each costs and how well the prediction is known after it."""
    n, d = document["target"]
    title = f"{document['family']}: loss at N = {compact(round(n))}, D = {compact(round(d))}"
    table = _table("N", "D", document["unit"], "prediction known to", title=title)
    table.add_row("", "", "", f"± {document['half_width']:.2%}")
    for one in document["proposals"]:
        cells = (compact(round(one["parameters"])), compact(round(one["tokens"])), f"{one['cost']:.3g}")
        table.add_row(*cells, f"± {one['half_width']:.2%}")
    return table


def curves_table(document: Mapping[str, Any]) -> Table:
    """The constants of a law of curves, then how near it comes to each run, those that were not fitted last."""
    intervals = document["intervals"]
    constants = ", ".join(
        f"{name} {estimate(value, intervals[name])}" for name, value in document["parameters"].items()
    )
    certificate = document["certificate"]
    told = f"{certificate['agreeing_starts']:.0%} of starts agree"
    told += "" if certificate["converged"] else "; the descent has not come to rest"
    told += f"; at a bound: {', '.join(certificate['bounds_hit'])}" if certificate["bounds_hit"] else ""
    title = f"{document['group']}: {constants}; {told}"
    numbers = ("rows", "R²", "MAE", "RMSE", "mean rel.", "worst rel.", "inside")
    table = _table(Column("run", overflow="fold"), *numbers, Column(), title=title)
    measured = sorted(document["runs"], key=lambda run: not run["fitted"])
    if document["prediction"]:
        measured.append({"run": "mean of the predicted", "rows": "", "fitted": True, **document["prediction"]})
    for run in measured:
        table.add_row(
            run["run"],
            str(run["rows"]),
            f"{run['r2']:.4f}",
            f"{run['mae']:.5f}",
            f"{run['rmse']:.5f}",
            f"{run['mean_relative_error']:.3%}",
            f"{run['worst_relative_error']:.2%}",
            f"{run['inside_interval']:.0%}",
            "" if run["fitted"] else "predicted",
        )
    return table


def cells_table(document: Mapping[str, Any]) -> Table:
    """A row for each size and budget: the best value of the axis, its interval, and what twice or half of it costs."""
    table = _table("N", "D", "tried", f"best {document['axis']}", "interval", "off by 2")
    for cell in document["cells"]:
        low, high = cell["interval"] or (None, None)
        table.add_row(
            compact(round(cell["parameters"])),
            compact(round(cell["tokens"])),
            str(len(cell["values"])),
            f"{cell['best']:.4g}",
            "at the edge" if low is None else f"[{low:.3g}, {high:.3g}]",
            "" if cell["off_by_two"] is None else f"+{cell['off_by_two']:.2%}",
        )
    return table


def coordinates_table(document: Mapping[str, Any]) -> Table:
    """A row for each block and the logits: root mean squares by width, and the largest over the least."""
    table = _table("", *(f"width {width}" for width in document["widths"]), "ratio", "")
    for one in document["places"]:
        sizes = (f"{size:.4g}" for size in one["sizes"])
        table.add_row(one["place"], *sizes, f"{one['ratio']:.2f}", "flat" if one["flat"] else "not flat")
    return table
