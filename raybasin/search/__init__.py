"""Which point is measured next, pure: the basin's boundary or the best point, by few epochs, and how sure it is.

`BoundarySearch` (`boundary.py`) chooses and answers, by what `line_model.py` knows of the line and `look_ahead.py`
foresees of further cells; `BestSearch` (`best.py`) does so for the largest score.
"""

from raybasin.search.best import Best, BestSearch
from raybasin.search.boundary import BoundarySearch

__all__ = ["Best", "BestSearch", "BoundarySearch"]
