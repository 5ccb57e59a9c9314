"""One self-contained HTML page for a sweep: the laws, how far to trust them, the figure and the runs. Works offline."""

import html
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from analysis import plots
from analysis.fitting import LEVEL, Fit
from xlstm.spec import compact

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c1c1e; --soft: #6b6b70; --line: #d9d9de; --ground: #ffffff; --card: #f6f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #a0a0a8; --line: #3a3a3f; --ground: #161618; --card: #202024; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 68rem; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
p.soft { color: var(--soft); margin: 0 0 1rem }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
.dark-figure { display: none }
@media (prefers-color-scheme: dark) { .dark-figure { display: block } .light-figure { display: none } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 600 }
ul.warnings { background: var(--card); border-left: 4px solid #d98a00; margin: .8rem 0; padding: .7rem .7rem .7rem 2rem
}
@media print { body { max-width: none }
  .dark-figure { display: none !important } .light-figure { display: block !important } }
"""


def write(path: Path, title: str, fits: Sequence[Fit]) -> Path:
    """Write the page; returns its path."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        "<p class=soft>L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup>, by Huber loss on log loss. "
        f"N: total parameters; D: training tokens; C: exact FLOPs. Intervals at {LEVEL:.0%}.</p>",
        f"<div class='wide light-figure'>{_svg(fits, dark=False)}</div>",
        f"<div class='wide dark-figure'>{_svg(fits, dark=True)}</div>",
        "<h2>Laws</h2><div class=wide>" + _laws(fits) + "</div>",
    ]
    warnings = [warning for fitted in fits for warning in fitted.warnings]
    if warnings:
        items = "".join(f"<li>{html.escape(warning.message)}</li>" for warning in warnings)
        parts.append(f"<ul class=warnings>{items}</ul>")
    parts.append("<h2>How sure the optimum is</h2><div class=wide>" + _certificates(fits) + "</div>")
    parts.append("<h2>Runs</h2><div class=wide>" + _runs(fits) + "</div></html>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))
    return path


def _svg(fits: Sequence[Fit], *, dark: bool) -> str:
    with plots.style(dark=dark):
        figure = plots.law_figure(fits)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue().partition("<svg")[2].join(["<svg", ""])


def _laws(fits: Sequence[Fit]) -> str:
    rows = []
    for fitted in fits:
        intervals = fitted.intervals() | {"a": fitted.compute_optimal_interval()}
        values = {name: getattr(fitted.law, name) for name in fitted.law.NAMES} | {"a": fitted.law.parameters_exponent}
        cells = [f"{values[name]:.4g} [{low:.3g}, {high:.3g}]" for name, (low, high) in intervals.items()]
        rows.append([fitted.family, *cells])
    return _table(["family", "E", "A", "B", "α", "β", "a in N* ~ Cᵃ"], rows)


def _certificates(fits: Sequence[Fit]) -> str:
    rows = [
        [
            fitted.family,
            "yes" if fitted.certificate.converged else "no",
            f"{fitted.certificate.agreeing_starts:.0%}",
            f"{fitted.certificate.scaled_gradient:.1e}",
            ", ".join(fitted.certificate.bounds_hit) or "none",
            f"{fitted.certificate.condition_number:.1e}",
            fitted.resampling,
        ]
        for fitted in fits
    ]
    head = [
        "family",
        "converged",
        "starts that agree",
        "scaled gradient",
        "bounds hit",
        "condition number",
        "intervals by",
    ]
    return _table(head, rows)


def _runs(fits: Sequence[Fit]) -> str:
    rows = []
    for fitted in fits:
        for row in fitted.rows.sort("parameters", "tokens").iter_rows(named=True):
            loss, bits = row["loss"], row["bits_per_byte"]
            rows.append(
                [
                    row["run_id"],
                    compact(round(row["parameters"])) if row["parameters"] else "",
                    compact(round(row["tokens"])) if row["tokens"] else "",
                    f"{row['flops']:.3g}" if row["flops"] else "",
                    f"{loss:.4f}" if loss else "",
                    f"{bits:.4f}" if bits else "",
                    row["excluded"] or "",
                ]
            )
    return _table(["run", "N", "D", "C", "loss", "bits per byte", "left out because"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
