"""The configuration files of the one-machine cluster, as text: slurm.conf, cgroup.conf and slurmdbd.conf."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Where one cluster lies and where it listens: its scratch folder, its user, and ports that were free."""

    folder: Path
    user: str
    host: str
    controller_port: int
    accounting_port: int
    database_port: int
    node_ports: tuple[int, ...]
    cpus_per_node: int

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, len(self.node_ports) + 1))

    @property
    def configuration(self) -> Path:
        """slurm.conf; its folder is where Slurm looks for every other file."""
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge.socket"

    def slurm(self) -> str:
        """slurm.conf. Two partitions share the nodes; jobs of `urgent` preempt those of `main` by requeueing them.

        `SlurmdTimeout` is long, so that a node that is only slow keeps its jobs. `cred_expire` is short because Slurm
        lets a requeued job wait that long; `KillWait` is short so that a test of a job that ignores SIGTERM ends soon.
        """
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus_per_node} "
            "RealMemory=2000"
            for name, port in zip(self.nodes, self.node_ports, strict=True)
        )
        return f"""\
ClusterName=scratch
SlurmctldHost={self.host}(127.0.0.1)
SlurmctldPort={self.controller_port}
SlurmUser={self.user}
SlurmdUser={self.user}
AuthType=auth/munge
AuthInfo=socket={self.munge_socket},cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=300
MessageTimeout=20
InactiveLimit=0
KillWait=10
CompleteWait=0
MinJobAge=300
OverTimeLimit=0
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self.accounting_port}
AccountingStoragePass={self.munge_socket}
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP
"""

    def accounting(self, password: str) -> str:
        """slurmdbd.conf; it holds a password and must be readable by its owner alone."""
        return f"""\
AuthType=auth/munge
AuthInfo=socket={self.munge_socket}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self.accounting_port}
SlurmUser={self.user}
PidFile={self.folder}/slurmdbd.pid
LogFile={self.folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self.database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_accounting
"""
