"""Which point is measured next, pure: the basin's boundary by as few epochs as it takes, with its certainty."""

from raybasin.search.boundary import BoundarySearch

__all__ = ["BoundarySearch"]
