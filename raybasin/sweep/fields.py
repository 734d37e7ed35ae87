"""The types that values of a sweep file have; what is wrong with one is said in words that name no Python."""

from __future__ import annotations

import keyword
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raybasin.errors import nearest

T = TypeVar("T")


def _no_bool(value: Any) -> Any:
    """YAML's `yes` and `on` are booleans; as a number they would pass silently for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true/false")
    return value


def relative_name(value: str) -> str:
    if not value or not value[0].isalnum() or not all(c.isalnum() or c in "._-" for c in value):
        raise ValueError("must be letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return value


def listed(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def as_path(value: Any) -> Any:
    """From Python a path may be any that the standard library takes. An empty one would mean the folder that happens to
    be the current one: most often it is a variable of the shell that is not set."""
    if value == "":
        raise ValueError("is empty; name a path")
    if not isinstance(value, os.PathLike):
        return value
    path = os.fspath(value)
    if not isinstance(path, str):
        raise ValueError(f"must be text, not {path!r}")
    return path


def _reference(example: str) -> AfterValidator:
    """Of something in a Python module."""

    def check(value: str) -> str:
        module, colon, name = value.partition(":")
        if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise ValueError(f"must be package.module:{example}")
        return value

    return AfterValidator(check)


def plain(value: Any) -> Any:
    """What YAML and JSON both hold, and so what an id can be hashed from."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be text")
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"must be numbers, text, true/false, null, or lists and mappings of these, not {value!r}")


def _arguments(value: dict[str, Any]) -> dict[str, Any]:
    for key in value:
        if not key.isidentifier() or keyword.iskeyword(key):
            raise ValueError(f"{key!r} is not the name of an argument")
    return {key: plain(child) for key, child in value.items()}


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"holds {', '.join(repeated)} twice")
    return values


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[Int, Field(ge=1, lt=2**31)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Rate = Annotated[Float, Field(gt=0, le=1e6)]
Share = Annotated[Float, Field(gt=0, lt=1)]
Below1 = Annotated[Float, Field(ge=0, lt=1)]
Name = Annotated[str, AfterValidator(relative_name)]
PathText = Annotated[str, BeforeValidator(as_path)]
FunctionName = Annotated[str, _reference("function, for instance my_networks:small_cnn")]
ClassName = Annotated[str, _reference("Class, for instance ray.tune.search.optuna:OptunaSearch")]
Arguments = Annotated[dict[str, Any], AfterValidator(_arguments)]
Distinct = Annotated[tuple[T, ...], AfterValidator(unique)]
Several = Annotated[tuple[T, ...], BeforeValidator(listed), Field(min_length=1), AfterValidator(unique)]
Names = Several[str]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, tree: Any) -> Any:
        """Looked at first: a misspelt key also shows up as a missing one, and the misspelling is the cause."""
        for key in tree if isinstance(tree, Mapping) else ():
            if key not in cls.model_fields:
                said = f"{key}: unknown key{nearest(str(key), cls.model_fields)}"
                raise PydanticCustomError("extra_forbidden", "{said}", {"said": said})
        return tree

    def refuse(self, *keys: str, because: str) -> None:
        """Raises ValueError where one of `keys`, which have no effect, is given. (Defaults are let pass: the resolved
        sweep file has them all.)"""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: has no effect {because}")
