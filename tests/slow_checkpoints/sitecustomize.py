"""On PYTHONPATH, makes every trainer take 75 s over each of its checkpoints."""

import sys
import time
from typing import Any

trainers = {"xlstm.training", "orchestrator.execution.warm"}
if trainers & set(sys.orig_argv) and "torch.distributed.run" not in sys.orig_argv:
    from xlstm.training.checkpoints import Checkpointer

    commit = Checkpointer._commit

    def slow(*arguments: Any) -> None:
        time.sleep(75)
        commit(*arguments)

    Checkpointer._commit = slow
