"""The notebook that is shipped runs from its first cell to its last, and ends with a figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.serial
@pytest.mark.slow
def test_the_notebook_goes_from_a_sweep_to_a_figure_without_a_network(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "sweep-to-figure.ipynb").read_text())["cells"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "notebook.py").write_text(program)
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "NO_PROXY": ""}
    command = [sys.executable, "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "N = 240K, D = 160K: loss" in done.stdout
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
