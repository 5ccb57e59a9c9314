"""Machines as people have them: names nobody knows, IPv6 alone, folders not to be written, other packages beside."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from orchestrator.cli import environment
from orchestrator.display.ui import _await
from orchestrator.execution import provenance
from xlstm.run import tracking
from xlstm.run.directory import Workspace
from xlstm.run.records import write_json
from xlstm.run.tracking.secrets import masked

REPOSITORY = Path(__file__).parents[2]


def inside(namespace: str, commands: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run shell commands in a namespace of their own; skips where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("namespaces need root and unshare")
    if subprocess.run(["unshare", namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"this machine does not allow unshare {namespace}")
    return subprocess.run(
        ["unshare", namespace, "bash", "-ec", commands],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=REPOSITORY,
        env=os.environ | {"SCALING": f"{sys.executable} -P -m orchestrator.cli"} | variables,
        check=False,
    )


@pytest.mark.serial
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_machine_whose_name_nobody_knows_trains(scaling: Any, write_sweep: Callable[..., str], ranks: int) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"), ("set: {", f"set: {{devices: {ranks}, "))
    said = inside("--uts", f"hostname gpu-17.cluster.invalid; timeout 400 $SCALING submit {path}")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "completed" in said.stdout


@pytest.mark.serial
def test_a_machine_with_ipv6_alone_trains(scaling: Any, write_sweep: Callable[..., str]) -> None:
    if shutil.which("ip") is None or not socket.has_ipv6:
        pytest.skip("needs the command ip, and IPv6")
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"), ("set: {", "set: {devices: 2, "))
    commands = "ip link set lo up; ip addr del 127.0.0.1/8 dev lo; ip -6 addr show dev lo | grep -q ::1 || exit 77;"
    said = inside("--net", f"{commands} timeout 400 $SCALING submit {path}")
    if said.returncode == 77:
        pytest.skip("no IPv6 in a namespace of this machine")
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.serial
def test_what_only_reads_answers_on_a_workspace_that_cannot_be_written(
    scaling: Any, write_sweep: Callable[..., str]
) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))
    assert scaling("submit", path).code == 0
    table = Path(path).with_name("runs.csv")
    sizes, budgets = (1e6, 4e6, 16e6, 64e6), (1e8, 4e8, 16e8)
    rows = [f"{n},{d},{1.7 + 400 / n**0.34 + 400 / d**0.28}" for n in sizes for d in budgets]
    table.write_text("parameters,tokens,loss\n" + "\n".join(rows) + "\n")
    verbs = ("status tiny", f"plan {path}", "logs llama", "diff llama llama", "status")
    verbs += (f"predict {table} --parameters 64e6 --tokens 16e8",)
    commands = "; ".join(f"$SCALING {verb} > /dev/null" for verb in verbs)
    root = scaling.workspace
    only_read = f"mount --bind {root} {root}; mount -o remount,bind,ro {root}"
    said = inside("--mount", f"{only_read}; {commands}")
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    said = inside("--mount", f"{only_read}; $SCALING fit {table}")
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert "cannot be written: Read-only file system; set SCALING_WORKSPACE to a folder of yours" in line


@pytest.mark.serial
@pytest.mark.slow
def test_a_poor_machine_trains_to_the_same_loss(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No home, 64 KiB of shared memory, 64 open files, blanks and quotes in names, packages called as ours."""
    # Without a home every process would compile the kernels for CPUs for itself: of what follows, all but the time.
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"), ("set: {", "set: {devices: 2, kernels: torch, "))
    folder = tmp_path / 'a "folder" of Jürgen\'s'
    for name in ("xlstm", "kernels", "analysis", "other/xlstm"):
        (folder / name).mkdir(parents=True)
    (folder / "other" / "xlstm" / "__init__.py").write_text("")
    shutil.copy2(path, folder / "tiny.yaml")
    commands = (
        'mount -t tmpfs -o size=64k tmpfs /dev/shm; ulimit -n 64; cd "$FOLDER"; timeout 400 $SCALING submit tiny.yaml'
    )
    variables = {"HOME": "/proc/nohome", "FOLDER": str(folder), "SCALING_WORKSPACE": str(folder / "workspace")}
    variables["PYTHONPATH"] = os.pathsep.join([str(folder / "other"), str(REPOSITORY)])
    said = inside("--mount", commands, **variables)
    assert said.returncode == 0, said.stdout + said.stderr
    assert scaling("submit", path).code == 0
    monkeypatch.setenv("SCALING_WORKSPACE", str(folder / "workspace"))
    (there,) = scaling("status", "tiny", "--json").json["runs"]
    monkeypatch.undo()
    monkeypatch.setenv("SCALING_WORKSPACE", str(scaling.workspace))
    (here,) = scaling("status", "tiny", "--json").json["runs"]
    assert there["validation"] == here["validation"]


URI = "http://alice:s3cretpw@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URI, "http://alice:***@127.0.0.1:9"),
        ("postgresql+psycopg2://bob:p@ss:w@db.example/x", "postgresql+psycopg2://bob:***@db.example/x"),
        ("https://h/x?user=a&password=b%20c&n=1", "https://h/x?user=a&password=***&n=1"),
        ("at http://a:b@c/d and 'http://e:f@g'", "at http://a:***@c/d and 'http://e:***@g'"),
        ("sqlite:////home/alice/mlflow.db", "sqlite:////home/alice/mlflow.db"),
        ("http://alice@host:5000/a:b@c", "http://alice@host:5000/a:b@c"),
    ],
)
def test_passwords_of_addresses_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_what_the_environment_holds_as_a_secret_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "eyJhbGciOi")
    monkeypatch.setenv("SCALING_TOKEN", "a-lease-of-a-run")
    assert masked("token eyJhbGciOi of a-lease-of-a-run") == "token *** of a-lease-of-a-run"


def test_provenance_holds_no_secret_and_is_for_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setattr(sys, "argv", ["scaling", f"--uri={URI}", "0123456789abcdef"])
    collected = provenance.collect()
    assert collected["command"] == ["scaling", "--uri=http://alice:***@127.0.0.1:9", "***"]
    write_json(tmp_path / "a.json", collected, private=True)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600


def test_a_difference_in_a_file_that_is_no_text_is_provenance_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nprintf 'caf\\351'\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert provenance.code.__wrapped__()["git_difference"] == r"caf\xe9"


def test_a_password_in_the_tracking_address_is_nowhere_but_in_the_environment(
    scaling: Any, write_sweep: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    said = [scaling("sync"), scaling("ui"), scaling("fit", "mlflow:none")]
    assert all(one.code == 2 for one in said)
    text = "".join(one.out + one.err for one in said)
    assert "alice:***@127.0.0.1:9" in text
    assert "s3cretpw" not in text
    assert "s3cretpw" not in str(tracking.open_store(URI))


def test_the_server_is_told_its_store_where_nobody_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from orchestrator.display import ui

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://alice:s3cretpw@db/x")
    started: list[tuple[list[str], dict[str, str]]] = []

    def refuse(command: list[str], env: dict[str, str]) -> None:
        started.append((command, env))
        raise OSError("not here")

    monkeypatch.setattr(ui.subprocess, "Popen", refuse)
    monkeypatch.setattr(ui.signal, "signal", lambda *_: None)
    with pytest.raises(OSError, match="not here"):
        ui.serve(Workspace(tmp_path), "127.0.0.1", 5000, ship=lambda: None)
    ((command, variables),) = started
    assert "s3cretpw" not in " ".join(command)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql://alice:s3cretpw@db/x"


def test_a_terminal_that_does_not_know_a_letter_is_told_its_number(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("family,parameters,tokens,loss\nGrün,1e6,1e8,3\n")
    command = [sys.executable, "-m", "orchestrator.cli", "-C", tmp_path / "workspace", "runs", tmp_path / "rows.csv"]
    variables = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Gr\\xfcn" in done.stdout


def test_another_distribution_of_one_of_our_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.stranger() is None
    (tmp_path / "xlstm-9.0.dist-info").mkdir()
    (tmp_path / "xlstm-9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: xlstm\nVersion: 9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "the distribution `xlstm` 9.0 is installed here" in str(environment.namesake())


def test_a_package_of_ours_whose_first_file_an_uninstalled_namesake_took_along_is_ours(tmp_path: Path) -> None:
    for name in ("xlstm", "kernels", "sweeps", "slurm", "analysis", "orchestrator"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "xlstm").unlink()
    (tmp_path / "xlstm").mkdir()
    for part in (REPOSITORY / "xlstm").iterdir():
        if part.name != "__init__.py":
            (tmp_path / "xlstm" / part.name).symlink_to(part)
    program = (
        f"import sys; sys.path = [{str(tmp_path)!r}, *(one for one in sys.path if one != {str(REPOSITORY)!r})];"
        "from orchestrator.cli import environment; assert environment.stranger() is None; import xlstm.run.identity;"
        "print(xlstm.__file__)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("None", "")


def test_a_package_that_stands_in_front_of_ours_ends_the_first_verb(tmp_path: Path) -> None:
    (tmp_path / "xlstm").mkdir()
    (tmp_path / "xlstm" / "__init__.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from orchestrator.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"the package `xlstm` that Python finds is that of {tmp_path}/xlstm/__init__.py")


def test_a_package_that_pythonpath_puts_in_front_of_ours_hides_it_from_no_process(tmp_path: Path) -> None:
    (tmp_path / "xlstm").mkdir()
    (tmp_path / "xlstm" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("")
    child = "import xlstm.run.identity, mine"
    program = f"""
import subprocess, sys
from orchestrator.cli import environment
environment.require_own_environment()
{child}
subprocess.run([sys.executable, "-P", "-c", {child!r}], check=True)
"""
    path = os.pathsep.join([os.path.relpath(tmp_path), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0
    assert line.startswith(
        f"warning: PYTHONPATH has {tmp_path}/xlstm/__init__.py, which is called as a package of this"
    )


@pytest.mark.serial
def test_a_submission_leaves_no_secret(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    store = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'server.db'}"}
    log = open(tmp_path / "server.log", "ab")  # noqa: SIM115
    server = subprocess.Popen(
        [*command, "--artifacts-destination", str(tmp_path / "artifacts")],
        env=os.environ | store,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:s3cretpw@127.0.0.1:{port}")
    monkeypatch.setenv("SOME_API_KEY", "k3y-of-some-service")
    before = os.umask(0)  # of somebody whose files everybody may read and write
    try:
        _await(server, f"http://127.0.0.1:{port}")
        said = [scaling.run("submit", write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))), scaling.run("sync")]
    finally:
        os.umask(before)
        os.killpg(server.pid, 9)
        server.wait()
        log.close()
    assert [one.code for one in said] == [0, 0], said
    texts = {str(path): path.read_bytes() for path in scaling.workspace.rglob("*") if path.is_file()}
    texts |= {"printed": "".join(one.out + one.err for one in said).encode()}
    assert [name for name, text in texts.items() if b"s3cretpw" in text or b"k3y-of-some-service" in text] == []
    (cursor,) = scaling.workspace.glob("runs/*/mlflow/*.json")
    (provenance_file,) = scaling.workspace.glob("runs/*/attempts/1/provenance.json")
    assert b"alice:***@" in cursor.read_bytes()
    for path in (cursor, provenance_file):
        assert path.stat().st_mode & 0o777 == 0o600
        if os.geteuid() == 0:  # a second user, who may enter every folder on the way
            with tempfile.TemporaryDirectory(dir="/tmp") as folder:
                os.chmod(folder, 0o755)
                shutil.copy2(path, folder)
                copy = str(Path(folder) / path.name)
                other = subprocess.run(["cat", copy], user=65534, capture_output=True, text=True)
            assert "Permission denied" in other.stderr
