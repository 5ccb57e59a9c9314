"""The house keeps its promises: what is light stays light, and no file names the place where it was made."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules_after_importing(module: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after importing `module`."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["xlstm.run.spec", "xlstm.run.records", "xlstm.accounting", "xlstm.models.sizes", "sweeps"]
)
def test_planning_and_fitting_start_without_torch(module: str) -> None:
    assert "torch" not in modules_after_importing(module)


def test_the_command_line_loads_no_room_before_it_is_asked() -> None:
    heavy = {"torch", "mlflow", "polars", "matplotlib", "scipy", "ray", "submitit"}
    assert not heavy & modules_after_importing("orchestrator.cli")


@pytest.mark.parametrize("module", ["kernels", "xlstm.models.xlstm", "xlstm.models.llama"])
def test_kernels_and_models_need_torch_and_triton_alone(module: str) -> None:
    foreign = {"pydantic", "mlflow", "polars", "ruamel", "typer", "rich", "scipy", "tokenizers"}
    assert not foreign & modules_after_importing(module)
