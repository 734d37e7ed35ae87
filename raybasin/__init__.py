"""Maps the basin of a pre-trained checkpoint: StarSSE ensembles, soups and barriers, swept with Ray, kept in Parquet.

report = raybasin.run("sweeps/digits.yaml", "results/digits")     # in this process, without Ray
made = raybasin.pretrain("sweeps/digits.yaml", "results/digits")  # only the checkpoints that it declares
results = raybasin.open("results/digits")                         # pandas: .cells, .scores, .paths, ...
log_probs_MNC = raybasin.log_probs(results, cell_id, "test")
"""

from typing import TYPE_CHECKING, Any

from raybasin.errors import UserError

if TYPE_CHECKING:
    from raybasin.analysis.results import log_probs, open
    from raybasin.jobs.local import pretrain, run

__all__ = ["UserError", "__version__", "log_probs", "open", "pretrain", "run"]
__version__ = "0.1.0"

_HOMES = {"run": "raybasin.jobs.local", "pretrain": "raybasin.jobs.local", "open": "raybasin.analysis.results",
          "log_probs": "raybasin.analysis.results"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads a room when it is first used, so that reading tables does not wait for torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'raybasin' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
