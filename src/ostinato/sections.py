"""Sections of the configuration: what they have in common, and those that streams take as their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Command = Literal["resume", "learn"]
"""Commands that go on from a run."""


@dataclass(frozen=True)
class Changes:
    """Commands in which an option may have another value than the run was started with."""

    resume: bool
    learn: bool

    def within(self, command: Command) -> bool:
        """Whether a command may change the option."""
        return self.resume if command == "resume" else self.learn


MOVES = Changes(resume=True, learn=True)
"""Says where things are, what the machine has or how a defect is met: no result depends on it."""

RELEARNS = Changes(resume=False, learn=True)
"""Says how classes are learned: further classes may be learned otherwise."""

STAYS = Changes(resume=False, learn=False)
"""Belongs to what was learned."""


class Section(BaseModel):
    """A section of options; each field says in its annotation which commands may change it."""

    model_config = ConfigDict(extra="forbid")
    others: ClassVar[Changes | None] = None
    """The same of options that no field names; None where there are none."""


class StreamSection(Section):
    """``stream.*``: how classes are cut into tasks.

    Attributes:
        first: classes in the first task; None for as many as ``step``.
        step: classes in each further task; None for 10 where there are 50 classes or more, else a fifth of
            them, rounded up. The last task may be smaller.
        tasks: the class names of each task (a subset of all classes is fine), or "folders" for a task per
            folder; None to cut the order by ``first`` and ``step``.
        order: of the classes: "natural" is the source's, "seeded" a permutation by the seed, and "seed1993"
            the permutation of numpy's legacy generator with seed 1993 that most published tables use.
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
    """The part of ``data.*`` that says how many samples are kept, and for what.

    Attributes:
        validation: fraction of each class's training images; at least one where a class has two, 0 for none.
        limit_per_class: training images kept per class after the validation images were set aside.
        test_limit_per_class: test images scored per class, the same whatever the seed; for tables on slow machines.
        limit_per_task: training samples kept per task, each class in proportion to what it has (115,000 per data set in
            the literature on streams of texts).
        test_limit_per_task: the same of the test samples (7,600 there).
    """

    validation: Annotated[float, RELEARNS] = Field(0.1, ge=0, lt=1)
    limit_per_class: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    test_limit_per_class: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    limit_per_task: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    test_limit_per_task: Annotated[int | None, RELEARNS] = Field(None, ge=1)
