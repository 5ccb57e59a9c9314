"""`python -m cluster [-- COMMAND …]`: run a command, or a shell, beside a Slurm of its own."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.daemons import Cluster, ClusterError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("command", nargs="*", help="what to run; a shell if left out")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is stopped
    try:
        with (
            tempfile.TemporaryDirectory(prefix="slurm-") as folder,
            Cluster(Path(folder) / "cluster", nodes=options.nodes) as cluster,
        ):
            command = options.command or [os.environ.get("SHELL", "/bin/sh")]
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
