"""What is said of numbers far outside the runs, of what is not installed, of a server that is started."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.display import ui
from xlstm.run.directory import Workspace


@pytest.fixture
def table(scaling: Any, tmp_path: Path) -> str:
    """Two families of 12 runs each, fitted; the first needs more compute for the same loss."""
    rows = ["family,parameters,tokens,loss"]
    for family, gain in (("one", 1.0), ("other", 0.98)):
        for n in (1e6, 4e6, 1.6e7, 6.4e7):
            for d in (1e8, 4e8, 1.6e9):
                jag = 1 + 0.002 * math.sin(n / 1e5 + d / 1e7)
                rows.append(f"{family},{n},{d},{gain * jag * (1.7 + 400 / n**0.34 + 410 / d**0.28)}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(rows))
    assert scaling("fit", str(path), "--form", "additive").code == 0
    return str(path)


def test_how_far_outside_the_runs_a_number_lies_is_said_with_what_the_fit_warns_of(scaling: Any, table: str) -> None:
    warnings = {
        w["message"] for one in scaling("fit", table, "--form", "additive", "--json").json for w in one["warnings"]
    }
    assert warnings
    asked = {
        "predict": ("--parameters", "6.4B", "--tokens", "160B"),
        "allocate": ("--flops", "6.144e21"),
        "design": ("--parameters", "6.4B", "--tokens", "160B", "--budget", "1e19"),
    }
    for verb, options in asked.items():
        said = scaling(verb, table, *options)
        assert said.code == 0, said.err
        assert "C 1e+04 times the largest" in said.out, verb
        assert "of its runs" in said.out
        assert all(warning in said.out for warning in warnings), verb
    (first, _) = scaling("predict", table, *asked["predict"], "--json").json
    times = {name: round(value) for name, value in first["extrapolation"].items()}
    assert times == {"parameters": 100, "tokens": 100, "flops": 10_000}
    inside = scaling("predict", table, "--parameters", "16M", "--tokens", "400M").out.splitlines()[0]
    assert "times" not in inside


def test_a_compute_multiplier_says_of_both_families_how_far_its_budgets_lie_outside(scaling: Any, table: str) -> None:
    (line,) = [line for line in scaling("allocate", table, "--flops", "6.144e21").out.splitlines() if " needs " in line]
    assert line.startswith("one needs ")
    assert "times the compute of other" in line
    assert "one: C 1e+04 times the largest of its runs; other: C " in line
    (inside,) = [line for line in scaling("allocate", table, "--flops", "1e16").out.splitlines() if " needs " in line]
    assert "largest" not in inside


def test_what_slurm_needs_is_named_where_it_is_not_installed(write_sweep: Any, tmp_path: Path) -> None:
    """In a process of its own, as modules that were imported before stay."""
    words = ["submit", write_sweep(), "--on", "slurm"]
    code = f"import sys; sys.modules['submitit'] = None; from orchestrator.cli import app; app({json.dumps(words)})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1), said.stderr
    assert "submitit" in said.stderr
    assert "pip install" in said.stderr


def test_the_server_of_mlflow_tells_nobody_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(ui.subprocess, "Popen", lambda command, env: started.update(command=command, env=env))
    ui._start(Workspace(tmp_path), "127.0.0.1", 5000)
    assert (started["env"]["MLFLOW_DISABLE_TELEMETRY"], started["env"]["DO_NOT_TRACK"]) == ("true", "true")


def test_a_port_that_there_is_not_is_refused_in_words(scaling: Any) -> None:
    said = scaling("ui", "--port", "99999")
    assert said.code == 2
    assert "less than or equal to 65535" in said.err
    assert "Traceback" not in said.err
