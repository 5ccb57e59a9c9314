"""One self-contained HTML page: the laws, how far to trust them, the figures and the runs. Works offline.

Everything is drawn from saved fits. The chart answers to touch and mouse (`assets/chart.js`); on paper and without
scripts the figures of `analysis.report.figures` stand for themselves.
"""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from analysis.data.runs import EVALUATION
from analysis.data.several import SWEEP
from analysis.decisions import agreement
from analysis.findings import RefusalError
from analysis.fitting.bootstrap import LEVEL, UNBOUNDED
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from analysis.laws.forms import ADDITIVE, law_of
from analysis.report import plots
from analysis.report.figures import Evidence
from xlstm.quantities import compact

DRAWS_ON_PAGE = 300
"""Bootstrap draws that the page's calculator takes its intervals from."""
SVG_DASHES = {"-": "none", "--": "6 3", ":": "2 3", "-.": "6 3 2 3"}
"""`stroke-dasharray` of each of the figures' line styles."""
LINES = 6
"""Sizes or budgets of a family that the chart draws a line for."""
Cell: TypeAlias = str | tuple[str, float]
"""A text, or a text with the number by which it sorts."""

EXPONENT = "a in N* ~ Cᵃ"
LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "kappa": "κ", "epsilon": "ε"}
"""How the table of laws writes parameters."""

CAPTIONS = {
    "law": "Loss against training tokens, a line for each size with its band, and against compute.",
    "sizes": "Loss against model size, a line for each token budget.",
    "profiles": "Runs of one budget joined; stars are the minima, and the line through them is approach 2. "
    "Faint budgets have no minimum inside their sizes.",
    "frontier": "The best split of a budget by each law, up to ten times the largest one trained; dots are runs.",
    "envelope": "Loss during training against compute so far; the lowest curve says which size is best.",
    "residuals": "What the laws leave unexplained. Points far off the straight line are outliers or a wrong form.",
    "exponents": "Bootstrap draws of both exponents, and the region that holds 95 % of them.",
    "multipliers": "How many times the compute of another family the first one needs for the same loss.",
}


def write(
    path: Path,
    title: str,
    evidence: Evidence,
    drawn: Mapping[str, Figure | RefusalError],
    about: Mapping[str, str] | None = None,
    decisions: Sequence[str] = (),
) -> Path:
    """Write the page with the figures that `figures.drawn` gives; returns its path.

    `decisions` say, a line each, which runs an adaptive sweep bought and what was known of its targets after each.
    `about` says what the page was made of and how, by what each is called; an `http` address becomes a link.
    """
    fits = evidence.fits
    page = resources.files("analysis.report") / "assets"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{(page / 'style.css').read_text('utf-8')}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=soft>L(N, D) = {_formula(fits[0])}, {html.escape(fits[0].objective.name)}. "
        f"N: total parameters; D: training tokens; C: exact FLOPs, else 6ND. Intervals at {LEVEL:.0%}.</p>",
        "<div class=bar><label>loss against <select id=axis><option value=flops>compute</option>"
        "<option value=tokens>tokens</option><option value=parameters>parameters</option></select></label>"
        "<span id=families class=bar></span></div>",
        "<div id=chart><div id=tip hidden></div></div>",
        "<div class=bar><label>N <input id=size inputmode=text value="
        f"{compact(round(_largest(fits, 'parameters')))}></label><label>D <input id=tokens inputmode=text value="
        f"{compact(round(_largest(fits, 'tokens')))}></label><output id=answers for='size tokens'></output></div>",
        "<h2>Laws</h2><div class=wide>" + _laws(fits) + "</div>",
    ]
    warnings = dict.fromkeys(warning for fitted in fits for warning in fitted.warnings)
    if warnings:
        items = "".join(f"<li>{html.escape(warning.message)}</li>" for warning in warnings)
        parts.append(f"<ul class=warnings>{items}</ul>")
    if compared := _approaches(fits):
        parts.append("<h2>The best split, by profiles and by the law</h2><div class=wide>" + compared + "</div>")
    parts.append("<h2>How sure the optimum is</h2><div class=wide>" + _certificates(fits) + "</div>")
    if any(fitted.others for fitted in fits):
        parts.append("<h2>Which form</h2><div class=wide>" + _forms(fits) + "</div>")
    parts.append("<h2>Figures</h2>" + "".join(_figure(name, figure) for name, figure in drawn.items()))
    if measured := _measured(evidence):
        parts.append("<h2>Evaluations</h2><div class=wide>" + measured + "</div>")
    if decisions:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in decisions)
        parts.append(f"<h2>How runs were chosen</h2><ol>{items}</ol>")
    if evidence.references:
        items = "".join(f"<li>{html.escape(f'{r.name}: {r.source} ({r.setting})')}</li>" for r in evidence.references)
        parts.append(f"<h2>Published numbers</h2><ul>{items}</ul>")
    parts.append(
        "<h2>Runs</h2><div class=bar><button id=csv>Download as CSV</button></div>"
        "<div class=wide>" + _runs(fits) + "</div>"
    )
    if about:
        parts.append("<h2>How this page was made</h2><dl>" + "".join(map(_said, about.items())) + "</dl>")
    # Inside a script, `</script` would end it and `<!--` hide its end; JSON may write the character escaped.
    families = [_family(fitted, index) for index, fitted in enumerate(fits)]
    data = json.dumps({"families": families}, separators=(",", ":")).replace("<", "\\u003c")
    parts.append(f"<script>const DATA = {data};\n{(page / 'chart.js').read_text('utf-8')}</script></html>")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file's name may be no text; the page says so, as a terminal does.
    path.write_text("\n".join(parts), encoding="utf-8", errors="backslashreplace")
    return path


def _formula(fitted: Fit) -> str:
    if fitted.form is ADDITIVE:
        return "E + A / N<sup>α</sup> + B / D<sup>β</sup>"
    return html.escape(fitted.form.formula)


def _family(fitted: Fit, index: int) -> dict[str, Any]:
    """What the chart draws of a family: its runs, lines with bands along each axis, and draws for the calculator."""
    used = fitted.used
    n, d, c = (used[name].to_numpy() for name in ("parameters", "tokens", "flops"))
    residual = 100 * fitted.residuals
    points = [
        {"run": row["run_id"] or "", **{name: row[name] for name in ("parameters", "tokens", "flops", "loss")}}
        | {"residual": float(percent)}
        for row, percent in zip(used.iter_rows(named=True), residual, strict=True)
    ]
    lines: dict[str, list[dict[str, Any]]] = {"tokens": [], "parameters": [], "flops": []}
    for size in plots.spread(sorted(set(n.tolist())), LINES) if fitted.form.of_n_and_d else ():
        x = np.geomspace(d.min() / 1.3, d.max() * 1.3, 40)
        lines["tokens"].append(_line(fitted, x, np.full(40, size), x, f"N = {compact(round(size))}"))
    for budget in plots.spread(sorted(set(d.tolist())), LINES) if fitted.form.of_n_and_d else ():
        x = np.geomspace(n.min() / 1.3, n.max() * 1.3, 40)
        lines["parameters"].append(_line(fitted, x, x, np.full(40, budget), f"D = {compact(round(budget))}"))
    x = np.geomspace(c.min() / 1.3, c.max() * 1.3, 40)
    draws, law = [], None
    if fitted.can_split:
        best_n, best_d = fitted.law.compute_optimal(x)
        near = plots.is_near(fitted, best_n, best_d)
        if near.any():
            lines["flops"].append(_line(fitted, x[near], best_n[near], best_d[near], "compute-optimal, C = 6ND"))
        some = fitted.draws[:DRAWS_ON_PAGE]
        drawn = some if fitted.form is ADDITIVE else [law_of(fitted.form, draw).to_vector() for draw in some]
        draws, law = np.round(drawn, 7).tolist(), fitted.law.to_vector().tolist()
    doubt = {
        "noise": np.round(fitted.noise[:DRAWS_ON_PAGE], 7).tolist(),
        "scatter": np.round(fitted.noise_exponents[:DRAWS_ON_PAGE], 5).tolist(),
        "weighed": bool(fitted.noise_exponent),
        "meanLogC": float(np.log(c).mean()),
        "rivals": [rival.law.to_vector().tolist() for rival in fitted.rivals if rival.can_split],
        "widening": fitted.rollout.widening if fitted.rollout is not None else 1.0,
    }
    look: dict[str, Any] = {"color": plots.color_of(index), "dash": SVG_DASHES[plots.dash_of(index)]}
    ranges = {name: [float(values.min()), float(values.max())] for name, values in zip("NDC", (n, d, c), strict=True)}
    look |= {"most": UNBOUNDED * float(used["loss"].to_numpy().max())}
    look |= {"ranges": ranges, "per_token": float(np.median(c / (n * d)))}
    return {"name": fitted.family, **look, "points": points, "lines": lines, "draws": draws, "law": law} | doubt


def _line(fitted: Fit, x: Array, n: Array, d: Array, label: str) -> dict[str, Any]:
    center, low, high = (np.round(values, 5).tolist() for values in fitted.predict(n, d))
    return {"label": label, "x": [float(f"{value:.5g}") for value in x], "y": center, "low": low, "high": high}


def _largest(fits: Sequence[Fit], column: str) -> float:
    return max(float(np.max(fitted.used[column].to_numpy())) for fitted in fits)


def _said(item: tuple[str, str]) -> str:
    name, value = map(html.escape, item)
    shown = f'<a href="{value}">{value}</a>' if value.startswith("http") else value
    return f"<dt>{name}</dt><dd>{shown}</dd>"


def _figure(name: str, figure: Figure | RefusalError) -> str:
    """A figure that takes its ink from the page, light or dark, or why there is none."""
    caption = html.escape(CAPTIONS[name])
    if isinstance(figure, RefusalError):
        return f"<figcaption>{caption} Not drawn: {html.escape(str(figure))}.</figcaption>"
    with plots.style():
        drawn = plots.svg(figure, name).replace(plots.INK, "currentColor")
    return f"<figure><div class=wide>{drawn}</div><figcaption>{caption}</figcaption></figure>"


def _laws(fits: Sequence[Fit]) -> str:
    """A row per parameter and a column per family, so that it can be read on a phone."""
    columns = []
    for fitted in fits:
        intervals, values = fitted.intervals(), fitted.parameters
        if fitted.can_split:
            intervals[EXPONENT], values[EXPONENT] = fitted.compute_optimal_interval(), fitted.law.parameters_exponent
        columns.append([f"{values[name]:.4g} [{low:.3g}, {high:.3g}]" for name, (low, high) in intervals.items()])
    names = [*fits[0].parameters, *([EXPONENT] if fits[0].can_split else [])]
    rows = [[LETTERS.get(name, name), *cells] for name, *cells in zip(names, *columns, strict=True)]
    return _table(["", *(fitted.family for fitted in fits)], rows)


def _approaches(fits: Sequence[Fit]) -> str:
    """Approaches 2 and 3 beside each other, for the families whose runs are profiles; empty where none are."""
    rows = []
    for fitted in fits:
        try:
            found = agreement.compare(fitted)
        except RefusalError:
            continue
        by_profiles = [(found.profiles.exponent, found.profiles.interval)]
        if found.profiles.tokens_exponent is not None and found.profiles.tokens_interval is not None:
            by_profiles.append((found.profiles.tokens_exponent, found.profiles.tokens_interval))
        for approach, estimates in (("2, IsoFLOP profiles", by_profiles), ("3, the law", [*found.law.values()])):
            cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in estimates]
            said = "" if found.difference <= 1 else "they disagree"
            rows.append([fitted.family, approach, *cells, *[""] * (2 - len(cells)), said])
    return _table(["family", "approach", "N* ~ Cᵃ", "D* ~ Cᵇ", ""], rows) if rows else ""


def _certificates(fits: Sequence[Fit]) -> str:
    rows = [
        {
            "family": fitted.family,
            "converged": "yes" if fitted.certificate.converged else "no",
            "starts that agree": f"{fitted.certificate.agreeing_starts:.0%}",
            "scaled gradient": f"{fitted.certificate.scaled_gradient:.1e}",
            "bounds hit": ", ".join(fitted.certificate.bounds_hit) or "none",
            "condition number": f"{fitted.certificate.condition_number:.1e}",
            "intervals by": fitted.resampling,
        }
        for fitted in fits
    ]
    return _table_of(rows)


def _forms(fits: Sequence[Fit]) -> str:
    """How the forms that were fitted stand, for each family; the chosen one in words, not in colour."""
    rows = []
    for fitted in fits:
        standing = fitted.weighed()["forms"]
        least = min((one["aicc"] for one in standing if one["aicc"] is not None), default=0.0)
        for one in standing:
            rolled = one["rollout"]
            rows.append(
                {
                    "family": fitted.family,
                    "form": f"{one['form']}{' (chosen)' if one['chosen'] else ''}",
                    "AICc over the least": "" if one["aicc"] is None else f"+{one['aicc'] - least:.1f}",
                    "error on the dear fifth": "" if rolled is None else f"{rolled['error']:.2%}",
                    "of it outside the interval": "" if rolled is None else f"{rolled['outside']} of {rolled['runs']}",
                }
            )
    return _table_of(rows)


def _runs(fits: Sequence[Fit]) -> str:
    rows: list[dict[str, Cell]] = []
    held = any(SWEEP in fitted.rows.columns for fitted in fits)
    for fitted in fits:
        for row in fitted.rows.sort("parameters", "tokens").iter_rows(named=True):
            loss, bits = row["loss"], row["bits_per_byte"]
            rows.append(
                {
                    "run": row["run_id"],
                    "N": (compact(round(row["parameters"])), row["parameters"]) if row["parameters"] else "",
                    "D": (compact(round(row["tokens"])), row["tokens"]) if row["tokens"] else "",
                    "C": (f"{row['flops']:.3g}", row["flops"]) if row["flops"] else "",
                    "loss": (f"{loss:.4f}", loss) if loss else "",
                    "bits per byte": (f"{bits:.4f}", bits) if bits else "",
                    "left out because": row["excluded"] or "",
                }
                | ({SWEEP: row[SWEEP]} if held else {})
            )
    return _table_of(rows, kind=" class=sortable")


def _measured(evidence: Evidence) -> str:
    """What further evaluations measured of each run as a whole; empty where there were none."""
    names = [name for name in evidence.measured.columns if name.startswith(EVALUATION) and "/by_" not in name]
    rows = [
        [row["run_id"], *((f"{row[name]:.4f}", row[name]) if row[name] is not None else "" for name in names)]
        for row in evidence.measured.iter_rows(named=True)
        if any(row[name] is not None for name in names)
    ]
    head = [name.removeprefix(EVALUATION).replace("/", ": ").replace("_", " ") for name in names]
    return _table(["run", *head], rows, kind=" class=sortable") if rows else ""


def _table_of(rows: Sequence[Mapping[str, Cell]], kind: str = "") -> str:
    """A table of at least one row, the cells by the names of their columns."""
    return _table(list(rows[0]), [list(row.values()) for row in rows], kind)


def _table(head: list[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f"<td data-value={cell[1]!r}>{html.escape(cell[0])}</td>"
    return f"<td>{html.escape(cell)}</td>"
