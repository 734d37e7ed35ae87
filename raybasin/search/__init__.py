"""Which point is measured next, pure: the basin's boundary by few epochs, and how well it is known.

`BoundarySearch` (`boundary.py`) chooses and answers, by what `line_model.py` knows of the line and `look_ahead.py`
foresees of further cells.
"""

from raybasin.search.boundary import BoundarySearch

__all__ = ["BoundarySearch"]
