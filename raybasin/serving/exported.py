"""Which of a cell's predictors leaves the results folder, and what the folder knows of it: its scores with intervals,
its temperature, how it was chosen, what it is better than. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from raybasin.analysis import comparisons
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError, nearest, one_line
from raybasin.metrics import cell_scores, intervals
from raybasin.serving import export
from raybasin.sweep import ids as naming
from raybasin.sweep.settings import OWN_SPLITS

WHATS = ("soup", "greedy_soup", "ensemble", "hub")
SOUPS = {"soup": "uniform", "greedy_soup": "greedy"}
"""The kinds of soup (`export.KINDS`) by what is asked for."""
Tree = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A predictor of a cell, of WHATS, and in words how that cell was chosen."""

    results: Results
    what: str
    cell: Tree
    how: str

    @property
    def members(self) -> list[str]:
        """The ids of the networks that it is made of, in their order."""
        if self.what in SOUPS:
            return export.ingredients(self.cell, SOUPS[self.what])
        member_ids = [str(member_id) for member_id in self.cell["member_ids"]]
        return member_ids if self.what == "ensemble" else [member_ids[member_index(self.what)]]

    @property
    def bn(self) -> str:
        """Whose batch-norm statistics the weights have: as `cells` has its scores."""
        has_batch_norm = self.results.stored.facts.batch_norm
        return cell_scores.statistics(has_batch_norm)[-1] if self.what in SOUPS else cell_scores.OWN

    @property
    def predictor_id(self) -> str:
        member_ids = list(self.cell["member_ids"])
        if self.what in SOUPS:
            return naming.soup_id(SOUPS[self.what], member_ids)
        return cell_scores.ensemble_id(member_ids) if self.what == "ensemble" else self.members[0]

    @property
    def kind(self) -> str:
        """What the table `scores` calls it."""
        if self.what in SOUPS:
            return f"{SOUPS[self.what]}_soup"
        return "ensemble" if self.what == "ensemble" else "member"

    @property
    def temperature(self) -> float:
        """Fitted on validation; NaN where the folder holds no scores of it."""
        return export.temperature(self.results, str(self.cell["cell_id"]), self.predictor_id, self.kind)


@dataclass(frozen=True)
class Network:
    """One network of a predictor: its place inside an exported folder, its file as it is stored, its metadata."""

    place: str
    content: bytes
    facts: dict[str, str]


def member_index(what: str) -> int:
    """Of `hub`, which is member 0, or of `member-K`. Raises UserError for another text."""
    number = "0" if what == "hub" else what.removeprefix("member-")
    if not (number.isascii() and number.isdigit()):
        choices = (*WHATS, "member-0")
        raise UserError(f"--what {what}: must be {', '.join(WHATS)} or member-K, 0 is the hub{nearest(what, choices)}")
    return int(number)


def choose(results: Results, what: str, cell_id: str | None) -> Chosen:
    """The predictor of a cell, by default of that which is best on validation. Raises UserError."""
    chosen = _choose(results, what, cell_id)
    if what not in (*SOUPS, "ensemble") and member_index(what) >= chosen.cell["n_members"]:
        raise UserError(
            f"--what {what}: cell {chosen.cell['cell_id']} has {chosen.cell['n_members']} members, counted from 0"
        )
    return chosen


def networks(chosen: Chosen) -> Iterator[Network]:
    """One after another, since an ensemble need not fit into memory. Raises UserError for weights that are gone."""
    results, cell, what = chosen.results, chosen.cell, chosen.what
    if what in SOUPS:
        yield Network("", *export.soup_of(results, cell, SOUPS[what]))
    elif what == "ensemble":
        for index in range(len(chosen.members)):
            yield Network(f"member-{index}", *export.member_of(results, cell, index))
    else:
        yield Network("", *export.member_of(results, cell, member_index(what)))


def _choose(results: Results, what: str, cell_id: str | None) -> Chosen:
    if cell_id is not None:
        return Chosen(results, what, _row(reading.cell_of(results, cell_id)), "named by --cell")
    has_soups = bool(reading.committed(results)["val_soup_accuracy"].notna().any())
    of = "ensemble" if what == "ensemble" or (what not in SOUPS and not has_soups) else "soup"
    point = {"soup": "uniform soups are", "ensemble": "ensembles are"}[of]
    best = str(reading.best_cell(results, of)["cell_id"])  # in the metric of the data set, which `cells` is not
    how = f"best on validation (the lowest replicate of the point whose {point} best there, mean over replicates)"
    return Chosen(results, what, _row(reading.cell_of(results, best)), how)


def _row(cell: pd.Series[Any]) -> Tree:
    return {str(key): value for key, value in cell.to_dict().items()}


# What is known of it


def about(chosen: Chosen) -> Tree:
    """The content of scores.json."""
    results, cell = chosen.results, chosen.cell
    facts = results.stored.facts
    rows = _score_rows(chosen)
    return plain({
        "what": chosen.what,
        "cell": {name: cell[name] for name in ("cell_id", "method", "checkpoint", "lr_ratio", "cycle_ratio",
                                               "max_lr", "cycle_epochs", "n_members", "replicate")},
        "replicates": results.stored.spec.replicates,
        "chosen": chosen.how,
        "sweep": results.stored.spec.name,
        "settings_id": results.settings_id,
        "members": chosen.members,
        "batch_norm": chosen.bn if facts.batch_norm else None,
        "metric": facts.data.metric,
        "temperature": {"value": chosen.temperature, "fitted_on": "val", "n_images": facts.data.n_val},
        "scores": {str(row["split"]): _scores(chosen, row) for row in rows.to_dict("records")},
        "comparisons": list(_compared(chosen)),
    })  # fmt: skip


def _score_rows(chosen: Chosen) -> pd.DataFrame:
    """Its rows of `scores`, on test and then on the shift sets; validation, which has chosen it, is left out."""
    rows = chosen.results.scores
    of_it = (rows["cell_id"] == chosen.cell["cell_id"]) & (rows["predictor_id"] == chosen.predictor_id)
    found = rows[of_it & (rows["kind"] == chosen.kind) & (rows["bn"] == chosen.bn) & (rows["split"] != "val")]
    return found.sort_values("split", key=lambda splits: splits != "test", kind="stable")


def _scores(chosen: Chosen, row: Mapping[Any, Any]) -> Tree:
    """On one split. Intervals are over its images; where their predictions were not stored there are none."""
    metric, split = chosen.results.stored.facts.data.metric, str(row["split"])
    found: Tree = {"n_images": _n_images(chosen.results, split)}
    for name in dict.fromkeys(("accuracy", metric, "nll")):
        found[name] = {"value": row[name], **_interval(chosen, split, name)}
    return found | {name: {"value": row[name]} for name in ("calibrated_nll", "ece")}


def _interval(chosen: Chosen, split: str, metric: str) -> Tree:
    try:
        values_N = comparisons.of_images(chosen.results, str(chosen.cell["cell_id"]), chosen.what, split, metric)
        low, high = intervals.of_mean(values_N, share=metric == "accuracy")
    except (UserError, ValueError):  # they were not stored, or are of a single image
        return {"low": None, "high": None}
    return {"low": low, "high": high}


def _n_images(results: Results, split: str) -> int | None:
    facts = results.stored.facts
    if split in OWN_SPLITS:
        return facts.data.n_test if split == "test" else facts.data.n_val
    return next((shift.n_images for shift in facts.shifts if shift.name == split), None)


def _compared(chosen: Chosen) -> Iterator[Tree]:
    """Its point against the hub and the Local Deep Ensemble, over all replicates there are, and these very weights
    against those of the same replicate; where that is not known, why."""
    cell, metric = chosen.cell, chosen.results.stored.facts.data.metric
    point = {"of": chosen.what, "checkpoint": cell["checkpoint"]}
    if chosen.what != "hub":
        point |= {name: cell[name] for name in ("method", "lr_ratio", "cycle_ratio", "n_members")}
    for baseline, against in _baselines(chosen).items():
        for name in (metric, "nll"):
            told = {"baseline": baseline, "split": "test", "metric": name}
            try:
                found = comparisons.compare(chosen.results, point, against, metric=name)
            except UserError as error:
                yield told | {"verdict": None, "why_not": one_line(error)}
            else:
                known = {**asdict(found), "knows": list(found.knows)}
                yield told | known | {"these_weights": _of_these_weights(chosen, against, name)}


def _of_these_weights(chosen: Chosen, against: Tree, metric: str) -> Tree:
    """The difference in the exported replicate alone, with its interval over images."""
    cells, own = chosen.results.cells, str(chosen.cell["cell_id"])
    beside = cells[cells["replicate"] == chosen.cell["replicate"]]
    for column in ("method", "checkpoint", "n_members"):
        beside = beside[beside[column] == against[column]] if column in against else beside
    other = own if against["of"] == "hub" else str(beside["cell_id"].iloc[0]) if len(beside) else None
    if other is None:
        return {"verdict": None, "why_not": "not of this replicate"}
    a_N, b_N = (
        comparisons.of_images(chosen.results, cell_id, of, "test", metric)
        for cell_id, of in ((own, chosen.what), (other, str(against["of"])))
    )
    better: Literal["higher", "lower"] = "lower" if metric == "nll" else "higher"
    found = intervals.interval([(a_N - b_N)[None]], better=better, step=0.0 if metric == "nll" else 1.0)
    return {name: getattr(found, name) for name in ("estimate", "low", "high", "verdict")}


def _baselines(chosen: Chosen) -> dict[str, Tree]:
    """What is in the folder to compare with: the hub, and the local_de ensemble of equal size."""
    cells, cell = chosen.results.cells, chosen.cell
    like = {"checkpoint": cell["checkpoint"], "n_members": cell["n_members"]}
    found: dict[str, Tree] = {}
    if chosen.what != "hub":
        found["hub"] = {"of": "hub", "checkpoint": cell["checkpoint"]}
    local_de = cells[(cells["method"] == "local_de") & (cells["n_members"] == cell["n_members"])]
    is_itself = chosen.what == "ensemble" and cell["method"] == "local_de"
    if (local_de["checkpoint"] == cell["checkpoint"]).any() and not is_itself:
        found["local_de ensemble"] = {"method": "local_de", "of": "ensemble", **like}
    return found


def plain(value: Any) -> Any:
    """The same for JSON, which has no NaN (null) and no infinity (the text inf)."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or value is pd.NA or isinstance(value, str | bool):
        return None if value is pd.NA else value
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
