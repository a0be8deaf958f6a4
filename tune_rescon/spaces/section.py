"""What every section of a space file is: strict, frozen, and helpful about a key that it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from tune_rescon.errors import unknown_name
from tune_rescon.spaces.problems import Problem, raise_problems

__all__ = ["FROM_LIST", "PositiveInt", "Section", "Value"]

#: A list in the file (``step_fractions``) is a tuple here; everything else is judged by its field's rule.
Value = Annotated[Any, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

#: A YAML list is no tuple to strict pydantic; its items stay strict.
FROM_LIST: Final = Field(strict=False)

PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the file: frozen, strict, and an unknown key is answered with the known ones."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    #: Another tool's word -> what to write in this section's place.
    foreign: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys this section may hold, in order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="wrap")
    @classmethod
    def _judge(cls, data: Any, handler: ModelWrapValidatorHandler[Section]) -> Section:
        known = cls.keys()
        strangers = [key for key in data if key not in known] if isinstance(data, dict) else []
        problems = [Problem(path=(key,), text=cls._answer(key)) for key in strangers]
        try:
            section = handler({key: data[key] for key in data if key in known} if strangers else data)
        except ValidationError as error:
            raise_problems(cls.__name__, problems, error)
            raise
        raise_problems(cls.__name__, [*problems, *section.broken_rules()])
        return section

    @classmethod
    def _answer(cls, key: str) -> str:
        answer = unknown_name("key", key, cls.keys())
        return f"{answer} That is another tool's word: {cls.foreign[key]}." if key in cls.foreign else answer

    def broken_rules(self) -> Iterator[Problem]:
        """The rules between this section's values that they break."""
        yield from ()
