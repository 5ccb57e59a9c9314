"""What the workspace's own store shows of a sweep, read by SQL without mlflow, which takes seconds to import.

With thousands of runs most calls find nothing to do; that is told from here. Nothing is written. Where the store is not
as expected (another version's tables, artifacts of another place), nothing is known, and mlflow's client is asked.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from xlstm.run.tracking.charts import MODEL_TRAINING, TAGS

PUBLISHED = "published"
"""Tag of a parent run: what the plan, ledger and law among its artifacts were made from."""


@dataclass(frozen=True)
class Shown:
    """The experiment of a sweep, as far as it is not deleted."""

    experiment: str
    parent: str | None
    published: str
    children: Mapping[str, tuple[str, ...]]
    """MLflow's ids by ours."""

    @cached_property
    def active(self) -> frozenset[str]:
        """MLflow's ids of every child."""
        return frozenset(child for children in self.children.values() for child in children)


def lies_with(tracking_uri: str, artifacts: Path | None) -> bool:
    """Whether a store is the embedded one of the workspace that keeps its artifacts there."""
    if artifacts is None or not tracking_uri.startswith("sqlite:///"):
        return False
    return Path(tracking_uri.removeprefix("sqlite:///")).parent.resolve() == artifacts.parent.resolve()


def is_ready(tracking_uri: str, artifacts: Path) -> bool:
    """Whether a workspace's own store was initialised, and keeps its files in this workspace."""
    with contextlib.suppress(sqlite3.Error), _connection(tracking_uri, artifacts) as connection:
        known = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        elsewhere = (name for name, location in known if (location or "").endswith(f"/{artifacts.name}/{quote(name)}"))
        places = dict(known)
        return all(places[name] == (artifacts / name).as_uri() for name in elsewhere)
    return False


def experiments(tracking_uri: str, artifacts: Path) -> dict[str, str] | None:
    """Ids of the experiments that hold sweeps, by name; None where that is not known."""
    ((key, value),) = MODEL_TRAINING.items()
    with contextlib.suppress(sqlite3.Error), _connection(tracking_uri, artifacts) as connection:
        found = connection.execute(
            "SELECT name, e.experiment_id FROM experiments e JOIN experiment_tags t "
            "ON t.experiment_id = e.experiment_id WHERE lifecycle_stage = 'active' AND t.key = ? AND t.value = ?",
            (key, value),
        )
        return {name: str(experiment) for name, experiment in found}
    return None


def shown(sweep: str, tracking_uri: str, artifacts: Path) -> Shown | None:
    """What the store shows of a sweep; None where that is not known."""
    with contextlib.suppress(sqlite3.Error), _connection(tracking_uri, artifacts) as connection:
        found = connection.execute(
            "SELECT experiment_id FROM experiments "
            "WHERE name = ? AND artifact_location = ? AND lifecycle_stage = 'active'",
            (sweep, (artifacts / sweep).as_uri()),
        ).fetchone()
        if found is None:
            return None
        tags = connection.execute("SELECT key, value FROM experiment_tags WHERE experiment_id = ?", found)
        if not TAGS.items() <= dict(tags).items():
            return None  # made by a version with another view
        rows = connection.execute(
            "SELECT r.run_uuid, t.key, t.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
            "WHERE r.experiment_id = ? AND r.lifecycle_stage = 'active' "
            f"AND t.key IN ('run_id', 'kind', '{PUBLISHED}') "
            "ORDER BY r.start_time, r.run_uuid",
            found,
        ).fetchall()
        parent = next((run for run, key, value in rows if (key, value) == ("kind", "sweep")), None)
        published = {run: value for run, key, value in rows if key == PUBLISHED}
        children: dict[str, tuple[str, ...]] = {}
        for run, key, value in rows:
            if key == "run_id":
                children[value] = (*children.get(value, ()), run)
        return Shown(str(found[0]), parent, published.get(parent or "", ""), children)
    return None


@contextlib.contextmanager
def _connection(tracking_uri: str, artifacts: Path) -> Iterator[sqlite3.Connection]:
    """The store opened for reading. sqlite3.Error where it is not the workspace's own, or not there."""
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if not lies_with(tracking_uri, artifacts) or not path.is_file():
        raise sqlite3.OperationalError(f"{path} is no store of this workspace")
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        yield connection
