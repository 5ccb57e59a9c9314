"""The law of a sweep while it runs: what `scaling fit` would say of the runs that are complete."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlstm.run.directory import Workspace


def live_fit(workspace: "Workspace", sweep: str) -> dict[str, str | Path]:
    """Artifacts by name: `fit/fit.json`, as `scaling fit --json` prints it, and `fit/law.png`.

    Nothing where the complete runs do not determine a law yet. The analysis is imported here, as runs complete, so that
    submitting starts at once.
    """
    import matplotlib

    matplotlib.use("agg")  # drawn in the background, where no window system may be asked
    from analysis.findings import RefusalError
    from analysis.report import plots
    from analysis.source import Question, Source
    from orchestrator.workbench import laws

    source = Source(sweep, workspace, asked=Question())
    try:
        fits = source.fit()
    except RefusalError:
        return {}
    with plots.style():
        (figure,) = plots.save(plots.law_figure(fits), source.folder / "law", ("png",))
    documents = laws.documents(fits, source.question)
    return {"fit/fit.json": json.dumps(documents, indent=2) + "\n", "fit/law.png": figure}
