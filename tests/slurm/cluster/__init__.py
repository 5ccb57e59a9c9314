"""A real Slurm on one machine: controller, two node daemons, accounting. For tests, and for people who want to try."""

from cluster.daemons import Cluster, ClusterError, missing_programs

__all__ = ["Cluster", "ClusterError", "missing_programs"]
