"""The house keeps its promises: what is light stays light, and no file names the place where it was made."""

import os
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


@pytest.mark.slow
def test_laws_of_a_table_need_nothing_of_what_trains(tmp_path: Path) -> None:
    """As after `pip install .` without the extra `train`; a verb that needs it says what to install."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in "
        "{'torch', 'triton', 'numba', 'mlflow', 'tokenizers', 'safetensors', 'psutil'}:\n"
        "            raise ModuleNotFoundError(f'no {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from orchestrator.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    rows = [
        f"{n},{d},{1.7 + 400 / n**0.34 + 400 / d**0.28}" for n in (1e8, 2e8, 4e8, 8e8) for d in (1e9, 2e9, 4e9, 8e9)
    ]
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(["parameters,tokens,loss", *rows]) + "\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SCALING_WORKSPACE": str(tmp_path / "workspace")}

    def scaling(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    for verb in (("fit",), ("plot",), ("predict", "--parameters", "1B", "--tokens", "20B")):
        assert (said := scaling(verb[0], str(table), *verb[1:])).returncode == 0, said.stderr
    for needs_more in (["submit", "quickstart"], ["sync"], ["ui"]):
        refused = scaling(*needs_more)
        assert refused.returncode == 2
        assert "pip install -c constraints.txt '.[train]'" in refused.stderr
