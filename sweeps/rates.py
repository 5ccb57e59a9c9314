"""Learning rates that a sweep leaves to a law: how it says so, and who knows the law. Imports without torch."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, Field, WrapValidator

from xlstm.run.spec import Optimizer

LAW: Final = "law"

RateByLaw: TypeAlias = Callable[[str, str, int, int], float]
"""From the name of a fitted sweep, a family, parameters and tokens to the rate. ValueError says why there is none."""


def _number_or_law(value: Any, number: Callable[[Any], Any]) -> Any:
    return LAW if value == LAW else number(value)


class RateSettings(BaseModel):
    """The keys of a section that say the learning rate."""

    learning_rate: (
        Annotated[
            float,
            Field(gt=0),
            WrapValidator(_number_or_law, json_schema_input_type=Annotated[float, Field(gt=0)] | Literal["law"]),
        ]
        | None
    ) = Field(
        None,
        description=f"{Optimizer.model_fields['learning_rate'].description} `{LAW}` takes that of the fit that `{LAW}`"
        " names.",
    )
    law: str | None = Field(
        None,
        description="Submitted sweep whose law of the best rate (`scaling fit SWEEP --hyperparameters`)"
        f" `learning_rate: {LAW}` takes.",
    )
