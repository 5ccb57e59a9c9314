"""Every kind of evaluation that reads text: opened for a run, and checked before anything is launched.

Imports without torch.
"""

from xlstm.data.held_out import prepare_text
from xlstm.evaluation.corpus import CorpusPasses
from xlstm.evaluation.domains import DocumentPasses
from xlstm.evaluation.length_extrapolation import ContextPasses
from xlstm.evaluation.passes import Passes
from xlstm.evaluation.token_frequency import BandPasses
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import AnyEvaluation, CorpusEvaluation, Domains, LengthExtrapolation
from xlstm.run.spec import RunSpec


def open_passes(evaluation: AnyEvaluation, spec: RunSpec, workspace: Workspace) -> Passes:
    """What an evaluation reads for a run. FileNotFoundError where its text was not prepared; ValueError as `check`."""
    if isinstance(evaluation, CorpusEvaluation):
        return CorpusPasses.open(evaluation, spec, workspace)
    if isinstance(evaluation, Domains):
        return DocumentPasses.open(evaluation, spec, workspace)
    if isinstance(evaluation, LengthExtrapolation):
        return ContextPasses.open(evaluation, spec, workspace)
    return BandPasses.open(evaluation, spec, workspace)


def check(evaluation: AnyEvaluation, spec: RunSpec, workspace: Workspace) -> Passes:
    """Prepare what an evaluation reads, and open it as a run will. ValueError says what is wrong."""
    if isinstance(evaluation, CorpusEvaluation | Domains):
        prepare_text(evaluation, spec.physics.data, workspace)
    return open_passes(evaluation, spec, workspace)
