"""Laws of curves on the command line: what `fit --curves` and `predict --schedule` do and print."""

from typing import TYPE_CHECKING, Any

from orchestrator.cli.options import columns_of
from orchestrator.cli.terminal import make_console, print_json

if TYPE_CHECKING:
    from orchestrator.workbench.analyses.curves import Wishes


def fit_curves(source: str, columns: str | None, wishes: "Wishes", as_json: bool) -> None:
    from orchestrator.display.tables import curves_table
    from orchestrator.workbench.analyses import curves

    documents, written = curves.fit(source, columns_of(columns), wishes)
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    console = make_console()
    console.print(f"L(t) = {documents[0]['law']}; {documents[0]['objective']}", highlight=False)
    for document in documents:
        console.print(curves_table(document))
    for refusal in documents[0]["refused"]:
        console.print(f"not fitted: {refusal}", highlight=False, style="yellow", soft_wrap=True)
    for path in written:
        console.print(f"kept in {path}", highlight=False, soft_wrap=True)


def predict_end(source: str, schedule: str, as_json: bool, **asked: Any) -> None:
    from orchestrator.workbench.analyses import curves

    documents = curves.predict(source, schedule, **asked)
    if as_json:
        print_json(documents)
        return
    for one in documents:
        (low, high), share = one["new_run_interval"], one["decay_share"]
        decayed = "" if share is None else f", decaying in the last {share:.0%}"
        print(
            f"{one['group']}: loss {one['loss']:.4f}, a new run [{low:.4f}, {high:.4f}], after {one['steps']:,} steps, "
            f"{schedule} from {one['peak_rate']:.3g} to {one['final_rate']:.3g}{decayed}"
            + (f"; {one['beyond']}" if one["beyond"] else "")
        )
