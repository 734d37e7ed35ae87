"""By which barrier a point is decided soonest: of the error or in nats, on validation or on training images.

    python benchmarks/barrier_kinds.py RESULTS [--images N] [--draws N] [--data DIR]

RESULTS is a finished sweep that has kept its weights (`make demo`). Every hub-member path of its exploring cells is
measured at 5 points on all of its images, batch norm re-estimated: on training images without augmentation, and on
validation and test images together. The barriers on the latter are taken for the truth: a cell is in the basin if the
largest is at most the threshold. A threshold in nats lies as far between the cells in the basin and those out of it.

Then `--images` images are drawn, as many for each kind, since evaluating them is what it costs; the excess at the
highest point of the path with the largest barrier gives an interval of 95 % over images. Prints of each kind how many
cells it decides, and how many of these wrongly, as means over `--draws` draws; training images are drawn from all there
are, so of as many as there are every draw is the same. Nothing is trained.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.data import dataset
from raybasin.jobs.worker_context import WorkerContext
from raybasin.landscape import barriers, interpolation
from raybasin.metrics import classification, intervals
from raybasin.store import inventory
from raybasin.store.provenance import versions
from raybasin.training.models import State

Array = npt.NDArray[np.float64]
HELD_OUT, TRAIN = "held out", "train"
POINTS = 5


@dataclass(frozen=True)
class Measured:
    """Of one cell: what each image adds to the excess at each inner point of each path, by (images, error or nll),
    [paths x inner points, N]."""

    label: str
    excess: Mapping[tuple[str, str], Array]

    def interval(
        self, kind: tuple[str, str], chosen: npt.NDArray[np.int64] | None = None
    ) -> tuple[float, float, float]:
        """The largest barrier on these images, and the ends of its interval."""
        excess_XN = self.excess[kind] if chosen is None else self.excess[kind][:, chosen]
        found = intervals.interval([excess_XN[[excess_XN.mean(axis=1).argmax()]]])
        return max(0.0, found.estimate), found.low, found.high


def measured(results: Results, data_dir: str | None) -> Iterator[Measured]:
    made = inventory.stored_plan(results.folder, results.settings_id)
    spec = made.spec.data if data_dir is None else made.spec.data.model_copy(update={"dir": data_dir})
    context = WorkerContext(results.folder, made.settings, dataset.load(spec), {}, torch.device("cpu"))
    for row in reading.exploring(results.cells).to_dict("records"):
        hub, *states = [context.weights_of(context.sha256_of(member_id)) for member_id in row["member_ids"]]
        found = dict[tuple[str, str], list[Array]]()
        at_hub = by_image(hub, context)
        for state in states:
            at_end = by_image(state, context)
            for t in barriers.path_points(POINTS)[1:-1]:
                inside = by_image(interpolation.interpolate(hub, state, t), context)
                for kind, value_N in inside.items():
                    found.setdefault(kind, []).append(barriers.image_excess(t, value_N, at_hub[kind], at_end[kind]))
        label = f"{row['method']} {row['lr_ratio']:g} {row['cycle_ratio']:g} {row['replicate']}"
        yield Measured(label, {kind: np.stack(rows) for kind, rows in found.items()})


def by_image(state: State, context: WorkerContext) -> dict[tuple[str, str], Array]:
    """Whether each image is misclassified at these weights, and its NLL."""
    of_split, values = context.predict_at(state, ("train", "val", "test")), {}
    for where, splits in ((TRAIN, ["train"]), (HELD_OUT, ["val", "test"])):
        log_probs_NC = np.concatenate([of_split[split] for split in splits])
        labels_N = np.concatenate([context.images(split)[1].numpy() for split in splits])
        values[where, "error"] = (classification.classes_of(log_probs_NC) != labels_N).astype(float)
        values[where, "nll"] = -log_probs_NC[np.arange(len(labels_N)), labels_N].astype(float)
    return values


def like(threshold: float, truth: Array, values: Array) -> float:
    """The threshold that lies where `threshold` does among the true barriers: as far between the highest barrier of the
    cells in the basin and the lowest of those out of it."""
    is_in = truth <= threshold
    place = (threshold - truth[is_in].max()) / (truth[~is_in].min() - truth[is_in].max())
    return float(values[is_in].max() + place * (values[~is_in].min() - values[is_in].max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--data")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = reading.open(asked.results)
    cells = list(measured(results, asked.data))
    truth = np.array([cell.interval((HELD_OUT, "error"))[0] for cell in cells])
    is_in = truth <= results.threshold
    print(f"{len(cells)} cells, {is_in.sum()} in the basin by {cells[0].excess[HELD_OUT, 'error'].shape[1]} images")
    print(f"{asked.images} images, {asked.draws} draws; python {platform.python_version()}, {versions()}\n")
    print("images    by     threshold  decided  wrongly  agrees  width over threshold")
    rng = np.random.default_rng(0)
    for where in (HELD_OUT, TRAIN):
        for by in ("error", "nll"):
            whole = np.array([cell.interval((where, by))[0] for cell in cells])
            threshold = results.threshold if by == "error" else like(results.threshold, truth, whole)
            n = cells[0].excess[where, by].shape[1]
            decided, wrongly, width = [], [], []
            for _ in range(asked.draws):
                chosen = rng.choice(n, min(asked.images, n), replace=False)
                for cell, inside in zip(cells, is_in, strict=True):
                    _, low, high = cell.interval((where, by), chosen)
                    side = intervals.side(low, high, threshold)
                    decided.append(side != "undecided")
                    wrongly.append(side == ("out" if inside else "in"))
                    width.append((high - low) / 2 / threshold)
            share, errors = 100 * np.mean(decided), 100 * np.sum(wrongly) / max(1, np.sum(decided))
            agrees = f"{np.sum((whole <= threshold) == is_in)} of {len(cells)}"
            print(
                f"{where:9} {by:6} {threshold:<10.3g} {share:5.1f} %  {errors:5.1f} %  {agrees}  {np.median(width):.2f}"
            )


if __name__ == "__main__":
    main()
