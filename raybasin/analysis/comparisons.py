"""Differences with their intervals, from stored predictions: of any two points, and of every point of the map from what
it is to beat.

Axes: M members, R replicates, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybasin.analysis import results as reading
from raybasin.analysis.quantities import counted
from raybasin.analysis.results import GAINS, NLL_GAINS, Results
from raybasin.errors import UserError, nearest
from raybasin.metrics import classification, intervals
from raybasin.metrics.cell_scores import OWN, REESTIMATED
from raybasin.metrics.intervals import Interval, Variance
from raybasin.metrics.scores import Ensemble, Networks
from raybasin.metrics.selection import POINT
from raybasin.store import tables
from raybasin.store.predictions import predicted
from raybasin.sweep import ids as naming

Float64Array = npt.NDArray[np.float64]
Point = str | Mapping[str, Any]
"""A method's label or `hub`, or some of the columns `POINT`, `of` (see `PREDICTORS`) and `bn`."""

PREDICTORS = ("ensemble", "soup", "greedy_soup", "hub")
METRICS = ("accuracy", "mean_class_accuracy", "nll")
BETTER: Mapping[str, Literal["higher", "lower"]] = {
    metric: "lower" if metric == "nll" else "higher" for metric in METRICS
}
STEP = {metric: 0.0 if metric == "nll" else 1.0 for metric in METRICS}
"""What an image that changes changes by, where most do not."""
PAIR = ["checkpoint", "replicate"]
"""What two cells that are compared have in common."""


def compare(results: Results, a: Point, b: Point, *, split: str = "test", metric: str | None = None) -> Interval:
    """See `raybasin.compare`."""
    of_images = _OfImages(results, split, metric or results.stored.facts.data.metric)
    cells = reading.committed(results)
    first, of_a, bn_a = _point(cells, a)
    second, of_b, bn_b = _point(cells, b, like=first)
    pairs = first.merge(second, on=PAIR, suffixes=("_a", "_b"))
    if pairs.empty:
        raise UserError(f"{_named(a)} and {_named(b)}: have no checkpoint and replicate in common")
    differences = [
        np.stack([of_images.values(row["cell_id_a"], of_a, bn_a) - of_images.values(row["cell_id_b"], of_b, bn_b)
                  for row in of_checkpoint.to_dict("records")])
        for _, of_checkpoint in pairs.sort_values(PAIR).groupby("checkpoint")
    ]  # fmt: skip
    return intervals.interval(differences, better=BETTER[of_images.metrics[0]], step=STEP[of_images.metrics[0]])


def of_images(results: Results, cell_id: str, of: str, split: str, metric: str) -> Float64Array:
    """[N] what each image of `split` says of a cell's predictor, of PREDICTORS: its mean is the `metric` of that, with
    the batch-norm statistics that the cell's own columns have. Raises UserError where predictions were not stored."""
    return _OfImages(results, split, metric).values(cell_id, of)


class _OfImages:
    """What each image says of a predictor: its mean over images is the predictor's metric on `split`. Predictions are
    read once for all `metrics`."""

    def __init__(self, results: Results, split: str, *metrics: str) -> None:
        for metric in metrics:
            if metric not in METRICS:
                raise UserError(f"metric {metric}: cannot be compared image by image{nearest(metric, METRICS)}")
        self.results, self.split, self.metrics = results, split, metrics
        self.cells = results.cells.set_index("cell_id")
        self.files = predicted(results.folder)
        self.known: dict[tuple[Any, ...], dict[str, Float64Array]] = {}
        self.n_images: dict[str, int] = {}

    def values(self, cell_id: str, of: str, bn: str | None = None, metric: str | None = None) -> Float64Array:
        """[N], in the first of `metrics` unless another one is named, of the ensemble of all members, a soup of them or
        the hub, with the batch-norm statistics that the cell's own columns have (see `cell_scores.cell_columns`) unless
        others are asked for."""
        batch_norm = self.results.stored.facts.batch_norm
        statistics = bn or (REESTIMATED if of.endswith("soup") and batch_norm else OWN)
        return self._known(self._predictors(cell_id, of), statistics)[metric or self.metrics[0]]

    def _known(self, predictor_ids: Sequence[str], bn: str) -> dict[str, Float64Array]:
        key = (*predictor_ids, bn)
        if key not in self.known:
            self.known[key] = self._measured(predictor_ids, bn)
        return self.known[key]

    def of_first(self, cell_id: str, kind: str, size: int) -> dict[str, Float64Array]:
        """[N] by metric of the `ensemble` or `uniform_soup` of the first `size` members, of one alone the hub; nothing
        where its predictions were not stored."""
        members = list(self.cells["member_ids"][cell_id])[:size]
        soup = kind == "uniform_soup"
        predictors = [naming.soup_id("uniform", members)] if soup and size > 1 else members
        statistics = REESTIMATED if soup and self.results.stored.facts.batch_norm else OWN
        return self._known(predictors, statistics) if self._stored(predictors) else {}

    def are_stored(self, cell_id: str, of: str) -> bool:
        return self._stored(self._predictors(cell_id, of))

    def _stored(self, predictor_ids: Iterable[str]) -> bool:
        eval_id = self.results.stored.eval_ids.by_split[self.split]
        names = {eval_id, f"{eval_id}-{self.split}"}
        return all({(i, name) for name in names} & self.files for i in predictor_ids)

    def _predictors(self, cell_id: str, of: str) -> list[str]:
        members: list[str] = list(self.cells["member_ids"][cell_id])
        if of == "hub":
            return members[:1]
        if of == "ensemble":
            return members
        return [naming.soup_id("uniform" if of == "soup" else "greedy", members)]

    def _measured(self, predictor_ids: Sequence[str], bn: str) -> dict[str, Float64Array]:
        log_probs_MNC, labels_N = reading.labelled(self.results, predictor_ids, self.split, bn)
        if len(labels_N) != self.n_images.setdefault(self.split, len(labels_N)):
            raise UserError(f"{predictor_ids[0]}: was scored on other examples of split {self.split} than others")
        try:
            whole = Networks(log_probs_MNC, labels_N).first(len(predictor_ids))
        except ValueError as error:  # rows that no sweep writes
            raise UserError(f"predictions of {', '.join(predictor_ids)}: {error}") from error
        return {metric: by_image(whole, metric) for metric in self.metrics}


class BySize:
    """Intervals of accuracy (in the metric of the data set) and NLL on test of what is made of the first k members."""

    def __init__(self, results: Results) -> None:
        self.metric = results.stored.facts.data.metric
        self.of_images = _OfImages(results, "test", self.metric, "nll")

    def intervals(
        self, cell_ids: Iterable[str], kind: str, sizes: Collection[int]
    ) -> dict[tuple[int, str], tuple[float, float]]:
        """The 95 % interval over images and replicates by size and `accuracy` or `nll`, for an `ensemble` or
        `uniform_soup` of these cells; none where predictions on test were not stored."""
        found: dict[tuple[int, str], list[Float64Array]] = {}
        for cell_id in cell_ids:
            for size in sizes:
                values = self.of_images.of_first(cell_id, kind, int(size))
                for metric, values_N in values.items():
                    score = "accuracy" if metric == self.metric else metric
                    found.setdefault((int(size), score), []).append(values_N)
        n_cells = max(map(len, found.values()), default=0)
        return {key: _level(np.stack(rows), key[1]) for key, rows in found.items() if len(rows) == n_cells}


def _level(values_RN: Float64Array, score: str) -> tuple[float, float]:
    """The interval of a mean itself. Of a share the rarer of right and wrong are the images that change."""
    flips = score == "accuracy" and values_RN.mean() > 0.5
    found = intervals.interval([1 - values_RN if flips else values_RN], step=float(score == "accuracy"))
    low, high = (1 - found.high, 1 - found.low) if flips else (found.low, found.high)
    return max(0.0, low), min(1.0, high) if score == "accuracy" else high


def by_image(ensemble: Ensemble, metric: str) -> Float64Array:
    """[N] whose mean is the `metric` of an ensemble, one of METRICS."""
    labels_N = ensemble.labels_N
    if metric == "nll":
        return classification.nll_of_images(ensemble.log_probs_NC, labels_N).astype(np.float64)
    correct_N = ensemble.correct_N.astype(np.float64)
    if metric == "accuracy":
        return correct_N
    _, class_of_N, count_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    return correct_N * len(labels_N) / (len(count_C) * count_C[class_of_N])


def _point(cells: pd.DataFrame, point: Point, like: pd.DataFrame | None = None) -> tuple[pd.DataFrame, str, str | None]:
    """The cells of one point, what of them is meant, and with which batch-norm statistics. Of several ensemble sizes it
    is the one that the cells `like` have. Raises UserError where that is no point, or several."""
    asked = _asked(cells, point)
    of, bn = asked.pop("of"), asked.pop("bn", None)
    found = cells
    for column, value in asked.items():
        found = found[found[column] == value]
    if of == "hub":  # cells of one replicate share theirs
        found = found.drop_duplicates("hub_id")
    elif like is not None and found["n_members"].nunique() > 1:
        found = found[found["n_members"].isin(like["n_members"])]
    if found.empty:
        raise UserError(f"{_named(point)}: no finished cell lies there")
    if of.endswith("soup") and found[f"{of}_accuracy"].isna().any():
        raise UserError(f"{_named(point)}: no such soup was made; put it into soups of the sweep file and run it again")
    if found.duplicated(PAIR).any():
        ways = [name for name in POINT if name != "checkpoint" and found[name].nunique() > 1]
        n_points = len(found[POINT].drop(columns="checkpoint").drop_duplicates())
        raise UserError(f"{_named(point)}: {counted(n_points, 'point')} are meant; name {' and '.join(ways)} too")
    return found[["cell_id", "n_members", *PAIR]], of, bn


def _asked(cells: pd.DataFrame, point: Point) -> dict[str, Any]:
    """What a point is to be, by keys that can be asked for."""
    asked = {"of": "hub"} if point == "hub" else {"method": point} if isinstance(point, str) else dict(point)
    for key in asked:
        if key not in (*POINT, "of", "bn"):
            raise UserError(f"{key}: is nothing to choose a point by{nearest(key, (*POINT, 'of', 'bn'))}")
    of = asked.setdefault("of", "ensemble")
    if of not in PREDICTORS:
        raise UserError(f"of {of}: is no predictor of a cell{nearest(str(of), PREDICTORS)}")
    methods = set(cells["method"])
    if asked.get("method", next(iter(methods))) not in methods:
        raise UserError(
            f"method {asked['method']}: has no finished cell{nearest(str(asked['method']), sorted(methods))}"
        )
    return asked


def _named(point: Point) -> str:
    return point if isinstance(point, str) else ", ".join(f"{key} {value}" for key, value in point.items())


# Every point


COLUMNS = ("estimate", "low", "high", "n_images", "n_replicates", "p_value", "verdict")


class Gains:
    """What each point gains, worked out for one gain at a time: a map asks for one alone."""

    def __init__(self, results: Results) -> None:
        metric = results.stored.facts.data.metric
        self.asked = {**{gain: (*pair, metric) for gain, pair in GAINS.items()},
                      **{gain: (*pair, "nll") for gain, pair in NLL_GAINS.items()}}  # fmt: skip
        self.of_images = _OfImages(results, "test", metric, "nll")
        self._pairs = _pairs(results, list(self.asked)) if len(results.cells) else {}
        self._known: dict[str, pd.DataFrame] = {}

    def of(self, gain: str) -> pd.DataFrame:
        """The rows of `Results.comparisons` for this gain."""
        if gain not in self._known:
            self._known[gain] = self._measured(gain)
        return self._known[gain]

    def table(self) -> pd.DataFrame:
        """See `Results.comparisons`: point by point, in the order of the cells."""
        each = [self.of(gain) for gain in self.asked]
        known = [rows for rows in each if len(rows)]
        if not known:
            return each[0]
        place = self._pairs["hub"][POINT].drop_duplicates(ignore_index=True).reset_index(names="place")
        found = pd.concat(known, ignore_index=True).merge(place, on=POINT)
        return found.sort_values("place", kind="stable", ignore_index=True).drop(columns="place")

    def _measured(self, gain: str) -> pd.DataFrame:
        of, baseline, metric = self.asked[gain]
        rows = []
        for point, pairs in self._against(gain) if self._pairs else ():
            known = dict(zip(POINT, point, strict=True))
            measured = _row(self.of_images, pairs, of, "hub" if baseline == "hub" else "ensemble", gain, metric)
            rows.append({**known, "gain": gain, "of": of, "baseline": baseline, **measured})
        frame = pd.DataFrame(rows, columns=[*POINT, "gain", "of", "baseline", *COLUMNS])
        return frame.assign(p_holm=intervals.holm(frame["p_value"].to_numpy(dtype=float)))

    def _against(self, gain: str) -> Iterable[tuple[Any, pd.DataFrame]]:
        """Of each point its cells that have this gain, and those that each is compared with."""
        of, baseline, _ = self.asked[gain]
        pairs = self._pairs[baseline].dropna(subset=[gain])
        if baseline == "local_de" and of == "ensemble":  # it is not compared with itself
            pairs = pairs[pairs["method"] != "local_de"]
        return pairs.groupby(POINT, sort=False)


def _pairs(results: Results, gains: list[str]) -> dict[str, pd.DataFrame]:
    """Every cell with the one that it is compared with: with its own `hub`, and with `local_de` of equal size:
    `cell_id, cell_id_b, replicate`, the columns `POINT` and the gains."""
    cells = reading.gains(reading.judged(results))[["cell_id", *POINT, "replicate", *gains]]
    local_de = cells[cells["method"] == "local_de"].drop_duplicates([*PAIR, "n_members"])
    beside = cells.merge(local_de[["cell_id", "n_members", *PAIR]], on=[*PAIR, "n_members"], suffixes=("", "_b"))
    return {"hub": cells.assign(cell_id_b=cells["cell_id"]), "local_de": beside}


ALPHA = 1 - intervals.LEVEL
"""Below it a p value, also one after Holm's correction, tells a difference from 0."""


def verdict_words(verdict: str | float | None, p_holm: float, brief: bool = False) -> str:
    """A `verdict` as people read it beside others: `better alone, not after Holm` (`brief`: `better alone`) where
    Holm's correction does not confirm it; empty where there is none."""
    if not isinstance(verdict, str):
        return ""
    if verdict == "not distinguishable" or p_holm < ALPHA:
        return verdict
    return f"{verdict} alone" if brief else f"{verdict} alone, not after Holm"


def _row(of_images: _OfImages, pairs: pd.DataFrame, of: str, baseline: str, gain: str, metric: str) -> dict[str, Any]:
    """What is known of one gain at one point. Without stored predictions that is its mean alone."""
    both = [
        ((row["cell_id"], of), (row["cell_id_b"], baseline))
        for row in pairs.sort_values("replicate")[["cell_id", "cell_id_b"]].to_dict("records")
    ]
    if not all(of_images.are_stored(*predictor) for pair in both for predictor in pair):
        nothing = dict.fromkeys(("low", "high", "n_images", "p_value"), math.nan)
        return {"estimate": pairs[gain].mean(), "n_replicates": len(pairs), "verdict": None, **nothing}
    differences = np.stack(
        [of_images.values(*one, metric=metric) - of_images.values(*other, metric=metric) for one, other in both]
    )
    found = intervals.interval([differences], better=BETTER[metric], step=STEP[metric])
    return {name: getattr(found, name) for name in COLUMNS}


OF_GAIN = ("low", "high", "verdict", "p_holm")


def summary(results: Results) -> pd.DataFrame:
    """`results.summary` with the intervals of every gain (`<gain>_low`, `_high`, `_verdict`, `_p_holm`) and of the
    barrier (`low, high, side`); `decided_by` is the column of the barrier that decides, `barrier_words` what it is
    called; `worth` the mean of `results.worth`, `worth_or_more` whether it is of any replicate."""
    cells = reading.judged(results)
    points = reading.summary(cells)
    worth = cells[[*POINT, "cell_id"]].merge(reading.worth(results), on="cell_id")
    of_point = worth.groupby(POINT, as_index=False).agg({"worth": "mean", "worth_or_more": "any"})
    points = points.merge(of_point, on=POINT, how="left")
    found = results.comparisons
    for gain in (*GAINS, *NLL_GAINS):
        of_gain = found.loc[found["gain"] == gain, [*POINT, *OF_GAIN]]
        named = {name: f"{gain}_{name}" for name in OF_GAIN}
        points = points.merge(of_gain.rename(columns=named), on=POINT, how="left")
    points = points.assign(decided_by=results.criterion.barrier, barrier_words=results.barrier_words)
    return points.merge(results.barriers[[*POINT, "low", "high", "side"]], on=POINT, how="left")


# In the basin or out of it


def barriers(results: Results) -> pd.DataFrame:
    """See `Results.barriers`."""
    cells, deciding = results.cells, results.criterion.barrier
    excess = _excesses(results)
    rows = []
    for point, found in cells.groupby(POINT, sort=False):
        estimate, of_mean = float(found[deciding].mean()), _variance(found, excess, results)
        half = of_mean.half_width()
        low, high = (
            max(estimate - half, 0.0),
            min(estimate + half, results.criterion.highest),
        )  # NaN where no standard error is known
        side = intervals.side(low, high, results.threshold)
        if reading.is_wall(found).any():
            side = "out"
        rows.append({**dict(zip(POINT, point, strict=True)), deciding: estimate, "low": low, "high": high,
                     "n_images": of_mean.n_images, "n_replicates": len(found), "side": side})  # fmt: skip
    return pd.DataFrame(rows, columns=[*POINT, deciding, "low", "high", "n_images", "n_replicates", "side"])


def _excesses(results: Results) -> dict[str, Float64Array]:
    """By cell, what each image of `basin.split` adds to its barrier: the excess [N] at the highest inner point of the
    path that decides (see `barriers.summary`). Not of cells that were measured before it was stored."""
    split, excess = results.stored.spec.basin.split, results.criterion.excess
    columns = ("cell_id", "kind", "split", "end_id", excess, f"{excess}_se", f"image_{excess}")
    paths = results.columns_of("paths", *columns, only=_deciding_paths(results))
    of_images = paths[f"image_{excess}"]
    stored = paths[of_images.notna() & (paths["kind"] == "hub-member") & (paths["split"] == split)]
    named = results.cells.set_index("cell_id")[f"{results.criterion.barrier}_member"]
    member = stored["cell_id"].map(named)
    stored = stored[member.isna() | (stored["end_id"] == member)]  # a copy has all paths; older cells name none
    in_order = stored.assign(height=stored[excess].clip(lower=0)).sort_values(
        ["height", f"{excess}_se", "end_id"], na_position="first"
    )
    deciding = in_order.drop_duplicates("cell_id", keep="last").set_index("cell_id")[f"image_{excess}"]
    return {str(cell_id): np.asarray(excess_N, dtype=np.float64) for cell_id, excess_N in deciding.items()}


def _deciding_paths(results: Results) -> list[str] | None:
    """The files of the paths that have the cells' barriers: of each cell one, or where it does not say which, all from
    its hub; None where files have other names, as in a compacted copy."""
    settings, to = results.stored.settings, f"{results.criterion.barrier}_member"
    found = [
        f"{cell_id}-{settings.path_id(hub_id, member_id)}"
        for cell_id, hub_id, member_ids, highest in results.cells[["cell_id", "hub_id", "member_ids", to]].itertuples(
            index=False, name=None
        )
        for member_id in (member_ids if pd.isna(highest) else [highest])
        if member_id != hub_id
    ]
    return found if set(found) <= set(tables.units(results.folder, "paths")) else None


def _variance(cells: pd.DataFrame, excess: Mapping[str, Float64Array], results: Results) -> Variance:
    """Of the mean barrier of one point. Where the excess of each image is not known, it is taken for the same in all
    replicates: that gives the widest interval."""
    n, data = len(cells), results.stored.facts.data
    n_images = data.n_train if results.stored.spec.basin.split == "train" else data.n_val
    rows = [excess[cell_id] for cell_id in cells["cell_id"] if cell_id in excess]
    if len(rows) == n and n_images > 1 and all(row.shape == (n_images,) for row in rows):
        return intervals.variance(np.stack(rows), results.criterion.image_step)
    deciding = results.criterion
    of_images = float((cells[deciding.barrier_se].astype(float) ** 2).mean())
    if of_images == 0 and n_images:
        of_images = intervals.unseen(0, n_images, deciding.image_step)
    with np.errstate(invalid="ignore"):  # an infinite barrier, whose point is out
        return Variance(of_images, float(cells[deciding.barrier].var(ddof=1)) / n, n_images, n)
