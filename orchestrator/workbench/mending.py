"""Makes plans of submitted sweeps anew where they are damaged, from the sweeps as they were submitted."""

from sweeps.located import SweepError
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError


def mend_plan(workspace: Workspace, name: str) -> None:
    """Write the plan of a sweep anew where it is damaged; nothing happens to one that is sound, or not there.

    DamagedFileError where it cannot be made anew.
    """
    directory = workspace.sweep(name)
    try:
        directory.plan()
    except FileNotFoundError:
        return
    except DamagedFileError as damage:
        if damage.denied or not directory.sweep_file.is_file():
            raise
        from orchestrator.planning.plan import make_plan
        from sweeps.sweep import Sweep

        try:
            make_plan(Sweep.load(directory.sweep_file), workspace).save_document()
        except (SweepError, OSError):
            raise damage from None
