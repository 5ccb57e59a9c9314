"""Whatever the bytes of a checkpoint of ours: it is the one that was written, or it is named as damaged."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from xlstm.models import build
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.training.checkpoints import Checkpoint, complete_checkpoints
from xlstm.training.optimization.parametrization import named_parameters

OLD = Path(__file__).parents[1] / "orchestrator" / "old_workspace" / "workspace.tar.xz"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")
    (run,) = (folder / "workspace" / "runs").glob("llama-1.43K-128K-*")
    return complete_checkpoints(RunDirectory(run))[0]


def weights(checkpoint: Checkpoint) -> list[torch.Tensor]:
    model = build(checkpoint.record().physics.model)
    checkpoint.load({f"model.{name}": parameter.detach() for name, parameter in named_parameters(model)})
    return list(model.parameters())


MARKS = [b"", b"[]", b'{"files": []}', b'{"files": {}}', b'{"files": {"record.json": 1, "index.json": 1}}', b"[" * 9999]


@examples(40)
@given(st.data(), st.none() | st.sampled_from(MARKS))
@example(None, b'{"files": [1]}')
@example(None, b'{"files": {}}')
def test_a_checkpoint_is_the_one_that_was_written_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, sound: Checkpoint, data: st.DataObject | None, mark: bytes | None
) -> None:
    copy = Checkpoint(Workspace(tmp_path_factory.mktemp("copy")).run(sound.run.run_id), sound.step)
    shutil.copytree(sound.path, copy.path)
    files = sorted(path.name for path in sound.path.iterdir())
    if mark is not None:
        copy.run.checkpoint_mark(copy.step).write_bytes(mark)
    elif data is not None:
        name = data.draw(st.sampled_from(files))
        content = bytearray((copy.path / name).read_bytes())
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=12))
        (copy.path / name).write_bytes(content)
    found = copy.corruption()
    if found is not None:
        assert str(copy.path) in found
        return
    for ours, theirs in zip(weights(copy), weights(sound), strict=True):
        assert torch.equal(ours, theirs)
