"""An evaluation gives the same file on one rank and on two, and where it was interrupted or killed on the way."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import losses, make_run, start

from xlstm.evaluation.kinds import check
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.evaluations import (
    AnyEvaluation,
    CorpusEvaluation,
    Domains,
    Harness,
    LengthExtrapolation,
    TokenFrequency,
)
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow]

SMALL_PASSES = """
from xlstm.evaluation import domains, passes
passes.TOKENS_PER_PASS = domains.TOKENS_PER_PASS = 512
"""
"""Many passes, so that there is a middle."""
KILLED = """
import os, signal
from xlstm.evaluation import measure
measure.KEPT_EVERY_SECONDS = 0.0
plain, made = measure._pass, []
def one_of_many(*told):
    made.append(told)
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*told)
measure._pass = one_of_many
"""
ASKED_TO_STOP = """
import os, signal
from xlstm.evaluation import measure
plain, made = measure._pass, []
def one_of_many(*told):
    made.append(told)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(*told)
measure._pass = one_of_many
"""
COUNTED = """
import sys
from xlstm.evaluation import measure
plain = measure._pass
def counted(*told):
    print("made a pass", file=sys.stderr)
    return plain(*told)
measure._pass = counted
"""


SMALL_TASKS = """
import sys
from xlstm.evaluation import harness
harness._TOKENS_ON_CPU, harness.KEPT_EVERY_SECONDS = 64, 0.0
def counted(name):
    plain = getattr(harness.HarnessModel, name)
    def one_of_many(*told):
        print("asked the model", file=sys.stderr)
        return plain(*told)
    setattr(harness.HarnessModel, name, one_of_many)
counted("_logits_at")
counted("_continue")
"""
KILLED_IN_TASKS = """
import os, signal
plain_of, asked = harness.Answers._keep, []
def keep(answers):
    plain_of(answers)
    asked.append(answers)
    if len(asked) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
harness.Answers._keep = keep
"""


def texts(folder: Path) -> tuple[AnyEvaluation, ...]:
    """Every kind that sums over tokens, of a text by two sources and documents of three domains."""
    corpus, domains = folder / "other.jsonl", folder / "paloma" / "reddit" / "val" / "a.jsonl.gz"
    domains.parent.mkdir(parents=True)
    rows = [{"text": f"{n} squared is {n * n}. " * (n % 5 + 1), "source": f"s{n % 2}"} for n in range(60)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(domains, "wt") as file:
        file.writelines(json.dumps({"text": row["text"], "subdomain": str(n % 3)}) + "\n" for n, row in enumerate(rows))
    return (
        LengthExtrapolation(name="long", contexts=(16, 64, 128), sequences=9),
        TokenFrequency(name="rare", bands=(1, 100, 1000)),
        CorpusEvaluation(name="other", corpus="jsonl", revision="1", paths=(str(corpus),), split="all"),
        Domains(name="domains", revision="1", paths=(str(folder / "paloma"),)),
    )


def tasks(folder: Path) -> tuple[AnyEvaluation, ...]:
    """Tasks of lm-eval that choose, read a text, and write one."""
    folder.mkdir()
    (folder / "items.jsonl").write_text(
        "".join(
            json.dumps({"query": f"{n} squared is", "right": f" {n * n}", "wrong": " few"}) + "\n" for n in range(12)
        )
    )
    kinds: dict[str, dict[str, Any]] = {
        "choice": {"doc_to_text": "{{query}}", "doc_to_target": 0, "doc_to_choice": "{{[right, wrong]}}"},
        "text": {"doc_to_text": "", "doc_to_target": "{{query}}{{right}}"},
        "writing": {"doc_to_text": "{{query}}", "doc_to_target": "{{right}}"},
    }
    kinds["choice"] |= {"output_type": "multiple_choice"}
    kinds["text"] |= {"output_type": "loglikelihood_rolling"}
    kinds["writing"] |= {"output_type": "generate_until", "generation_kwargs": {"until": [";"], "max_gen_toks": 11}}
    for name, said in kinds.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **said}))
    return (Harness(name="tasks", tasks=tuple(kinds), paths=(str(folder),), revision="1"),)


def trained(folder: Path, asked: tuple[AnyEvaluation, ...]) -> Iterator[RunDirectory]:
    """Copies of one trained run, which ask for evaluations from now on."""
    run = make_run(Workspace(folder / "trained"), steps=4)
    start(run).completed()
    run.create(run.spec().model_copy(update={"evaluations": asked}))
    for one in asked:
        check(one, run.spec(), run.workspace)
    for name in ("one", "two", "killed"):
        shutil.copytree(folder / "trained", folder / name)
        yield Workspace(folder / name).run(run.run_id)


def files(run: RunDirectory) -> dict[str, bytes]:
    """What the evaluations left, by the names of their files."""
    asked = [run.measured_file(one, run.spec()) for one in run.spec().evaluations]
    return {path.name: path.read_bytes() for path in asked if path.exists()}


def test_ranks_and_interruptions_change_no_byte_and_nothing_is_trained(tmp_path: Path) -> None:
    runs = list(trained(tmp_path, texts(tmp_path)))
    one, two, killed = runs
    before = [(losses(run), sorted(run.checkpoints.rglob("*")), run.result()) for run in runs]
    alone = start(one, wrapper=SMALL_PASSES + COUNTED)
    alone.completed()
    expected = files(one)
    assert len(expected) == 4
    start(two, 2, wrapper=SMALL_PASSES).completed()
    assert files(two) == expected

    start(killed, wrapper=SMALL_PASSES + KILLED).wait()
    assert not files(killed)
    stopped = start(killed, wrapper=SMALL_PASSES + ASKED_TO_STOP).wait()
    assert (stopped.verdict.state, stopped.verdict.reason) == (
        State.PREEMPTED,
        "stopped by SIGTERM while long was measured",
    )
    last = start(killed, wrapper=SMALL_PASSES + COUNTED)
    last.completed()
    assert files(killed) == expected
    assert last.log().count("made a pass") == alone.log().count("made a pass") - 5  # three and two were kept
    assert [(losses(run), sorted(run.checkpoints.rglob("*")), run.result()) for run in runs] == before
    assert not list(killed.evaluations.glob("*.part"))


def test_tasks_of_lm_eval_are_answered_alike_by_ranks_that_share_the_weights_and_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install '.[harness]'")
    one, two, killed = trained(tmp_path, tasks(tmp_path / "tasks"))
    alone = start(one, wrapper=SMALL_TASKS)
    alone.completed()
    expected = files(one)
    (measured,) = one.measured()
    assert {row["task"] for row in measured.tables["task"]} == {"choice", "text", "writing"}
    start(two, 2, wrapper=SMALL_TASKS).completed()
    assert files(two) == expected

    start(killed, 2, wrapper=SMALL_TASKS + KILLED_IN_TASKS).wait()
    assert not files(killed)
    last = start(killed, wrapper=SMALL_TASKS)
    last.completed()
    assert files(killed) == expected
    assert 0 < last.log().count("asked the model") < alone.log().count("asked the model")
