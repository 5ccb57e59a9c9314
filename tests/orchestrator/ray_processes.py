"""Processes of a Ray cluster on this machine: those that carry runs, those that submit, and whether any is left."""

from contextlib import suppress
from typing import Any

import psutil
from waiting import patient_with_raylets, wait_until

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.processes import tagged


def trainers_past(run: RunDirectory, step: int) -> list[int]:
    """The launchers and workers of a run's attempt, as soon as it has passed a step."""
    wait_until(lambda: any(row["step"] >= step for row in run.metrics()))
    lease = run.status().lease
    assert lease is not None
    found = [pid for pid in tagged(lease.token) if "xlstm.training" in psutil.Process(pid).cmdline()]
    assert len(found) == 4  # a launcher and a worker on each of two nodes
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended, and whose code nobody has taken, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def submits(process: psutil.Process, workspace: Workspace) -> bool:
    """Whether a process is the controller of this workspace's sweep."""
    try:
        return {"submit", str(workspace.sweeps / "tiny" / "sweep.yaml")} <= set(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def members(cluster: Any) -> set[int]:
    """The processes of this cluster that carry runs; a child of one that is about to be a supervisor is none."""
    raylets = {one.process.pid for node in cluster.worker_nodes for one in node.all_processes["raylet"]}
    found = set()
    for process in psutil.process_iter():
        try:
            if process.ppid() in raylets and "ray::Member" in " ".join(process.cmdline()):
                found.add(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def nothing_is_left(cluster: Any) -> bool:
    """Whether the cluster holds no actor of ours, no process of one, and no resources for one."""
    import ray
    from ray.util.placement_group import placement_group_table

    from orchestrator.executors.ray_runtime import connect

    connect(cluster.address)
    groups = {group["state"] for group in placement_group_table().values()}
    actors = ray.util.list_named_actors(all_namespaces=True)
    return not actors and not members(cluster) and groups <= {"REMOVED"}


def raylet_of(cluster: Any, pid: int) -> Any:
    """The node of the cluster whose raylet is an ancestor of a process."""
    ancestors = {parent.pid for parent in psutil.Process(pid).parents()}
    for node in cluster.worker_nodes:
        if any(one.process.pid in ancestors for one in node.all_processes["raylet"]):
            return node
    raise AssertionError(f"process {pid} belongs to no raylet")


def give_back(cluster: Any) -> None:
    """End what a failed test has left in a cluster, which is that of the next test too: controllers, actors, groups."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    if nothing_is_left(cluster):
        return
    for actor in ray.util.list_named_actors(all_namespaces=True):
        with suppress(ValueError):  # it has ended meanwhile
            ray.kill(ray.get_actor(**actor))
    for identity, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))
    ray.shutdown()  # with the controllers of this process


def start_cluster(*nodes: dict[str, Any]) -> Any:
    """A cluster of several raylets on this machine, the head first."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        for node in nodes:
            add_node(made, **node)
    except BaseException:
        made.shutdown()
        raise
    return made


def add_node(cluster: Any, **node: Any) -> Any:
    """One more raylet in a cluster, at the third try at the latest.

    A raylet ends when its agents, which import much, have not started within 30 seconds, as beside other tests.
    """
    with patient_with_raylets():
        for _ in range(2):
            with suppress(TimeoutError):
                return cluster.add_node(**node)
        return cluster.add_node(**node)
