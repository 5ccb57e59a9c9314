"""What the analysis says besides numbers: refusals (no honest answer) and warnings (limits of the answer)."""

from dataclasses import dataclass


class RefusalError(ValueError):
    """The question cannot be answered honestly from these rows. `code` names why, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class FitWarning:
    """Something that limits what a fit may be used for."""

    code: str
    message: str

    def about(self, family: str) -> "FitWarning":
        """The same, beginning with the family that it is about."""
        return FitWarning(self.code, f"{family}: {self.message}")
