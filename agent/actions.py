"""The closed set of actions. The policy chooses options; sites are chosen by `selection`, never by the policy."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from llm_qfl.federation.config_agent import Selection


class Budget(Enum):
    """The local budget of every chosen site: a scale of its last one, or optimizer steps."""

    HALF = "x0.5"
    LESS = "x0.75"
    SAME = "x1"
    MORE = "x1.25"
    MUCH_MORE = "x1.5"
    DOUBLE = "x2"
    STEPS_1 = "1"
    STEPS_2 = "2"
    STEPS_5 = "5"
    STEPS_10 = "10"
    STEPS_20 = "20"

    @property
    def scale(self) -> float | None:
        """The factor, where it is one."""
        return float(self.value[1:]) if self.value.startswith("x") else None

    @property
    def steps(self) -> int | None:
        """The steps, where it is a number of them."""
        return None if self.value.startswith("x") else int(self.value)


class Clients(Enum):
    """How many sites train."""

    TWO = "2"
    THREE = "3"
    FOUR = "4"
    FIVE = "5"
    SEVEN = "7"
    TEN = "10"
    FIFTEEN = "15"
    ALL = "all"

    def count(self, there: int) -> int:
        """K, where so many are there."""
        return there if self is Clients.ALL else int(self.value)


class Select(Enum):
    """How they are chosen; with all of them it makes no difference."""

    ALIGN = "align"
    OORT = "oort"
    RANDOM = "random"

    @property
    def mode(self) -> Selection:
        """As in `agent.select`."""
        modes: dict[str, Selection] = {"align": "align", "oort": "oort", "random": "random"}
        return modes[self.value]


class Lambda(Enum):
    """Weight of the soft labels in the QNN's loss."""

    NONE = "0"
    LOW = "0.1"
    MIDDLE = "0.3"
    HIGH = "0.5"

    @property
    def weight(self) -> float:
        """The number."""
        return float(self.value)


class Shots(Enum):
    """Shots of every circuit, at sites whose backend samples."""

    FEW = "128"
    SOME = "512"
    MANY = "2048"
    CONFIGURED = "configured"

    def of(self, configured: int) -> int:
        """The number."""
        return configured if self is Shots.CONFIGURED else int(self.value)


class Halt(Enum):
    """Shall the run end before this round?"""

    GO_ON = "no"
    STOP = "yes"


class Action(BaseModel):
    """One decision: an option of every field. Closed, frozen, nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    budget: Budget
    clients: Clients
    select: Select
    weight: Lambda
    shots: Shots
    stop: Halt

    FIELDS: ClassVar[Mapping[str, type[Enum]]] = {
        "budget": Budget,
        "clients": Clients,
        "select": Select,
        "weight": Lambda,
        "shots": Shots,
        "stop": Halt,
    }

    @classmethod
    def at(cls, options: Mapping[str, int]) -> Action:
        """The action of option numbers, field by field.

        Raises:
            pydantic.ValidationError: a field is missing or unknown.
            IndexError: no such option.
        """
        chosen: dict[str, Any] = {
            name: list(cls.FIELDS[name])[number] if name in cls.FIELDS and number >= 0 else number
            for name, number in options.items()
        }
        return cls.model_validate(chosen)

    def options(self) -> dict[str, int]:
        """The number of the chosen option, field by field."""
        return {name: list(kind).index(getattr(self, name)) for name, kind in self.FIELDS.items()}

    def words(self) -> dict[str, str]:
        """The chosen options as words, for the log."""
        return {name: str(getattr(self, name).value) for name in self.FIELDS}


FIELDS = Action.FIELDS
SIZES: Mapping[str, int] = {name: len(kind) for name, kind in FIELDS.items()}
