"""YAML without its surprises, for sweep files and for those that are stored."""

from __future__ import annotations

from typing import Any

import yaml

from raybasin.errors import UserError


class _Loader(yaml.SafeLoader):
    """A key given twice is an error, and there are no aliases to expand without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Base 8 and base 60 are nobody's wish: `00010` would be 8 and `1:30` would be 90."""
        digits = node.value.lstrip("+-").replace("_", "")
        if ":" in digits or (digits.isdigit() and digits.startswith("0") and len(digits) > 1):
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: {node.value} is {super().construct_yaml_int(node)} in YAML; "
                "put a name in quotes, and write a number without zeros before it"
            )
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node.value, str):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key '{key_node.value}' is given twice")
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def plain_yaml(content: bytes | str, source: str) -> Any:
    """The plain values that a YAML text from `source` holds. Raises UserError."""
    try:
        loader = _Loader(content)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        what = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"{source}:{where} not valid YAML: {' '.join(what.split())}") from error
