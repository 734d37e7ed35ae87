"""Reading a results folder: pandas tables of one set of settings, and what follows from them.

Cells of different settings are never mixed: a folder that holds several is refused until one is named.

Axes: M members, N examples, C classes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raybasin.analysis import held
from raybasin.analysis.quantities import Quantity, counted, quantity
from raybasin.errors import NotMeasured, UserError, nearest
from raybasin.landscape import basin_exits
from raybasin.metrics import classification, selection
from raybasin.metrics.selection import POINT
from raybasin.store import folders, inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.inventory import StoredSweep
from raybasin.store.predictions import predicted, prediction_rows
from raybasin.store.schemas import COMMON, ENDED, SCHEMAS, SCORES
from raybasin.sweep import methods, specs
from raybasin.sweep import points as map_points
from raybasin.sweep.criterion import Criterion
from raybasin.sweep.points import MapPoint

if TYPE_CHECKING:  # it reads results, too
    from raybasin.analysis.comparisons import Gains

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Results:
    """The rows of one set of settings in a results folder. Tables are read when first asked for, cells when it is
    opened."""

    folder: Folder
    settings_id: str

    def __repr__(self) -> str:
        return f"Results({str(self.folder.root)!r}, settings={self.settings_id!r})"

    def _repr_html_(self) -> str:
        from raybasin.analysis import notebook  # it reads results, too

        return notebook.summary(self)

    @cached_property
    def stored(self) -> StoredSweep:
        """The resolved sweep file. Raises UserError where it is not there, or is none."""
        return inventory.stored_sweep(self.folder, self.settings_id)

    @property
    def sweep(self) -> dict[str, Any]:
        """The resolved sweep file as plain values, every default written out."""
        return specs.dump(self.stored.spec)

    @property
    def facts(self) -> dict[str, Any]:
        """What the sweep found out about its inputs: sizes of the splits, checkpoints, `eval_id`."""
        return self.stored.facts_tree()

    @property
    def threshold(self) -> float:
        """The largest barrier of a cell in the basin: an error rate, or nats with `basin.by: nll`."""
        return self.criterion.threshold

    @property
    def criterion(self) -> Criterion:
        """By which barrier, and up to which, a cell is in the basin."""
        return self.stored.spec.basin.criterion

    @property
    def barrier_words(self) -> str:
        """`error barrier on training images`: what decides, and on which images it is measured (`basin.split`)."""
        return f"{self.criterion.words} on {self.stored.spec.basin.images}"

    @property
    def traced_barrier_words(self) -> str:
        """The same of `traces`, which are on validation images whatever `basin.split` is."""
        return f"{self.criterion.words} on {specs.IMAGES['val']}"

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per committed cell. `in_basin`, and when a cycle left, follow from today's `basin.by` and threshold,
        which are part of no id. `why` says what placed it: `listed` (the sweep file), a searcher's name, or of a search
        for the boundary `bracket`, `refine` or `replicate`. `method` names the variant too (`tree chain=3`): cells
        that differ in a key of their method are different points."""
        cells = self._cells_of_all.filter(pc.field("settings_id") == self.settings_id).to_pandas()
        variant = cells["variant"].fillna("")
        labels = [methods.label(*pair) for pair in zip(cells["method"], variant, strict=True)]
        in_basin = (cells[self.criterion.barrier] <= self.threshold) & ~is_wall(cells)
        why = self._why(cells)
        cells = cells.assign(in_basin=in_basin, variant=variant, method=pd.Series(labels, dtype=object), why=why)
        if cells["checkpoint_barrier_error"].isna().all():
            return cells
        points: dict[Any, Any] = {cell_id: rows.to_dict("records") for cell_id, rows in self.traces.groupby("cell_id")}
        found = [basin_exits.summary(points.get(cell_id, ()), self.criterion) for cell_id in cells["cell_id"]]
        columns = list(basin_exits.COLUMNS)
        exits = pd.DataFrame(found, index=cells.index, columns=columns, dtype=float)
        return cells.assign(**exits.astype(cells.dtypes[columns]))

    @cached_property
    def _cells_of_all(self) -> pa.Table:
        """The table `cells`, of all settings: `open` has read it to see which there are."""
        return tables.sound(self.folder, "cells")

    def _why(self, cells: pd.DataFrame) -> list[str]:
        """What placed each cell, by the table `points`, where a row of a search by cell is about one replicate."""
        found: dict[tuple[Any, ...], str] = {}
        for row in self.points[self.points["event"] != ENDED].to_dict("records"):
            replicate = None if pd.isna(row["replicate"]) else row["replicate"]
            where = (row["method"], row["checkpoint"], row["lr_ratio"], row["cycle_ratio"], replicate)
            found[where] = row["searcher"] if pd.isna(row["why"]) else row["why"]
        columns = ["method", "checkpoint", "lr_ratio", "cycle_ratio", "replicate"]
        places = cells[columns].itertuples(index=False, name=None)
        return [found.get(place) or found.get((*place[:4], None), "listed") for place in places]

    @cached_property
    def members(self) -> pd.DataFrame:
        """The members of the cells. Other settings may share them, so they are found by id."""
        return self._of_cells("members")

    @cached_property
    def epochs(self) -> pd.DataFrame:
        return self._of_cells("epochs")

    @cached_property
    def paths(self) -> pd.DataFrame:
        return self._of_settings("paths")

    @cached_property
    def traces(self) -> pd.DataFrame:
        """Paths to the weights inside cycles; empty where the sweep did not ask for them."""
        return self._of_settings("traces")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores of the cells, and `deep_ensemble_equivalent`, which is not stored: it is measured against the
        largest Local DE cell of the same checkpoint and replicate that is there now; NaN where there is none."""
        scores = self._of_settings("scores")
        local_de = self.cells[self.cells["method"] == "local_de"].sort_values("n_members")
        largest = local_de.drop_duplicates(["checkpoint", "replicate"], keep="last")["cell_id"]
        found = pd.Series(np.nan, index=scores.index)
        for _, rows in scores[scores["split"] != "val"].groupby(["checkpoint", "replicate", "split", "bn"]):
            reference = rows[rows["cell_id"].isin(largest) & (rows["kind"] == "ensemble")].sort_values("n_members")
            nll_K = reference["calibrated_nll"].to_numpy()
            if len(nll_K) and np.isfinite(nll_K).all():
                nll = rows["calibrated_nll"].to_numpy()
                found.loc[rows.index] = classification.deep_ensemble_equivalents(nll, nll_K)
        return scores.assign(deep_ensemble_equivalent=found)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """What each point gains on test, with the interval of 95 % over images and replicates: a row per point and
        `gain` (`ensemble_gain` and `soup_gain` over the hub; `over_local_de` and `soup_over_local_de` over the Local
        Deep Ensemble of equal size, `nll_over_local_de` and `soup_nll_over_local_de` in nats), paired by checkpoint,
        replicate and image: `estimate, low, high, n_images, n_replicates, p_value, verdict`, in the data set's metric.
        `p_holm` is the p value after Holm's correction for a gain. Without predictions on test there is the estimate
        alone."""
        return self._gained.table()

    @cached_property
    def _gained(self) -> Gains:
        """The same for one gain at a time."""
        from raybasin.analysis import comparisons  # it reads results, too

        return comparisons.Gains(self)

    @cached_property
    def barriers(self) -> pd.DataFrame:
        """Whether each point is in the basin: its mean `barrier_error` (`barrier_nll` with `basin.by: nll`), the
        interval of 95 % over the images of `basin.split` and replicates (`low, high, n_images, n_replicates`), and its
        `side`: `in`, `out` or `undecided`.
        A point with an infinite loss on a path is out."""
        from raybasin.analysis import comparisons

        return comparisons.barriers(self)

    @cached_property
    def boundaries(self) -> pd.DataFrame:
        """Where the basin ends: for each method that explores, checkpoint and ensemble size the `lr_ratio` at which the
        mean barrier crosses the threshold, a row for each `cycle_ratio`, with the 95 % interval `low, high` and
        its `status`: `found`; `all_in` or `all_out` where the line lies beyond the rates that were measured; or
        `undecided`. Cells of a grid and of a search are taken alike; the model is that of `BoundarySearch`."""
        from raybasin.analysis import explored

        return explored.boundaries(self)

    def best_points(self, of: str = "soup") -> pd.DataFrame:
        """The point with the best accuracy on validation, of the uniform `soup` or the `ensemble`: for each method that
        explores, checkpoint and ensemble size its `lr_ratio` and `cycle_ratio`, the `score` that is expected there
        with its 95 % interval, by how much another point is expected to be better (`regret`), the `boundary` at its
        cycle length with its interval, and where it `lies`: `inside`, `at the line` or `outside`. Cells of a grid and
        of a search are taken alike; the model is that of `BestSearch`."""
        from raybasin.analysis import explored

        return explored.best_points(self, of)

    @cached_property
    def planes(self) -> pd.DataFrame:
        """What `raybasin plane` has measured."""
        return self._of_settings("planes")

    @cached_property
    def failures(self) -> pd.DataFrame:
        """Every failure there has been, also of units finished since (see `open_failures`)."""
        return self._of_settings("failures")

    @cached_property
    def points(self) -> pd.DataFrame:
        """What searches have chosen by results, and what their schedulers have ended early, in the order of time."""
        return self._of_settings("points").sort_values("at", ignore_index=True)

    @cached_property
    def planned(self) -> list[tuple[str, MapPoint, tuple[int, ...]]]:
        """The points of the sweep that are known by now, each with the label of its method and the replicates that it
        is to have: what its file asks for, and what its search has chosen."""
        stored, chosen = self.stored, self.stored.chosen(self.folder)
        label = {name: method_label(name, keys) for name, keys in stored.spec.methods.items()}
        known = map_points.known(stored.settings, chosen)
        replicates = map_points.replicates(stored.settings, known, chosen)
        return [(label[point.method], point, numbers) for point, numbers in replicates.items()]

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """Those checkpoints of the cells that a sweep has made; they may be shared between settings."""
        made = tables.sound(self.folder, "checkpoints").to_pandas()
        used = made["checkpoint"].isin(self.cells["checkpoint"]) | (made["settings_id"] == self.settings_id)
        return made[used].reset_index(drop=True)

    def predictions(self, predictor_ids: Iterable[str], split: str, bn: str = "own") -> pd.DataFrame:
        """The log-probabilities of these predictors, in the order named, examples ascending.

        Raises UserError where a predictor has none for this split and kind of BN statistics.
        """
        none = SCHEMAS["predictions"].empty_table()
        found = [self._predictions_of(predictor_id, split, bn) for predictor_id in predictor_ids]
        return pa.concat_tables([none, *found]).to_pandas()

    @cached_property
    def _not_kept(self) -> set[str]:
        """The splits of which no cell has kept predictions, and no later run has stored any."""
        kept = {split for splits in self.cells["kept_predictions"] for split in splits}
        there = {name for _, name in predicted(self.folder)}
        return {split for split, eval_id in self.stored.eval_ids.by_split.items()
                if split not in kept and not {eval_id, f"{eval_id}-{split}"} & there}  # fmt: skip

    def columns_of(self, table: str, *columns: str, only: Iterable[str] | None = None) -> pd.DataFrame:
        """These columns of a table (of the units `only`), of which the others are not read."""
        return self._of_settings(table, list(dict.fromkeys([*columns, "settings_id"])), only)[list(columns)]

    def _of_settings(
        self, table: str, columns: list[str] | None = None, only: Iterable[str] | None = None
    ) -> pd.DataFrame:
        rows = tables.sound(self.folder, table, only, columns)
        return rows.filter(pc.field("settings_id") == self.settings_id).to_pandas()

    def _of_cells(self, table: str) -> pd.DataFrame:
        rows = tables.sound(self.folder, table).to_pandas()
        return rows[rows["member_id"].isin(self.cells["member_ids"].explode())].reset_index(drop=True)

    def _predictions_of(self, predictor_id: str, split: str, bn: str) -> pa.Table:
        shifts = self.stored.eval_ids.shift_eval_ids
        eval_id = shifts.get(split, self.stored.eval_ids.eval_id)
        if eval_id is None:
            raise UserError(f"{self.folder.root}/sweeps/{self.settings_id}.yaml: facts.eval_id is missing")
        if split in self._not_kept:
            raise NotMeasured(
                f"{self.folder.root}: predictions on split {split} were not stored; put it into keep.predictions of "
                "the sweep file and run it again (nothing is trained)"
            )
        rows = prediction_rows(self.folder, predictor_id, eval_id)
        if split in shifts:  # it has its eval_id to itself, and other settings may have called it otherwise
            position = rows.schema.get_field_index("split")
            rows = rows.set_column(position, rows.schema.field(position), pa.array([split] * len(rows)))
        chosen = rows.filter((pc.field("split") == split) & (pc.field("bn") == bn))
        if not chosen.num_rows:
            there = sorted(set(zip(rows["split"].to_pylist(), rows["bn"].to_pylist(), strict=True)))
            known = ", ".join(f"{a}/{b}" for a, b in there)
            raise NotMeasured(f"predictions of {predictor_id}: none for split {split} with bn {bn}; there are {known}")
        return chosen.sort_by("example")


def open(path: str | os.PathLike[str], settings: str | None = None, *, read_cells: bool = True) -> Results:
    """See `raybasin.open`.

    The cells are read to see which settings there are. Without `read_cells` no more of them is read than that, which
    takes a third of the time: they are read when they are asked for.
    """
    folder = folders.existing(path)
    inventory.check_version(folder)
    found = tables.sound(folder, "cells", columns=None if read_cells else ["settings_id"])
    count = Counter(found["settings_id"].to_pylist())

    def opened(settings_id: str) -> Results:
        results = Results(folder, settings_id)
        if read_cells:
            vars(results)["_cells_of_all"] = found
        return results

    planned = {name.removesuffix(".yaml"): 0 for name in folder.names("sweeps") if name.endswith(".yaml")}
    there: Mapping[str, int] = count or planned
    if settings == held.LATEST and there:
        return opened(held.latest(folder))
    if settings is None and len(there) == 1:
        return opened(next(iter(there)))
    if settings is not None:
        if meant := held.named(settings, {**planned, **count}):
            return opened(meant)
        raise UserError(held.unknown(folder, settings, held.settings_of(folder)))
    if not there:
        raise UserError(f"results folder {path}: holds no results; `raybasin sweep FILE --results {path}` makes some")
    raise UserError(held.ambiguous(folder))


def committed(results: Results) -> pd.DataFrame:
    """The cells, of which there must be one. Raises UserError saying what to run."""
    if results.cells.empty:
        root = results.folder.root
        raise UserError(
            f"results folder {root}: no cell is finished yet; `raybasin status {root}` says how far it is, "
            f"`raybasin sweep FILE --results {root}` continues"
        )
    return results.cells


# The data set's own metric


def metric_name(results: Results) -> str:
    """The metric of the data set in words: `accuracy` or `mean-per-class accuracy`."""
    return "accuracy" if results.stored.facts.data.metric == "accuracy" else "mean-per-class accuracy"


def judged(results: Results) -> pd.DataFrame:
    """The cells (`committed`) with every accuracy in the data set's own metric; all else is as it is stored."""
    cells, metric = committed(results), results.stored.facts.data.metric
    return cells if metric == "accuracy" else selection.with_score(cells, results.scores, metric, called="accuracy")


def log_probs(results: Results | str | os.PathLike[str], cell_id: str, split: str, bn: str = "own") -> Float32Array:
    """See `raybasin.log_probs`."""
    if not isinstance(results, Results):
        results = open(results)
    return labelled(results, cell_of(results, cell_id)["member_ids"], split, bn)[0]


def labelled(
    results: Results, predictor_ids: Sequence[str], split: str, bn: str
) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """The stored log-probabilities [M, N, C] of these predictors, and the labels [N]."""
    found = [results._predictions_of(predictor_id, split, bn) for predictor_id in predictor_ids]
    if any(not rows["example"].equals(found[0]["example"]) for rows in found):
        raise UserError(f"{', '.join(predictor_ids)}: were scored on different examples of split {split}")
    values = np.stack([pc.list_flatten(rows["log_probs"]).to_numpy() for rows in found])
    return values.reshape(len(found), len(found[0]), -1), found[0]["label"].to_numpy()


def cell_of(results: Results, cell_id: str) -> pd.Series[Any]:
    """The row of a cell. Raises UserError for one that is not there."""
    found = committed(results).query("cell_id == @cell_id")
    if found.empty:
        raise UserError(
            f"{results.folder.root}: no finished cell {cell_id}{nearest(cell_id, results.cells['cell_id'])}"
        )
    return found.iloc[0]


# Conclusions


def best_cell(results: Results, of: str = "soup") -> pd.Series[Any]:
    """The cell whose `soup` or `ensemble` is exported by default, chosen on validation data only: the lowest replicate
    of the point with the highest validation accuracy of these (in the metric of the data set), mean over replicates; of
    equal ones that with the lower validation NLL. Raises UserError if no cell is finished, or no soup was made."""
    cells = judged(results)
    if cells[f"val_{of}_accuracy"].isna().all():
        raise UserError(
            f"{results.folder.root}: holds no soups, so there is no best one; put `uniform` into soups of "
            "the sweep file and run it again (it trains nothing twice), or name a cell with --cell"
        )
    return selection.best_point(cells, f"val_{of}_accuracy", f"val_{of}_nll").iloc[0]


def best_explored(results: Results) -> pd.DataFrame:
    """The cells of the exploring point whose ensemble is best on validation, replicates ascending; of any method where
    none explores. No rows where nothing says which is best. Raises UserError if no cell is finished."""
    cells = judged(results)
    explored = exploring(cells)
    return selection.best_point(cells if explored.empty else explored, "val_ensemble_accuracy", "val_ensemble_nll")


def example_cell(results: Results) -> str:
    """A cell to look at closely: the first of `best_explored` or, where there is none, of all."""
    best = best_explored(results)
    return str((committed(results) if best.empty else best)["cell_id"].iloc[0])


GAINS = {
    "ensemble_gain": ("ensemble", "hub"),
    "soup_gain": ("soup", "hub"),
    "over_local_de": ("ensemble", "local_de"),
    "soup_over_local_de": ("soup", "local_de"),
}
"""What has an interval in `comparisons`: names of gains, whose they are, and over what."""
NLL_GAINS = {"nll_over_local_de": ("ensemble", "local_de"), "soup_nll_over_local_de": ("soup", "local_de")}
"""The same in NLL, where below 0 is better."""


def gains(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with what they gain on test data, in units of accuracy.

    `ensemble_gain`, `soup_gain` and `greedy_soup_gain` are over the cell's own hub. `over_local_de` is the ensemble's
    accuracy minus that of the Local Deep Ensemble of equal size, checkpoint and replicate, `soup_over_local_de` the
    soup's; NaN where there is none. `nll_over_local_de` and `soup_nll_over_local_de` are the same in nats, where below
    0 is better.
    """
    pair, scored = ["checkpoint", "replicate", "n_members"], ["ensemble_accuracy", "ensemble_nll"]
    local_de = cells.loc[cells["method"] == "local_de", [*pair, *scored]].drop_duplicates(pair)
    beside, nll_beside = cells[pair].merge(local_de, on=pair, how="left")[scored].to_numpy(dtype=float).T
    return cells.assign(
        ensemble_gain=cells["ensemble_accuracy"] - cells["hub_accuracy"],
        soup_gain=cells["soup_accuracy"] - cells["hub_accuracy"],
        greedy_soup_gain=cells["greedy_soup_accuracy"] - cells["hub_accuracy"],
        over_local_de=cells["ensemble_accuracy"] - beside,
        soup_over_local_de=cells["soup_accuracy"] - beside,
        nll_over_local_de=cells["ensemble_nll"] - nll_beside,
        soup_nll_over_local_de=cells["soup_nll"] - nll_beside,
    )


def worth(results: Results) -> pd.DataFrame:
    """How many members of Local DE the ensemble of each cell is worth on test: its `deep_ensemble_equivalent`, by equal
    calibrated NLL. `cell_id, worth, worth_or_more`: a worth is at most as many members as that Local DE has, and the
    last says whether it is, so that it may be more. NaN without Local DE."""
    scores, cells = results.scores, results.cells
    whole = scores["n_members"] == scores["cell_id"].map(cells.set_index("cell_id")["n_members"])
    ensembles = (scores["kind"] == "ensemble") & (scores["split"] == "test") & (scores["bn"] == "own") & whole
    known = scores[ensembles].groupby("cell_id")["deep_ensemble_equivalent"].mean()
    pair, local_de = ["checkpoint", "replicate"], cells["method"] == "local_de"
    most = cells[local_de].groupby(pair)["n_members"].max().rename("most")
    found = cells[["cell_id", *pair]].join(most, on=pair)
    found = found.assign(worth=found["cell_id"].map(known).astype(float))
    return found.assign(worth_or_more=(found["worth"] >= found["most"]) & ~local_de)[
        ["cell_id", "worth", "worth_or_more"]
    ]


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per point of the map, Local DE first: means over replicates. `replicates` is their number, `in_basin` the
    share of them in the basin. How sure they are is said by `comparisons` and `barriers`."""
    means = ["max_lr", "cycle_epochs", "in_basin", "barrier_nll", "barrier_error", "ensemble_nll", "soup_nll",
             "train_epochs",
             "hub_accuracy", "member_accuracy", "ensemble_accuracy", "soup_accuracy", "ensemble_gain", "soup_gain",
             "over_local_de", "soup_over_local_de", "nll_over_local_de", "soup_nll_over_local_de"]  # fmt: skip
    wanted = {"replicates": ("replicate", "nunique"), **{column: (column, "mean") for column in means}}
    table = gains(cells).groupby(POINT, as_index=False).agg(**wanted)
    place = table["method"].map(_rank)
    return table.assign(_place=place).sort_values(["_place", *POINT], ignore_index=True).drop(columns="_place")


def is_wall(cells: pd.DataFrame) -> pd.Series[bool]:
    """Whether the loss is infinite, or no number, somewhere between the hub and a member: such a cell is out of the
    basin, whatever its error says."""
    return ~cells["barrier_nll"].astype(float).abs().lt(math.inf)


def by_size(results: Results, cell_ids: Iterable[str], kind: str = "ensemble") -> pd.DataFrame:
    """Test scores of what is made of the first k members, the hub included: `cell_id, replicate, n_members, accuracy`
    (in the metric of the data set), `nll` and `deep_ensemble_equivalent`. What is made of one is the hub.

    Args:
        kind: `ensemble`, with the members' own BN statistics, or `uniform_soup`, with re-estimated ones (where there
            is batch norm).
    """
    scores = results.scores
    wanted = scores["cell_id"].isin(list(cell_ids)) & (scores["split"] == "test")
    soups = kind == "uniform_soup" and (scores["bn"] == "reestimated").any()
    wanted &= scores["bn"] == ("reestimated" if soups else "own")
    hubs = scores["predictor_id"].isin(results.cells["hub_id"]) & (scores["kind"] == "member")
    columns = ["cell_id", "replicate", "n_members", "accuracy", "nll", "deep_ensemble_equivalent"]
    accuracy = scores[results.stored.facts.data.metric]
    sizes = scores.assign(n_members=scores["n_members"].where(~hubs, 1), accuracy=accuracy)
    return sizes.loc[wanted & (hubs | (scores["kind"] == kind)), columns].drop_duplicates(columns[:3])


def shift_splits(results: Results) -> pd.DataFrame:
    """The further evaluation sets of the sweep file: `split, shift, corruption, severity`, the last two null for a set
    that is not one of a grid of corruptions."""
    found = [astuple(split) for split in specs.shift_splits(results.stored.spec.shifts)]
    table = pd.DataFrame(found, columns=["split", "shift", "corruption", "severity"])
    return table.astype({"split": "str", "shift": "str", "corruption": "str", "severity": "Int64"})


def robustness(results: Results) -> pd.DataFrame:
    """Scores by severity, as means over the corruptions of a shift (Hendrycks and Dietterich 2019).

    A row per predictor of a cell, kind of BN statistics (`bn`), `shift` and `severity`: how many `corruptions` there
    are, and the means of `accuracy, nll, calibrated_nll, ece, brier` over them. Severity 0 is the clean test split.
    Without shifts that have corruptions there are no rows.
    """
    splits = shift_splits(results).dropna(subset="severity")
    # Of cells that are committed; their `method` names the variant too.
    of_cells = results.scores.drop(columns="method").merge(results.cells[["cell_id", "method"]], on="cell_id")
    corrupted = of_cells.merge(splits, on="split")
    test = of_cells[of_cells["split"] == "test"]
    clean = test.assign(severity=0, corruption="none").merge(splits[["shift"]].drop_duplicates(), how="cross")
    scores = pd.concat([clean.astype({"severity": "Int64"}), corrupted], ignore_index=True)
    key = ["cell_id", *(name for name in COMMON if name in scores), "predictor_id", "kind", "n_members"]
    means = {name: (name, "mean") for name in ("accuracy", "nll", "calibrated_nll", "ece", "brier")}
    groups = scores.groupby([*key, "bn", "shift", "severity"], dropna=False, as_index=False)
    return groups.agg(corruptions=("corruption", "nunique"), **means)


def main_size(cells: pd.DataFrame) -> int:
    """The ensemble size that most cells have; of equally frequent ones the larger."""
    return int(cells["n_members"].mode().max())


def exploring(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells whose method has learning rates and cycle lengths of its own."""
    return cells[cells["method"].map(methods.explores).astype(bool)]


def methods_with_a_map(results: Results) -> list[str]:
    """The exploring methods, and variants of them, with cells at more than one point; all of them where none has."""
    points = exploring(results.cells)[["method", "lr_ratio", "cycle_ratio"]].drop_duplicates()["method"].value_counts()
    several = points[points > 1]
    return in_order(map(str, (points if several.empty else several).index))


def in_order(labels: Iterable[str]) -> list[str]:
    """Methods and variants in the order in which they are shown."""
    return sorted(labels, key=lambda label: (_rank(label), label))


def _rank(label: str) -> int:
    method = label.split(" ")[0]
    known = list(methods.METHODS)
    return known.index(method) if method in known else len(known)


def checkpoints_of(results: Results) -> list[str]:
    """The checkpoints' names, in the order of the sweep file where it is known."""
    named = [checkpoint.name for checkpoint in results.stored.facts.checkpoints]
    present = set(results.cells["checkpoint"])
    return [name for name in named if name in present] + sorted(present - set(named))


# The map


def grid(results: Results, value: str, method: str, checkpoint: str, n_members: int | None = None) -> pd.DataFrame:
    """The map of one method and checkpoint as a table, a row per (cycle_ratio, lr_ratio), both ascending.

    Args:
        value: what `values` knows.
        n_members: the ensemble size; `main_size` of the method's cells by default.

    Returns:
        `value` and the barrier that decides as means over replicates; `low` and `high`, the interval of the value where
        it is that barrier or in `comparisons`, else NaN; `replicates`, `replicates_in` (in the basin), `walls` (with an
        infinite loss) and `replicates_planned`; `in_basin`: whether the mean barrier is at most the threshold, and no
        loss infinite; `side`: what `barriers` says with 95 % certainty, `in`, `out` or `undecided`; `state`: done,
        failed or missing. No rows where a search has chosen no point.

    Raises:
        UserError: if no such cell is finished, or there is no such value.
    """
    cells = _cells_of_map(results, value, method, n_members).query("checkpoint == @checkpoint")
    there = zip(cells["cycle_ratio"], cells["lr_ratio"], strict=True)  # an earlier run may have had other ratios
    asked = [point for label, point, replicates in results.planned if label == method and replicates]
    if checkpoint in {found.name for found in results.stored.facts.checkpoints}:  # not called otherwise by now
        asked = [point for point in asked if point.checkpoint == checkpoint]
    planned = ((point.cycle_ratio, point.lr_ratio) for point in asked)
    coordinates = sorted({*there, *planned})
    marked = cells.assign(replicates=cells["replicate"], replicates_in=cells["in_basin"], walls=is_wall(cells))
    groups = marked.groupby(["cycle_ratio", "lr_ratio"])
    counts = groups.agg({"replicates": "nunique", "replicates_in": "sum", "walls": "sum"})
    index = pd.MultiIndex.from_tuples(coordinates, names=["cycle_ratio", "lr_ratio"])
    barrier = results.criterion.barrier
    means = groups[["value", barrier]].mean().reindex(index)
    table = means.join(counts.reindex(index, fill_value=0).astype(int)).join(_certainty(results, value, cells))
    failures = open_failures(results).query("method == @method and checkpoint == @checkpoint")
    failed = set(zip(failures["cycle_ratio"], failures["lr_ratio"], strict=True))
    absent = ["failed" if coordinate in failed else "missing" for coordinate in coordinates]
    return table.assign(
        replicates_planned=max([results.stored.spec.replicates, *table["replicates"]]),
        in_basin=(table[barrier] <= results.threshold) & (table["walls"] == 0),
        state=np.where(table["replicates"] > 0, "done", absent),
    ).reset_index()


def _certainty(results: Results, value: str, cells: pd.DataFrame) -> pd.DataFrame:
    """The interval of a value and the side of each point of these cells, which are of one method, checkpoint and size,
    by coordinates."""
    place, of_cells = ["cycle_ratio", "lr_ratio"], cells[POINT].drop_duplicates()
    barriers = of_cells.merge(results.barriers, on=POINT).set_index(place)
    if value == results.criterion.barrier:
        return barriers[["low", "high", "side"]]
    if value not in (*GAINS, *NLL_GAINS):  # which need not be read then
        return barriers[["side"]].assign(low=math.nan, high=math.nan)
    found = of_cells.merge(results._gained.of(value), on=POINT).set_index(place)
    return barriers[["side"]].join(found[["low", "high"]])


def boundary(table: pd.DataFrame) -> pd.DataFrame:
    """Where the basin ends in a `grid`, a row per cycle_ratio: between `highest_in`, the highest lr_ratio in the basin,
    and `lowest_out`, the lowest one out of it; NaN where there is none. Where `highest_in` is above `lowest_out`, in
    and out take turns."""
    done = table[table["state"] == "done"]
    inside = done[done["in_basin"]].groupby("cycle_ratio")["lr_ratio"].max()
    outside = done[~done["in_basin"]].groupby("cycle_ratio")["lr_ratio"].min()
    return pd.DataFrame({"highest_in": inside, "lowest_out": outside}).rename_axis("cycle_ratio").reset_index()


def missing_cells(results: Results) -> int:
    """How many cells of the sweep file, and of what its search has chosen by now, are not finished."""
    key = ["method", "lr_ratio", "cycle_ratio", "replicate"]
    present = results.cells.groupby(key)["checkpoint"].nunique().to_dict()
    wanted = Counter(
        (label, point.lr_ratio, point.cycle_ratio, replicate)
        for label, point, replicates in results.planned
        for replicate in replicates
    )
    return sum(max(0, n_checkpoints - present.get(cell, 0)) for cell, n_checkpoints in wanted.items())


def open_failures(results: Results) -> pd.DataFrame:
    """The failures that stand: the last one of each unit that no later run has finished."""
    if results.failures.empty:
        return results.failures
    done = {unit for table in ("cells", "members", "checkpoints") for unit in tables.ids(results.folder, table)}
    standing = results.failures[~results.failures["unit_id"].isin(done)].sort_values("at")
    return standing.drop_duplicates("unit_id", keep="last").reset_index(drop=True)


def values(results: Results, value: str) -> pd.DataFrame:
    """The cells with their `gains`, and with the column `value`.

    It is a numeric column of the cells or of their gains, or a score (a numeric column of `scores`) of what a cell
    holds, such as `ensemble_ece` or `val_soup_brier` (see `selection.SCORED`). Raises UserError if no cell is finished,
    or there is no such value.
    """
    cells = gains(judged(results))
    scores = (*SCORES, "deep_ensemble_equivalent")
    scored = {column.format(score): score for score in scores for column in selection.SCORED}
    if value in scored and value not in cells:
        cells = selection.with_score(cells, results.scores, scored[value])
    known = _numbers(cells)
    if value not in known:
        raise UserError(f"value {value}: is not a numeric column of the cells{nearest(value, [*known, *scored])}")
    return cells.assign(value=cells[value].astype(float))


MEASURED_ON_PATHS = ("barrier_", "member_barrier_", "rise_")
"""What columns begin with that are measured on the images of `basin.split`."""


def shown_as(results: Results, column: str) -> Quantity:
    """How `column` is shown; of what is measured on paths its title says on which images."""
    found = quantity(column)
    if column.startswith("checkpoint_barrier_"):
        return replace(found, title=f"{found.title} on {specs.IMAGES['val']}")
    if column.startswith(MEASURED_ON_PATHS):
        return replace(found, title=f"{found.title} on {results.stored.spec.basin.images}")
    return found


def _numbers(table: pd.DataFrame) -> list[str]:
    """The columns that hold numbers, and do not say where a row belongs."""
    keys = ("replicate", "lr_ratio", "cycle_ratio")
    return [name for name in table.select_dtypes(["number", "bool"]).columns if name not in keys]


def _cells_of_map(results: Results, value: str, method: str, n_members: int | None) -> pd.DataFrame:
    """The cells of one method and size, of all checkpoints, with column `value`. Raises UserError."""
    everything = values(results, value)
    root = results.folder.root
    cells = everything[everything["method"] == method]
    if cells.empty:
        there = ", ".join(sorted(set(everything["method"])))
        raise NotMeasured(f"{root}: no finished cell of method {method}; there are {there}")
    size = main_size(cells) if n_members is None else n_members
    sizes = ", ".join(map(str, sorted(set(cells["n_members"]))))
    cells = cells[cells["n_members"] == size]
    if cells.empty:
        raise NotMeasured(f"{root}: no finished cell of {method} has {size} members; there are {sizes}")
    # Of cells that were traced, one without an exit says that nothing left.
    measured = "checkpoint_barrier_error" if "exit_" in value else "value"
    if cells[measured].isna().all():
        raise NotMeasured(f"value {value}: no cell of {method} has one (soups and Local DE are made on request only)")
    return cells


def planned_methods(results: Results) -> dict[str, methods.Method]:
    """What the sweep file asks of each method, by its label."""
    return {method_label(name, keys): keys for name, keys in results.stored.spec.methods.items()}


def method_label(name: str, keys: methods.Method) -> str:
    """What tables call a method of a sweep file: it names the variant, too."""
    return methods.label(name, methods.variant(keys))


def searched(results: Results) -> str:
    """Who has chosen the points, how many there are by now, and how many were ended early; empty of a plain grid."""
    search, chosen = results.stored.spec.search, results.stored.chosen(results.folder)
    said = [f"{search.points} points at random"] if search.kind == "random" else []
    if search.searcher:
        measured = inventory.measured(results.folder, results.stored.settings, chosen)
        there = len({*chosen.points, *measured})
        said.append(f"{there} of {search.points} points by {search.searcher}")
    if search.by_cell:
        cells = counted(sum(len(replicates) for _, replicates in chosen.fewer), "cell")
        said.append(f"{cells} chosen by {search.kind}" + (f", of at most {search.points}" if search.points else ""))
    if search.scheduler:
        ended = counted(len(chosen.fewer), "point")
        said.append(f"{ended} ended early by {search.scheduler.scheduler}")
    return ", ".join(said) + (f"; {search.metric}, {search.mode}" if search.metric else "")
