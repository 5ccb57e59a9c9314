"""The law of a sweep while it runs: what `scaling fit` would say of the runs that are complete."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.display.tables import estimate
from orchestrator.execution.shipping import DESCRIPTION

if TYPE_CHECKING:
    from xlstm.run.directory import Workspace


def live_fit(workspace: "Workspace", sweep: str) -> dict[str, str | Path]:
    """Artifacts by name: `fit/fit.json`, as `scaling fit --json` prints it, and `fit/law.png`; and what they say.

    Nothing where the complete runs do not determine a law yet. The analysis is imported here, as runs complete, so that
    submitting starts at once.
    """
    import matplotlib

    matplotlib.use("agg")  # drawn in the background, where no window system may be asked
    import matplotlib.pyplot as plt

    from analysis.findings import RefusalError
    from analysis.report import plots
    from analysis.source import Question, Source
    from orchestrator.workbench.analyses import laws

    source = Source(sweep, workspace, asked=Question())
    try:
        fits = source.fit()
    except RefusalError:
        return {}
    with plots.style():
        (figure,) = plots.save(drawn := plots.law_figure(fits), source.folder / "law", ("png",))
        plt.close(drawn)
    documents = laws.documents(fits, source.question)
    told = f"{_table([laws.of_chosen(one) for one in documents])}\n\n![law](fit/law.png)"
    return {"fit/fit.json": json.dumps(documents, indent=2) + "\n", "fit/law.png": figure, DESCRIPTION: told}


def _table(documents: Sequence[Mapping[str, Any]]) -> str:
    """The laws of the chosen form in Markdown: a row for each family, with the interval of every parameter."""
    names = list(documents[0]["parameters"])
    lines = [f"L(N, D) = {documents[0]['law']}, intervals at {documents[0]['interval_level']:.0%}", ""]
    lines += [f"| family | {' | '.join(names)} | runs |", "| --- " * (len(names) + 2) + "|"]
    for one in documents:
        cells = (estimate(one["parameters"][name], one["intervals"][name]) for name in names)
        lines.append(f"| {one['family']} | {' | '.join(cells)} | {one['rows']['used']} |")
    warnings = dict.fromkeys(warning["message"] for one in documents for warning in one["warnings"])
    return "\n".join([*lines, "", *(f"- {warning}" for warning in warnings)])
