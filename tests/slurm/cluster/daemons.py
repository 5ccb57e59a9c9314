"""Start and stop a one-machine Slurm cluster: munge, MariaDB, slurmdbd, slurmctld and two slurmd in one scratch folder.

    with Cluster(folder) as cluster:
        subprocess.run(["sinfo"], env=cluster.environment)

Every daemon runs in the foreground as a child of this process, writes only below the scratch folder, listens on ports
that were free, and dies with this process. The system's own munge, MariaDB and Slurm services are neither needed nor
touched. Runs as root or as any user; jobs run as that user.
"""

import contextlib
import ctypes
import getpass
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.configuration import Layout

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "slurmstepd", "sbatch")
DAEMON_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/lib/x86_64-linux-gnu/slurm-wlm", "/usr/sbin/slurm")
START_SECONDS = 300.0
"""For a daemon to come up, beside other tests on a slow machine too."""
STOP_SECONDS = 20.0
USABLE = frozenset({"idle", "mixed", "allocated", "completing"})
"""States of a node that can be given jobs."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ClusterError(RuntimeError):
    """A daemon did not start; the message holds the end of its log."""


def missing_programs() -> list[str]:
    """The programs of Slurm, munge and MariaDB that this machine lacks; a cluster can start where it is empty."""
    return [name for name in PROGRAMS if name != "slurmstepd" and _find(name) is None]


class Cluster:
    """A Slurm of two nodes, `n1` and `n2`, in one scratch folder. Start and stop it as often as you like.

    `environment` makes Slurm's commands speak to this cluster. With `accounting=False` sacct fails, as on sites
    without a database. ClusterError where a daemon does not come up or a program is missing.
    """

    def __init__(self, folder: Path, *, nodes: int = 2, cpus_per_node: int = 8, accounting: bool = True) -> None:
        if missing := missing_programs():
            raise ClusterError(f"{', '.join(missing)} not found; tests/slurm/cluster/install-debian.sh installs them")
        self.folder = folder.absolute()
        self.accounting = accounting
        self._node_count = nodes
        self._cpus_per_node = cpus_per_node
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.layout = self._new_layout()

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, pointed at this cluster."""
        return os.environ | {"SLURM_CONF": str(self.layout.configuration)}

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.layout.nodes

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every daemon and wait until all nodes are idle."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        self.layout = self._new_layout()
        self._start_munge()
        if self.accounting:
            self._start_database()
        text = self.layout.slurm()
        if not self.accounting:
            text = "\n".join(line for line in text.splitlines() if not line.startswith("AccountingStorage")) + "\n"
        self.layout.configuration.write_text(text)
        (self.folder / "state").mkdir()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self._wait("the nodes to be idle", lambda: set(self._node_states()) == {"idle"}, "slurmctld")

    def stop(self) -> None:
        """Cancel all jobs, stop every daemon, wait until the last process is gone, and remove the scratch folder."""
        if "slurmctld" in self._daemons:
            with contextlib.suppress(subprocess.SubprocessError, ClusterError):
                self.clear()
        for name in list(self._daemons)[::-1]:
            self._stop_daemon(name)
        for pid in self._step_daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """End every job at once and wait until none is left in the queue."""
        user = f"--user={self.layout.user}"
        self.command("scancel", "--state=PENDING", user)
        self.command("scancel", "--signal=KILL", "--full", user)
        self.command("scancel", user)
        self._wait("the queue to be empty", lambda: not self.command("squeue", "--noheader").strip(), "slurmctld")

    def command(self, *arguments: str, timeout: float = 120.0) -> str:
        """Standard output of one of Slurm's commands on this cluster. CalledProcessError where it fails."""
        run = subprocess.run(
            arguments, env=self.environment, check=True, capture_output=True, text=True, timeout=timeout
        )
        return run.stdout

    def start_controller(self) -> None:
        """Start slurmctld; after `kill_controller` it comes back with the state it had saved."""
        self._spawn("slurmctld", ["slurmctld", "-D"])
        self._wait("slurmctld to answer", lambda: "UP" in self.command("scontrol", "ping"), "slurmctld")

    def mend(self) -> None:
        """Bring back what was killed, and have the partition take jobs, as at the start."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        for node in self.nodes:
            if f"slurmd-{node}" not in self._daemons:
                self.start_node(node)
        if not USABLE.issuperset(self._node_states()):
            for node in self.nodes:
                self._wait_for_node(node)
        self.command("scontrol", "update", "partitionname=main", "state=up")

    def kill_controller(self) -> None:
        """SIGKILL slurmctld, as when its machine goes down."""
        self._stop_daemon("slurmctld", signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        self._spawn(f"slurmd-{node}", ["slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """SIGKILL a node's slurmd and all the steps it had started, and tell the controller that the node is down."""
        self._stop_daemon(f"slurmd-{node}", signal.SIGKILL)
        for pid in self._step_daemons(node):
            _kill_tree(pid)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def restore_node(self, node: str) -> None:
        """Bring a killed node back and wait until it can be given jobs."""
        self.start_node(node)
        self._wait_for_node(node)

    def _wait_for_node(self, node: str) -> None:
        # Refused where the node has registered before and is back already, which is waited for.
        with contextlib.suppress(subprocess.CalledProcessError):
            self.command("scontrol", "update", f"nodename={node}", "state=resume")
        self._wait(f"{node} to be up", lambda: USABLE.issuperset(self._node_states(node)), f"slurmd-{node}")

    def _node_states(self, *nodes: str) -> list[str]:
        only = [f"--nodes={','.join(nodes)}"] if nodes else []
        return self.command("sinfo", "--noheader", "--Node", "--format=%T", *only).split()

    def _new_layout(self) -> Layout:
        controller, accounting, database, *nodes = _free_ports(3 + self._node_count)
        return Layout(
            folder=self.folder,
            user=getpass.getuser(),
            host=socket.gethostname().split(".")[0],
            controller_port=controller,
            accounting_port=accounting,
            database_port=database,
            node_ports=tuple(nodes),
            cpus_per_node=self._cpus_per_node,
        )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key": key, "socket": self.layout.munge_socket}
        files |= {name: self.folder / f"munge.{name}" for name in ("pid", "seed")}
        options = [f"--{name}-file={path}" for name, path in files.items() if name != "socket"]
        options += [f"--socket={files['socket']}", f"--log-file={self.folder / 'munged.log'}"]
        # --force: the scratch folder may lie below a world-writable /tmp, which munge warns about.
        self._spawn("munged", ["munged", "--foreground", "--force", *options])
        self._wait("munged to listen", self.layout.munge_socket.exists, "munged")

    def _start_database(self) -> None:
        data, scratch, password = self.folder / "database", self.folder / "scratch", secrets.token_hex(16)
        scratch.mkdir()
        # A server that starts removes every temporary table in its --tmpdir, those of another cluster's server too.
        account = [f"--user={self.layout.user}", f"--tmpdir={scratch}"]
        install = [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
        ]
        run = subprocess.run([*install, "--skip-test-db", *account], capture_output=True, text=True)
        if run.returncode != 0:
            raise ClusterError(f"{install[0]} ended with status {run.returncode} and said:\n{run.stderr}{run.stdout}")
        start = self.folder / "database.sql"
        start.touch(mode=0o600)
        start.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_accounting;\n"
            f"CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm_accounting.* TO 'slurm'@'127.0.0.1';\n"
            "CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '"
            f"{password}';\nGRANT ALL ON slurm_accounting.* TO 'slurm'@'localhost';\n"
        )
        options = [f"--datadir={data}", f"--socket={self.folder / 'database.socket'}", *account]
        options += ["--bind-address=127.0.0.1", f"--port={self.layout.database_port}", f"--init-file={start}"]
        options += [f"--pid-file={self.folder / 'database.pid'}", "--innodb-flush-log-at-trx-commit=0"]
        self._spawn("mariadbd", ["mariadbd", "--no-defaults", *options])
        self._wait("MariaDB to listen", lambda: _listens(self.layout.database_port), "mariadbd")
        configuration = self.folder / "slurmdbd.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(self.layout.accounting(password))
        # slurmdbd reads the file beside slurm.conf.
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self._wait("slurmdbd to listen", lambda: _listens(self.layout.accounting_port), "slurmdbd")

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        program = _find(command[0])
        assert program is not None
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )

    def _stop_daemon(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait(self, purpose: str, condition: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(subprocess.SubprocessError):
                if condition():
                    return
            daemon = self._daemons.get(name)
            if time.monotonic() > deadline or (daemon is not None and daemon.poll() is not None):
                raise ClusterError(f"waited in vain for {purpose}; {name} said:\n{self._last_words(name)}")
            time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        logs = [self.folder / f"{name}.{kind}" for kind in ("out", "log")]
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs if log.exists())

    def _step_daemons(self, node: str | None = None) -> list[int]:
        """Process ids of this cluster's slurmstepd, of one node or of all: they outlive their slurmd."""
        mark = f"SLURM_CONF={self.layout.configuration}".encode()
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if (process / "comm").read_text().strip() != "slurmstepd":
                    continue
                spool = f"{self.folder}/spool-{node}" if node else str(self.folder)
                if mark in (process / "environ").read_bytes() and (node is None or _holds(process, spool)):
                    found.append(int(process.name))
        return found


def _holds(process: Path, folder: str) -> bool:
    """Whether a process has a file of `folder` open or as its working directory."""
    links = [process / "cwd", *(process / "fd").iterdir()]
    for link in links:
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(folder):
                return True
    return False


def _kill_tree(pid: int) -> None:
    children: Mapping[int, list[int]] = _children()
    for child in children.get(pid, []):
        _kill_tree(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children() -> dict[int, list[int]]:
    tree: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                tree.setdefault(parent, []).append(int(process.name))
    return tree


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *DAEMON_FOLDERS]))


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, of those that no connection is given before a daemon has taken them."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(range(min(10_000, lowest - 1000), lowest), k=1000):
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                break
    return found


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
