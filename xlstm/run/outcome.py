"""What a completed run leaves: its result, the evaluations it was measured by, and its model card.

An evaluation is stored under its name and fingerprint. The result holds the one that was asked for last; one made
earlier can take its place again without running anything. Imports without torch.
"""

import time

from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import read_record, write_text
from xlstm.run.model_card import model_card
from xlstm.run.records import Result, State, Validation, write_json
from xlstm.run.spec import RunSpec


def leave_result(run: RunDirectory, spec: RunSpec, result: Result) -> None:
    """Write the outcome of the evaluation, the card, and `result.json`, which says that the run is complete."""
    path = run.evaluation_file(spec)
    path.parent.mkdir(exist_ok=True)
    write_json(path, result.validation.model_dump(mode="json"))
    write_text(run.model_card_file, model_card(spec, result, run.launch(result.attempts)))
    run.write_result(result)


def evaluation(run: RunDirectory, spec: RunSpec) -> Validation | None:
    """What the evaluation of `spec` measured on the trained run, or None where it was not made.

    DamagedFileError where what was measured cannot be read.
    """
    return read_record(run.evaluation_file(spec), Validation, "delete it: it is measured anew")


def adopt(run: RunDirectory, spec: RunSpec) -> bool:
    """Make the evaluation of `spec`, if it was made earlier, the one of the result. Returns whether that changed it."""
    result, known = run.result(), evaluation(run, spec)
    if result is None or known is None or result.validation.evaluation == spec.evaluation_fingerprint:
        return False
    attempt = run.status().attempt
    run.change_evaluation(spec.evaluation_fingerprint, attempt)
    run.append_metrics({"step": result.steps, "time": time.time(), "attempt": attempt, **known.metrics()})
    leave_result(run, spec, result.model_copy(update={"validation": known}))
    run.set_state(State.COMPLETED)
    return True
