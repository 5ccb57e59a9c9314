"""What a browser shows of a sweep behind the link that `scaling ui` prints: in the pinned MLflow and in a later one."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from waiting import wait_until

from orchestrator import Sweep

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LATER = os.environ.get("SCALING_LATER_MLFLOW")
"""A Python whose MLflow is later than the pinned one."""

pytestmark = [pytest.mark.serial, pytest.mark.slow]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look with")
@pytest.mark.parametrize(
    "python",
    [
        pytest.param(sys.executable, id="pinned"),
        pytest.param(
            LATER, id="later", marks=pytest.mark.skipif(not LATER, reason="SCALING_LATER_MLFLOW names no Python")
        ),
    ],
)
def test_the_printed_link_opens_the_runs_with_validation_perplexity_first(
    scaling: Any, write_sweep: Any, finish: Any, tmp_path: Path, python: str
) -> None:
    plan = Sweep.load(write_sweep()).plan()
    plan.save()
    for planned in plan.runs:
        finish(plan.workspace, planned)
        run = plan.workspace.run(planned.run_id)
        for step in (2, 4):
            row = {"step": step, "time": 1e9 + step, "attempt": 1, "progress/tokens": 256 * step}
            measured = {"train/loss": 5.0 - step, "validation/loss": 5.0 - step, "validation/perplexity": 9.0 - step}
            run.append_metrics(row | measured)
    assert scaling("sync").code == 0
    port = free_port()
    opened = tmp_path / "opened"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    opener.chmod(0o755)
    server = subprocess.Popen(
        [python, "-m", "orchestrator.cli", "ui", "--port", str(port), "--open"],
        env=os.environ | {"BROWSER": str(opener)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert server.stdout is not None
        link = next(line for line in server.stdout if line.startswith("charts of tiny")).split(": ", 1)[1].strip()
        wait_until(lambda: opened.exists() and opened.read_text().strip() == link)
        assert BROWSER is not None
        page = subprocess.run(
            [
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"),
                *("--virtual-time-budget=60000", "--window-size=1500,900", "--dump-dom", link),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(300)
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)))
    for planned in plan.runs:
        assert planned.run_id in shown
    sections = re.findall(r"\b(validation|train|progress) \(\d+\)", shown)
    assert sections[0] == "validation", shown
    assert "progress/tokens" in shown, shown  # what perplexity is drawn against
    assert "Latency" not in shown  # the page of traces
