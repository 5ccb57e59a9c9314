"""The benchmark for the first minutes on a GPU goes through to its end where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_its_dry_run_gives_every_row_and_every_kernel_is_right(tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.first_gpu", "--dry-run", "--json", str(table)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert not any("failed" in row for row in rows)
    errors = {row["row"]: row["measured"] for row in rows if row["row"].startswith("error of")}
    assert len(errors) == 17
    assert max(errors.values()) < 1e-5  # float32 here
    kinds = {row["row"].split()[0] for row in rows}
    assert kinds >= {"machine", "TFLOP/s", "TB/s", "error", "launches", "ms", "tokens/s", "us", "bandwidth"}
