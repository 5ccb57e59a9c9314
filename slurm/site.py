"""What a site and a sweep ask of Slurm: partition, account, time, GPUs, set-up lines, container.

A site's settings stand under `slurm:` in `~/.config/scaling/config.yaml` (the user's) and in `config.yaml` of the
workspace, which wins; a run's own stand under `resources: … set: {slurm: {…}}` of the sweep and win over both. A sweep
may choose options that sbatch takes as values; only a site file may hold text that a shell runs (`setup`, `python`,
`container`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xlstm.quantities import nearest
from xlstm.run.directory import Workspace

_OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")
_OWN_OPTIONS = frozenset(
    {
        *("array", "chdir", "comment", "dependency", "error", "job-name", "kill-on-invalid-dep", "nodes", "ntasks"),
        *("ntasks-per-node", "open-mode", "output", "requeue", "no-requeue", "signal", "wrap"),
    }
)
"""Options of sbatch by which runs are found, resumed and judged; nobody else sets them."""


class SiteError(ValueError):
    """A setting for Slurm that is not valid: which file, which key, and what would be right."""


def _one_line(value: str) -> str:
    """A value that fits on one line of a script: a line break would start a command."""
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError(f"{value!r} holds a control character; an option of sbatch is one line of text")
    return value


Text = Annotated[str, AfterValidator(_one_line), Field(min_length=1)]

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}|infinite|unlimited", re.IGNORECASE)


def _as_sbatch_reads(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError(f"{value!r} is no limit of time; write minutes, such as 90, or D-HH:MM:SS")
    return value


Minutes = Annotated[
    Text,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    AfterValidator(_as_sbatch_reads),
]


class Options(BaseModel):
    """Options of sbatch that a run may choose. What is left out is the site's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    gres: Text | None = Field(None, description="Asked for per node, instead of --gpus-per-node.")
    nodelist: Text | None = None
    exclude: Text | None = None
    mem: Text | None = Field(None, description="Memory per node, such as 64G; 0 for all of it.")
    time: Minutes | None = Field(
        None, description="Limit of one job, in minutes or as D-HH:MM:SS; a run may take many jobs."
    )
    cpus_per_task: int | None = Field(
        None, gt=0, description="Cores per node; default: threads times ranks of the node."
    )
    exclusive: bool | None = None
    signal_seconds: int = Field(120, ge=1, le=65535, description="How long before the limit a checkpoint is asked for.")
    sbatch: dict[str, Text] = Field(
        default_factory=dict, description="Further options of sbatch: name without dashes to value."
    )

    @field_validator("sbatch")
    @classmethod
    def _further_options_are_options(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _OPTION_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no option of sbatch; write its long name without dashes in front")
            if name in _OWN_OPTIONS:
                raise ValueError(f"{name} is set by this program and cannot be changed")
            if name.replace("-", "_") in cls.model_fields:
                raise ValueError(f"{name} has a key of its own: write `{name.replace('-', '_')}:`")
        return value


class Site(Options):
    """A site's settings: defaults for every run, and what its machines need before Python starts."""

    setup: list[str] = Field(default_factory=list, description="Lines of shell run first, such as `module load cuda`.")
    python: Text | None = Field(
        None, description="The shell's words that start Python in the job; default: this Python."
    )
    container: list[Text] = Field(
        default_factory=list, description="Words before Python on every node, such as apptainer exec --nv IMAGE."
    )
    container_python: Text | None = Field(
        None, description="Python inside the container; default: python3 of its PATH."
    )
    srun: list[Text] = Field(
        default_factory=list, description="Further options of srun, such as --container-image=IMAGE."
    )
    array_parallelism: int = Field(256, gt=0, description="Largest number of runs of one array at a time.")

    @model_validator(mode="after")
    def _setup_lines_are_lines(self) -> Self:
        for line in self.setup:
            if "\n" in line or "\0" in line:
                raise ValueError("each entry of setup is one line of shell; write several entries")
        return self

    @property
    def task_python(self) -> str:
        """What starts Python on every node; empty for the Python of the job itself."""
        return self.container_python or ("python3" if self.container else "")

    @classmethod
    def load(cls, workspace: Workspace) -> "Site":
        """The settings of the user and of the workspace. SiteError names the file and key of what is wrong."""
        merged: dict[str, Any] = {}
        home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        for path in (Path(home) / "scaling" / "config.yaml", workspace.root / "config.yaml"):
            merged |= _read(path)
        return _validated(cls, merged, "slurm")

    def for_run(self, choice: Mapping[str, Any]) -> "Site":
        """These settings with a run's own choice laid over them. SiteError for what a run may not set."""
        chosen = _validated(Options, choice, "resources.slurm")
        stated = {name: getattr(chosen, name) for name in chosen.model_fields_set}
        if "sbatch" in stated:
            stated["sbatch"] = self.sbatch | stated["sbatch"]
        return self.model_copy(update=stated)


_Settings = TypeVar("_Settings", bound=Options)


def _read(path: Path) -> dict[str, Any]:
    """The mapping under `slurm:` of one file; empty where the file or the key is absent."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError(f"{path}: cannot be read: {error}") from None
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 2)
    try:
        content = reader.load(text) or {}
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SiteError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {what}") from None
    if isinstance(content, dict) and (unknown := [str(key) for key in content if key != "slurm"]):
        raise SiteError(f"{path}: `{unknown[0]}` is no key of this file; {nearest(unknown[0], ['slurm'])}")
    section = content.get("slurm") or {} if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise SiteError(f"{path}: `slurm` must be a mapping of settings such as partition and account")
    _validated(Site, section, f"{path}: slurm")
    return section


def _validated(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SiteError("\n".join(f"{where}.{said}" for _, said in _problems(kind, error))) from None


def wrong_choices(choice: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """What of a run's own choice is no setting: where in it, and what is wrong, which begins with the key."""
    try:
        Options.model_validate(choice)
    except ValidationError as error:
        return list(_problems(Options, error))
    return []


def _problems(kind: type[Options], error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"])
        unknown = detail["type"] == "extra_forbidden"
        said = f"no such setting; {nearest(key, kind.model_fields)}" if unknown else detail["msg"]
        yield detail["loc"], f"{key}: {said.removeprefix('Value error, ')}"
