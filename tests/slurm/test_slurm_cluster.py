"""The test cluster itself, what `check` says of it, and Ray inside one of its allocations."""

import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError
from waiting import wait_until

from orchestrator.workbench.slurm import check
from xlstm.run.directory import Workspace

pytestmark = pytest.mark.serial

RAY_PROGRAM = """
import os, psutil, ray

def serves(process):
    try:
        ours = process.environ().get("SLURM_CONF") == os.environ["SLURM_CONF"]
        return ours and process.cmdline()[0].endswith("/gcs_server")
    except (psutil.Error, IndexError):
        return False

ray.init(log_to_driver=False)
ask = ray.remote(lambda: os.environ["SLURM_CONF"])
print("alive", sum(node["Alive"] for node in ray.nodes()), "answered", len(ray.get([ask.remote()] * 2)))
print("heads", sum(map(serves, psutil.process_iter())))
"""


def processes_naming(*texts: str) -> list[str]:
    """Command lines and environments of processes that name all `texts`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != "self":
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if all(text.encode() in told for text in texts):
                found.append(told[:200].decode(errors="replace"))
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_cluster_starts_and_stops_and_starts_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for turn in range(2):
        folder = tmp_path / f"cluster-{turn}"
        with Cluster(folder) as cluster:
            assert cluster.command("srun", "--nodes=2", "--ntasks=2", "echo", "ready").split() == ["ready", "ready"]
            wait_until(lambda cluster=cluster: "COMPLETED" in cluster.command("sacct", "--format=State"))
            if turn == 0:
                # A job that nobody stops, and that ignores SIGTERM.
                cluster.command("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "trap '' TERM; srun sleep 1000")
        assert not folder.exists()
        wait_until(lambda folder=folder: not processes_naming(str(folder)))  # what was killed, the kernel ends


@pytest.mark.usefixtures("installed")
def test_a_cluster_without_accounting_has_no_sacct_and_still_runs_jobs(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster", accounting=False) as cluster:
        assert cluster.command("srun", "echo", "ready").strip() == "ready"
        with pytest.raises(subprocess.CalledProcessError):
            cluster.command("sacct")


def test_a_missing_program_is_named_with_the_script_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.daemons.PROGRAMS", ("no-such-slurmctld",))
    with pytest.raises(ClusterError, match=r"no-such-slurmctld not found; tests/slurm/cluster/install-debian\.sh"):
        Cluster(tmp_path)


def test_check_tells_what_this_site_has_and_lacks(cluster: Cluster, workspace: Workspace) -> None:
    workspace.root.mkdir()
    findings = {finding.what: finding for finding in check(workspace, nodes=2)}
    assert findings["commands"].ok
    assert findings["controller"].ok
    assert findings["accounting"].ok
    assert findings["workspace on the nodes"].ok
    assert findings["torch on the nodes"].ok
    assert findings["names on the nodes"].ok is None
    # n1 and n2 are names that only Slurm knows; there are no GPUs; and this is no shared file system.
    assert findings["node names"].ok is None
    assert "n1, n2 cannot be resolved" in findings["node names"].detail
    assert findings["GPUs"].ok is None
    assert findings["shared file system"].ok is None


def test_check_says_when_the_controller_is_away(
    cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = Path(cluster.environment["SLURM_CONF"]).read_text().splitlines()
    elsewhere = tmp_path / "slurm.conf"
    changed = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in text]
    elsewhere.write_text("\n".join([*changed, "MessageTimeout=2", "SlurmctldTimeout=2"]))
    monkeypatch.setenv("SLURM_CONF", str(elsewhere))
    commands, controller, settings = check(workspace, nodes=0)
    assert commands.ok
    assert controller.ok is False
    assert len(controller.detail.splitlines()) == 1
    assert settings.what == "settings"


@pytest.mark.slow
def test_ray_runs_on_every_node_of_an_allocation_and_ends_with_its_command(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    program = tmp_path / "program.py"
    program.write_text(RAY_PROGRAM)
    ran = cluster.command(
        *("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"),
        *(sys.executable, "-m", "slurm.ray", "--", sys.executable, str(program)),
        timeout=500,
    )
    assert "alive 2 answered 2" in ran
    assert "heads 1" in ran
    wait_until(lambda: not processes_naming("/gcs_server", str(cluster.folder)))
