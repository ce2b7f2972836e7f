"""Base of the configuration's sections, and the sections of streams and of ``learn``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Command = Literal["resume", "learn"]
"""Commands that continue a run."""


@dataclass(frozen=True)
class Changes:
    """Commands that may change an option of a run."""

    resume: bool
    learn: bool

    def within(self, command: Command) -> bool:
        """Tell whether a command may change the option."""
        return self.resume if command == "resume" else self.learn


MOVES = Changes(resume=True, learn=True)
"""Option without effect on results: a path, a property of the machine, a reaction to defects."""

RELEARNS = Changes(resume=False, learn=True)
"""Option of training, which may differ for new classes."""

STAYS = Changes(resume=False, learn=False)
"""Option of the learned model."""


class Section(BaseModel):
    """Section of options; the annotation of a field names the commands that may change it."""

    model_config = ConfigDict(extra="forbid")
    others: ClassVar[Changes | None] = None
    """Commands that may change options without a field; None if there are no such options."""


MAX_DROP = 0.1
"""Fall of the accuracy on old classes beyond which a model is kept aside, unless ``learn.max_drop`` says otherwise."""


class LearnSection(Section):
    """``learn.*``: when ``learn`` keeps its model aside.

    Attributes:
        max_drop: largest fall of the accuracy on old classes; None for 0.1 where samples of them are given.
        accept: put the model in place whatever the checks say.
    """

    max_drop: Annotated[float | None, RELEARNS] = Field(None, ge=0, le=1)
    accept: Annotated[bool, RELEARNS] = False


class StreamSection(Section):
    """``stream.*``: division of classes into tasks.

    Attributes:
        first: classes in the first task; None for as many as ``step``.
        step: classes in each further task; None for 10 if there are 50 classes or more, else for a fifth, rounded up.
            The last task may be smaller.
        tasks: class names of each task, of all classes or some, or "folders" for a task per folder; None to use
            ``first`` and ``step``.
        order: class order: "natural" is that of the source, "seeded" a permutation by the seed, "seed1993" the
            permutation of numpy's legacy generator with seed 1993, as in most published tables.
    """

    first: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    step: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    tasks: Annotated[list[list[str]] | Literal["folders"] | None, RELEARNS] = None
    order: Annotated[Literal["natural", "seeded", "seed1993"], RELEARNS] = "natural"

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_or_folders(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "folders":
            raise PydanticCustomError("tasks", "Input should be lists of class names or 'folders'")
        return value


class SplitSection(Section):
    """Options of ``data.*`` for validation splits and sample limits.

    Attributes:
        validation: fraction of each class's training samples; at least one of two or more samples, 0 for none.
        limit_per_class: training samples per class, without validation samples.
        test_limit_per_class: test samples per class, the same for every seed; for tables on slow machines.
        limit_per_task: training samples per task, classes in proportion to their size (115,000 per data set in the
            literature on streams of texts).
        test_limit_per_task: test samples per task (7,600 there).
    """

    validation: Annotated[float, RELEARNS] = Field(0.1, ge=0, lt=1)
    limit_per_class: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    test_limit_per_class: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    limit_per_task: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    test_limit_per_task: Annotated[int | None, RELEARNS] = Field(None, ge=1)
