"""Bad input: one line that says where and what would be right, exit code 2, nothing started, nothing lost."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteSweep = Callable[..., str]


def refusal(scaling: Any, *arguments: str) -> str:
    """The one line with which a call is refused."""
    said = scaling(*arguments)
    assert said.code == 2, said
    (line,) = said.err.splitlines()
    return str(line)


@pytest.mark.parametrize("verb", ["plan", "submit"])
@pytest.mark.parametrize(
    ("right", "wrong", "line", "said"),
    [
        ("train:", "trian:", 10, "did you mean `train`?"),
        ("model: [llama]", "model: [lama]", 7, "unknown model family `lama`"),
        ("set: {", "set: {devices: 3, ", 11, "8 sequences cannot be divided over 3 ranks"),
        (
            "set: {",
            "set: {devices: 2, runs_per_device: 2, ",
            11,
            "runs_per_device is for runs of one rank; this one has 2",
        ),
        ("1e-2", "'1e-2'", 10, "input should be a valid number"),
    ],
)
def test_a_mistake_in_a_sweep_is_a_line_and_starts_nothing(
    scaling: Any, write_sweep: WriteSweep, verb: str, right: str, wrong: str, line: int, said: str
) -> None:
    path = write_sweep((right, wrong))
    # A key that is misspelt takes the keys below it along: the first line is the misspelling itself.
    first = scaling(verb, path)
    assert first.code == 2
    assert any(text.startswith(f"{path}:{line}: ") and said in text for text in first.err.splitlines()), first.err
    assert not list((scaling.workspace / "runs").glob("*"))
    assert not list((scaling.workspace / "sweeps").glob("*"))


@pytest.mark.parametrize(("content", "said"), [(b"", "empty"), ("café ".encode("latin-1") * 99, "UTF-8")])
def test_a_text_file_without_text_is_named(
    scaling: Any, write_sweep: WriteSweep, tmp_path: Path, content: bytes, said: str
) -> None:
    path = write_sweep()
    (tmp_path / "corpus.txt").write_bytes(content)
    line = refusal(scaling, "submit", path)
    assert line.startswith(f"{path}:2: ")
    assert "corpus.txt" in line
    assert said in line


def test_a_workspace_that_cannot_be_written_is_named(
    scaling: Any, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "file" / "workspace"))
    line = refusal(scaling, "submit", write_sweep())
    assert line.startswith(f"workspace {tmp_path}/file/workspace cannot be written")
    assert "SCALING_WORKSPACE" in line


def test_a_port_in_use_is_named_with_the_next_one(scaling: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(scaling, "ui", "--port", str(port))
    assert line.startswith(f"127.0.0.1:{port} cannot be listened on")
    assert f"scaling ui --port {port + 1}" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "quickstrat"), "did you mean `quickstart`?"),
        (("plan", "nowhere/none.yaml"), "nowhere/none.yaml: no such file"),
        (("plan", "quickstart", "--set", "train.learning_rate"), "write key.path=value"),
        (("plan", "quickstart", "--set", "train.learning_rate=fast"), "input should be a valid number"),
        (("submit", "quickstart", "--on", "lokal"), "did you mean `local`?"),
        (("submit", "xlstm-125m-2.7b"), "for files of yours: --set data.corpus=KIND:PATH"),
        (("status", "quickstart"), "no sweep `quickstart`"),
        (("status", "../sweeps/quickstart"), "no sweep `../sweeps/quickstart`"),
        (("logs", "nothing"), "no run `nothing`"),
        (("generate", "nothing"), "no run `nothing`"),
        (("diff", "one", "other"), "no run `one`"),
        (("plan", "text:/tmp"), "text:/tmp: no such file; a sweep is a .yaml file, or the name of a shipped one"),
        (("plan", "/tmp"), "/tmp: a folder, and not a sweep's file"),
        (("train", "none.json"), "none.json: No such file or directory"),
        (("fit", "quickstart"), "no sweep 'quickstart'"),
        (("fit", "none.csv"), "none.csv: no such file"),
        (("fit", "none.csv", "--columns", "loss"), "write ours=theirs"),
        (("predict", "quickstart", "--parameters", "big", "--tokens", "1B"), "--parameters big: write a whole number"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(scaling: Any, arguments: tuple[str, ...], said: str) -> None:
    assert said in refusal(scaling, *arguments)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"physics": {"tokens": -1}}', "\x00"])
def test_a_specification_that_is_none_is_refused(scaling: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(content)
    assert str(path) in refusal(scaling, "train", str(path))
