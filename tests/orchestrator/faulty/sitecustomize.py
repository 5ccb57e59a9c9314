"""On PYTHONPATH, makes the first attempt of a run crash, hang, leak, be killed or lose its server at a step.

Which of them befalls which run says `faults.json` in its workspace.
"""

import json
import os
import resource
import signal
import sys
import time
from typing import Any

AT_STEP = 4

if "orchestrator.execution.warm" in sys.orig_argv:
    import psutil
    import torch

    from xlstm.training.trainer import Trainer

    step = Trainer._optimizer_step
    leaked: list[Any] = []

    def leak() -> None:
        """Leave behind what a process can leave to those that come after it in the same interpreter."""
        leaked.append(bytearray(200_000_000))
        leaked.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(100))
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        os.environ["MASTER_PORT"] = "1"
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        Trainer._add_gradients = None

    def faulty(trainer: Any, *arguments: Any) -> Any:
        fault = json.loads((trainer.run.path.parents[1] / "faults.json").read_text()).get(trainer.run.run_id)
        last = trainer.step + 1 == trainer.spec.physics.steps
        if trainer.attempt == 1 and trainer.step == AT_STEP:
            if fault == "crash":
                os.abort()
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "server":
                os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
                time.sleep(1e6)
            if fault == "hang":
                time.sleep(1e6)
        result = step(trainer, *arguments)
        if fault == "leak" and last:
            leak()
        return result

    Trainer._optimizer_step = faulty
