"""`design`: what an adaptive sweep is to find out, and what it may spend. Imports without torch."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from sweeps.section import Count, Positive, Section, as_list


class Target(Section):
    """A model whose loss is to be known."""

    parameters: Count = Field(description="N, all parameters.")
    tokens: Count = Field(description="D, training tokens.")


class Budget(Section):
    """The most that is spent on runs, as the plan counts them."""

    flops: Positive | None = Field(None, description="Exact training FLOPs.")
    device_hours: Positive | None = Field(None, description="Hours of a device.")

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if (self.flops is None) is (self.device_hours is None):
            raise ValueError("a budget is in flops or in device_hours, and in one of them")
        return self


def _as_budget(value: Any) -> Any:
    return {"flops": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Design(Section):
    """Makes the points a pool, of which runs are bought one after another, each chosen by what those before it told."""

    target: Annotated[list[Target], BeforeValidator(as_list, json_schema_input_type=Target | list[Target])] = Field(
        min_length=1, description="What is to be predicted: one N and D, or a list of them."
    )
    until: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Half the width of each target's interval for a new run, over its loss, at which it ends; left "
        "out, when the budget is spent, or without one when no run is worth its cost.",
    )
    budget: Annotated[Budget, BeforeValidator(_as_budget, json_schema_input_type=float | Budget)] | None = Field(
        None, description="The most that is spent: FLOPs, or a mapping that says flops or device_hours."
    )
    first: Count | None = Field(
        None, description="Runs of each family to begin with; left out, two more than the law has parameters."
    )
    form: str = Field("auto", description="The law's form, as of `scaling fit --form`.")
    at_once: Count | None = Field(
        None, description="The most runs at a time; left out, as many as there are idle devices, and 4 on Slurm."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the draws by which runs are chosen.")
