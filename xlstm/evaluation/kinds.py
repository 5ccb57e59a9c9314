"""Every kind of evaluation: those that read text opened for a run, and all checked before anything is launched.

Imports without torch, but where lm-eval is asked for.
"""

from typing import TypeAlias

from xlstm.data.held_out import prepare_text
from xlstm.evaluation.corpus import CorpusPasses
from xlstm.evaluation.domains import DocumentPasses
from xlstm.evaluation.length_extrapolation import ContextPasses
from xlstm.evaluation.passes import Passes, prompts
from xlstm.evaluation.token_frequency import BandPasses
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import (
    AnyEvaluation,
    CorpusEvaluation,
    Domains,
    Harness,
    Inference,
    LengthExtrapolation,
    TokenFrequency,
)
from xlstm.run.spec import RunSpec

TextEvaluation: TypeAlias = CorpusEvaluation | Domains | LengthExtrapolation | TokenFrequency
"""What sums nats over the tokens of a text."""


def open_passes(evaluation: TextEvaluation, spec: RunSpec, workspace: Workspace) -> Passes:
    """What an evaluation reads for a run. FileNotFoundError where its text was not prepared; ValueError as `check`."""
    if isinstance(evaluation, CorpusEvaluation):
        return CorpusPasses.open(evaluation, spec, workspace)
    if isinstance(evaluation, Domains):
        return DocumentPasses.open(evaluation, spec, workspace)
    if isinstance(evaluation, LengthExtrapolation):
        return ContextPasses.open(evaluation, spec, workspace)
    return BandPasses.open(evaluation, spec, workspace)


def check(evaluation: AnyEvaluation, spec: RunSpec, workspace: Workspace) -> list[str]:
    """Prepare what an evaluation reads, and open it as a run will. Returns what it cannot measure, and why.

    ValueError says what is wrong.
    """
    if isinstance(evaluation, Harness):
        try:
            from xlstm.evaluation.harness import check_tasks
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is not installed: pip install -c constraints.txt '.[harness]'") from None
        check_tasks(evaluation)
        return []
    if isinstance(evaluation, Inference):
        return prompts(evaluation, spec)[1]
    if isinstance(evaluation, CorpusEvaluation | Domains):
        prepare_text(evaluation, spec.physics.data, workspace)
    return open_passes(evaluation, spec, workspace).notes
