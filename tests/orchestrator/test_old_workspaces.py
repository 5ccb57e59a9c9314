"""A workspace that an earlier revision left, moved to another place: what it holds is read, shipped and continued.

`old_workspace/make.py` made it, and wrote down what that revision said of it.
"""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

OLD = Path(__file__).parent / "old_workspace"


@pytest.fixture(scope="module")
def said() -> Any:
    """What the earlier revision said."""
    return json.loads((OLD / "said.json").read_text())


@pytest.fixture
def moved(tmp_path: Path, scaling: Any) -> Path:
    """The folder with the sweep files and the workspace, which is that of the command line."""
    folder = scaling.workspace.parent
    with tarfile.open(OLD / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def shown(folder: Path, sweep: str) -> dict[str, Any]:
    """Parameters and metrics, step by step, of a sweep's runs in MLflow, by run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'workspace' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        metrics = {
            name: sorted([point.step, point.value] for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
            if not name.startswith("law/")  # of the sweep's parent run, told since
        }
        found[run.data.tags.get("run_id", "")] = {"params": run.data.params, "metrics": metrics}
    return found


@pytest.mark.usefixtures("moved")
@pytest.mark.parametrize("sweep", ["old", "troubled", "interrupted"])
def test_how_its_sweeps_stand_is_told_as_before(scaling: Any, said: Any, sweep: str) -> None:
    told = scaling("status", sweep, "--json").json
    assert all(run.pop("point")["model"] == run["model"] for run in told["runs"])  # told since
    assert told == said["status"][sweep]


@pytest.mark.usefixtures("moved")
def test_its_fit_predicts_and_is_found_again(scaling: Any, said: Any) -> None:
    assert scaling("predict", "old", "--parameters", "10K", "--tokens", "10K").code == 0
    (ours,), (theirs,) = scaling("fit", "old", "--json").json, said["fit"]
    # On another processor sums are rounded otherwise.
    assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=1e-4)
    assert ours["objective_value"] == pytest.approx(theirs["objective_value"], rel=1e-4)
    assert ours.keys() == theirs.keys() | {"chosen", "forms"}
    for key in ("law", "objective", "method", "conventions", "rows", "resampling"):
        assert ours[key] == theirs[key]
    assert ours["warnings"][: len(theirs["warnings"])] == theirs["warnings"]
    assert {key: ours["rules"][key] for key in ("switched_off", "ranges", "mixed")} == {
        key: theirs["rules"][key] for key in ("switched_off", "ranges", "mixed")
    }
    assert set(theirs["rules"]["applied"]) <= set(ours["rules"]["applied"])


def test_mlflow_shows_the_same_parameters_and_metrics(moved: Path, scaling: Any, said: Any) -> None:
    assert scaling("sync").code == 0
    for sweep, runs in said["mlflow"].items():
        assert shown(moved, sweep) == runs


def test_mlflow_shows_every_run_once_where_an_earlier_revision_logged_it_elsewhere(moved: Path, scaling: Any) -> None:
    import sqlite3

    def shown_now() -> dict[tuple[str, str], int]:
        with sqlite3.connect(moved / "workspace" / "mlflow.db") as store:
            found = "SELECT experiment_id, value FROM runs JOIN tags USING (run_uuid) WHERE key = 'run_id' "
            rows = store.execute(f"{found} AND lifecycle_stage = 'active'").fetchall()
        return dict(Counter(rows))

    assert scaling("sync").code == 0
    once = shown_now()
    assert set(once.values()) == {1}
    assert scaling("sync").code == 0
    assert shown_now() == once


@pytest.mark.serial
@pytest.mark.parametrize("sweep", ["interrupted", "extended"])
def test_its_runs_are_continued_and_forked_to_the_same_losses(moved: Path, scaling: Any, said: Any, sweep: str) -> None:
    if sweep == "interrupted":
        shutil.rmtree(moved / "workspace" / "data")  # prepared anew from the corpus
    as_it_measured = ("--set", "evaluation.windows=first")
    submitted = scaling("submit", str(moved / f"{sweep}.yaml"), *as_it_measured)
    assert submitted.code == 0, submitted
    ours, theirs = scaling("status", sweep, "--json").json, said[sweep]["status"]
    for run, expected in zip(ours["runs"], theirs["runs"], strict=True):
        assert run.pop("point")["model"] == run["model"]  # told since
        assert run | {"validation": None} == expected | {"validation": None}
        assert run["validation"] == pytest.approx(expected["validation"], rel=1e-3)
    for measure in ("spent", "wasted", "saved"):
        assert ours["ledger"][measure]["tokens"] == theirs["ledger"][measure]["tokens"]
    for run_id, expected in said[sweep]["mlflow"].items():
        found = shown(moved, sweep)[run_id]
        found["params"].pop("computed_on", None)  # told since
        assert found["params"] == expected["params"]
        assert found["metrics"].keys() == expected["metrics"].keys()
        for name in ("train/loss", "validation/loss", "train/learning_rate"):
            points, others = found["metrics"].get(name, []), expected["metrics"].get(name, [])
            assert [step for step, _ in points] == [step for step, _ in others]
            assert [value for _, value in points] == pytest.approx([value for _, value in others], rel=1e-3)


@pytest.mark.serial
@pytest.mark.slow
def test_what_failed_is_tried_again(moved: Path, scaling: Any) -> None:
    left = scaling("submit", str(moved / "troubled.yaml"), "--set", "grid.learning_rate=[0.02]", "--replace")
    assert "nothing to train; 1 diverged or were set aside: `scaling retry`" in left.out
    assert left.code == 1
    again = scaling("retry", "troubled")
    assert again.code == 0, again
    (run,) = scaling("status", "troubled", "--json").json["runs"]
    assert run["state"] == "COMPLETED"
    assert run["attempts"] > 3  # so many had failed
