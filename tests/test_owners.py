"""Each name in the folders of a run and a sweep is spelled in one place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "xlstm", "sweeps", "orchestrator", "slurm", "analysis")
OWNERS = {ROOT / f"xlstm/run/{name}.py" for name in ("files", "directory", "sweep_directory")}
OWNED = re.compile(
    r"""(^|/)\.?(
        (spec|status|result|launch|exit|provenance|kernels|plan)\.json | status\.lock | metrics\.jsonl | sweep\.yaml
        | decisions\.jsonl
        | model-card\.md | cancel-requested | supervisor\.log | submit\.log | controller\.lock | mlartifacts
        | checkpoints/.* | attempts/.* | evaluations/.* | (step|rank|torchrun|meeting)-(\d|\*|$).*
    )$""",
    re.VERBOSE,
)
"""A text that is such a name, or a path that ends in one; a sentence that mentions one is none."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string in a file but the docstrings, those inside f-strings included."""
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value


@pytest.mark.parametrize("room", ROOMS)
def test_nobody_but_the_owner_spells_a_name_in_the_folder_of_a_run_or_a_sweep(room: str) -> None:
    spelled = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if path not in OWNERS
        for line, text in texts(path)
        if OWNED.search(text)
    ]
    assert not spelled


def test_the_names_are_found_where_they_are_spelled() -> None:
    found = {text for path in OWNERS for _, text in texts(path) if OWNED.search(text)}
    assert {"spec.json", "plan.json", "metrics.jsonl", "step-", "rank-"} <= found
