"""Shows training sequences as the model will see them: what was tokenized is what can be read back."""

from xlstm.data import open_prepared
from xlstm.data.generated import GeneratedData
from xlstm.data.preparation import tokenizer_of
from xlstm.data.sequences import TrainingSequences
from xlstm.models import IGNORED
from xlstm.run.directory import Workspace
from xlstm.run.spec import RunSpec


def print_samples(workspace: Workspace, spec: RunSpec, count: int) -> None:
    """Print the first `count` sequences of the run's order, decoded, and how many documents start in each."""
    physics = spec.physics
    if physics.data.generated is not None:
        _print_generated(spec, count)
        return
    prepared = open_prepared(physics.data, workspace)
    tokenizer = tokenizer_of(physics.data, prepared.path)
    sequences = TrainingSequences(prepared, physics)
    assert sequences.different is not None
    batch = sequences.batch(0, min(count, sequences.different))
    what = "before one comes again" if physics.data.mixture else "in all"
    print(f"{prepared.path}: {sequences.different:,} sequences of {physics.data.context_length} tokens {what}")
    for name, split in prepared.manifest.splits.items():
        print(f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.text_bytes:,} bytes of text")
        for source, documents in split.sources.items() if len(split.sources) > 1 else ():
            print(f"    {documents:,} documents of {source or 'no source'}")
    for index, (tokens, resets) in enumerate(zip(batch.tokens, batch.resets, strict=True)):
        print(f"--- sequence {index}, {int(resets.sum())} documents start in it")
        print(tokenizer.decode(tokens))


def _print_generated(spec: RunSpec, count: int) -> None:
    """Print the first sequences of a task as its tokens, and beneath each what is answered there."""
    data = GeneratedData.open(spec.physics.data, spec.execution.data_paths)
    batch = TrainingSequences(data, spec.physics).batch(0, count)
    print(f"{spec.physics.task}: sequences of {spec.physics.data.context_length} tokens, . where nothing is answered")
    for index, (tokens, targets) in enumerate(zip(batch.tokens, batch.targets, strict=True)):
        answers = ["." if target == IGNORED else f"{target:.4g}" for target in targets]
        inputs = [[f"{value:.4g}" for value in row] for row in tokens.reshape(len(targets), -1).T]
        print(f"--- sequence {index}")
        columns = list(zip(*inputs, answers, strict=True))
        widths = [max(map(len, column)) for column in columns]
        for row in (*inputs, answers):
            print(" ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)))
