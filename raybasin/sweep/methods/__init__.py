"""The exploration methods, one in each file: found by their files, so that another one is a file more and no entry."""

from __future__ import annotations

import importlib
import pkgutil

from raybasin.sweep.methods.method import MAX_MEMBERS, Method, Role

__all__ = ["MAX_MEMBERS", "METHODS", "Method", "Role", "explores", "exploring", "found", "label", "variant"]


def found() -> dict[str, type[Method]]:
    """The methods in the files of this folder, by name, in the order in which they are shown."""
    named: dict[str, type[Method]] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        methods = [value for value in own if isinstance(value, type) and issubclass(value, Method)]
        if file.name != "method":
            (named[file.name],) = methods
    return dict(sorted(named.items(), key=lambda item: (item[1].place, item[0])))


METHODS: dict[str, type[Method]] = found()


def exploring() -> list[str]:
    """The methods that have a rate and a length of their own, and so a map."""
    return [name for name, method in METHODS.items() if method.explores]


def variant(method: Method) -> str:
    """The method's own keys that are not at their default, as `key=value`; empty where all are."""
    fields = type(method).model_fields
    own = sorted((key, getattr(method, key)) for key in fields.keys() - Method.model_fields.keys())
    return " ".join(f"{key}={value:g}" for key, value in own if value is not None and value != fields[key].default)


def label(method: str, variant: str) -> str:
    """A method as it is shown: variants are told apart like methods."""
    return f"{method} {variant}".strip()


def explores(label: str) -> bool:
    """Whether cells of this method (or label) have a rate and a length of their own."""
    return label.split(" ")[0] in exploring()
