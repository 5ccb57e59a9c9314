"""The law of a sweep while it runs: what `scaling fit` would say of the runs that are complete."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.laws import take_best

if TYPE_CHECKING:
    from xlstm.run.directory import Workspace


def live_fit(workspace: "Workspace", sweep: str) -> dict[str, str | Path]:
    """Artifacts by name: `fit/fit.json`, as `scaling fit --json` prints it, and `fit/law.png`.

    Nothing where the complete runs do not determine a law yet.
    """
    import matplotlib

    matplotlib.use("agg")  # drawn in the background, where no window system may be asked
    from analysis import fitting, plots, runs
    from analysis.findings import RefusalError
    from analysis.quality import Rules

    frame, _ = take_best(workspace, sweep, runs.load(sweep, workspace=workspace))
    try:
        fits = fitting.fit(frame)
    except RefusalError:
        return {}
    folder = workspace.sweep(sweep).fit
    with plots.style():
        (figure,) = plots.save(plots.law_figure(fits), folder / "law", ("png",))
    rules = Rules().to_json() | {"mixed": False}
    documents = [fitted.to_json() | {"rules": rules} for fitted in fits]
    return {"fit/fit.json": json.dumps(documents, indent=2) + "\n", "fit/law.png": figure}
