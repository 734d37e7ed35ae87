"""Maps the basin of a pre-trained checkpoint: StarSSE ensembles, soups and barriers, swept with Ray, kept in Parquet.

    import raybasin

    report = raybasin.run("sweeps/digits.yaml", "results/digits")      # in this process, without Ray
    results = raybasin.open("results/digits")                          # pandas: .cells, .scores, .paths, ...
    log_probs_MNC = raybasin.log_probs(results, results.cells.cell_id[0], "test")
    gain = raybasin.compare(results, {"method": "star_sse", "lr_ratio": 8, "cycle_ratio": 1}, "local_de")
    raybasin.export(results, "digits-soup")                            # a folder that timm loads
    raybasin.predict("digits-soup", "photos")                          # a row for each image, calibrated

`pretrain` makes only the checkpoints that a sweep file declares. The command `raybasin` does the same and more, with
Ray on many workers.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import raybasin  # by which type hints name what is imported when it is first used
from raybasin.errors import FolderLost, UserError

__all__ = [
    "FolderLost", "Interval", "Pretrained", "Report", "Results", "SweepSpec", "UserError", "__version__", "compare",
    "export", "log_probs", "open", "predict", "pretrain", "run",
]  # fmt: skip
__version__ = "0.1.0"

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    from raybasin.analysis import comparisons
    from raybasin.analysis import results as reading
    from raybasin.analysis.results import Results
    from raybasin.jobs import local
    from raybasin.jobs.local import Pretrained, Report
    from raybasin.metrics import intervals
    from raybasin.metrics.intervals import Interval
    from raybasin.serving import export_folder, new_images, predictors
    from raybasin.serving import predict as predicting
    from raybasin.sweep import specs
    from raybasin.sweep.specs import SweepSpec
else:  # `import raybasin` waits for neither torch nor pandas

    class _Later:
        """A module that is imported when something of it is used, be it by `typing.get_type_hints`."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, attribute: str) -> Any:
            from importlib import import_module

            return getattr(import_module(self.name), attribute)

    np, npt, pd, torch = map(_Later, ("numpy", "numpy.typing", "pandas", "torch"))
    reading, comparisons = map(_Later, ("raybasin.analysis.results", "raybasin.analysis.comparisons"))
    export_folder, predicting = map(_Later, ("raybasin.serving.export_folder", "raybasin.serving.predict"))
    predictors, new_images = map(_Later, ("raybasin.serving.predictors", "raybasin.serving.new_images"))
    local, specs, intervals = map(_Later, ("raybasin.jobs.local", "raybasin.sweep.specs", "raybasin.metrics.intervals"))

    def __getattr__(name: str) -> Any:
        modules = {"Results": reading, "Report": local, "Pretrained": local, "SweepSpec": specs, "Interval": intervals}
        if name not in modules:
            raise AttributeError(f"module 'raybasin' has no attribute '{name}'")
        return getattr(modules[name], name)


def __dir__() -> list[str]:
    """What `help` explains and Tab offers: the functions, what they return and raise. Other names here are no API."""
    return sorted({*__all__} - {"SweepSpec"})


def run(
    spec: raybasin.SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] | None = None,
    retrain: bool = False,
    ray: bool = False,
    address: str | None = None,
) -> raybasin.Report:
    """Runs or continues a sweep in this process, one job after another, or with `ray` on many workers.

    What `results` holds already is not done again, so the same call continues a run that was stopped.

        report = raybasin.run("sweeps/digits.yaml", "results/digits", tell=print)
        assert report.complete, report.failures
        report = raybasin.run("sweeps/digits.yaml", "results/digits", ray=True)
        report.trials.get_dataframe()                                 # what Ray Tune has seen: a ResultGrid

    Args:
        spec: the path of a sweep file, its content as mappings, or a `SweepSpec`.
        results: the results folder or its address (`s3://bucket/prefix`); it is made if need be.
        device: where networks are trained and evaluated, for instance `cuda`. On Ray the sweep's `workers` say it.
        tell: is given a line of text for each job that is done; on Ray, of how far the sweep is. Without it a notebook
            shows a line: how far the run is, the points it works at, and the time left.
        retrain: whether networks are trained again whose weights were pruned (`keep.weights`) and are needed.
        ray: whether Ray Train runs the workers and Ray Tune the trials, as the command `raybasin sweep` has it.
            Searchers, schedulers and callbacks (`search`) need it.
        address: of a Ray cluster, host:port; by default one is started on this machine for the run.

    Returns:
        How many cells are committed now, and which failed for what reason.

    Raises:
        UserError: for bad input, or a device that does not compute, before anything is trained.
        FolderLost: where the results folder cannot be written any more; the same call continues.
    """
    if not ray:
        if address is not None:
            raise UserError("address: is that of a Ray cluster; add ray=True")
        return local.run(spec, results, device=device, tell=tell, retrain=retrain)
    if device != "cpu":
        raise UserError(f"device: {device} is for runs without Ray; with it workers take GPUs as workers.gpus says")
    from raybasin.cluster import driver

    return driver.run_sweep(spec, results, address=address, tell=tell, retrain=retrain)


def pretrain(
    spec: raybasin.SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] | None = None,
) -> raybasin.Pretrained:
    """Makes the checkpoints that a sweep declares and nothing else, in this process, without Ray.

    A sweep in the same results folder then finds them.

        made = raybasin.pretrain("sweeps/digits.yaml", "results/digits")
        assert made.complete, made.failures

    Args:
        spec: the path of a sweep file, its content as mappings, or a `SweepSpec`; `model.pretrained` of it must hold
            an entry `pretrain`.
        results: the results folder or its address; it is made if need be.
        device: where networks are trained, for instance `cuda`.
        tell: is given a line of text for each checkpoint that is made.

    Returns:
        The declared checkpoints that are there now, and why others are not.

    Raises:
        UserError: for bad input, or a device that does not compute, before anything is trained.
        FolderLost: where the results folder cannot be written any more; the same call continues.
    """
    return local.pretrain(spec, results, device=device, tell=tell)


def open(path: str | os.PathLike[str], settings: str | None = None) -> raybasin.Results:
    """Opens a results folder; a sweep may be running in it.

        results = raybasin.open("results/digits")
        results.cells.pivot_table("barrier_error", "lr_ratio", "cycle_ratio")

    Args:
        path: a results folder or its address.
        settings: the settings_id to read or its beginning, needed where the folder holds several; `latest` is that
            worked on last.

    Returns:
        The tables as pandas data frames: `cells, members, epochs, paths, scores, traces, planes, failures,
        points, checkpoints`, and what follows from them with 95 % intervals: `comparisons`, `barriers`. Each is read
        when it is first asked for.

    Raises:
        UserError: if `path` is no results folder, holds several settings and none is named, or does not hold the one
            that is.
    """
    return reading.open(path, settings)


def log_probs(
    results: raybasin.Results | str | os.PathLike[str], cell_id: str, split: str, bn: str = "own"
) -> npt.NDArray[np.float32]:
    """Log-probabilities of a cell's members, as they were stored when the cell was scored.

        log_probs_MNC = raybasin.log_probs("results/digits", cell_id, "test")
        ensemble_NC = np.exp(log_probs_MNC).mean(axis=0)

    Args:
        results: what `open` gives, or a results folder.
        cell_id: a cell of these results, from the table `cells`.
        split: `val`, `test` or the name of a shift set.
        bn: the batch-norm statistics that members were evaluated with: their `own`, or `reestimated` ones.

    Returns:
        Natural logarithms of probabilities, float32 [M members, N examples, C classes]: the hub first, examples in
        the order of the split.

    Raises:
        UserError: if there is no such cell, or its predictions on `split` were not stored.
    """
    return reading.log_probs(results, cell_id, split, bn)


def compare(
    results: raybasin.Results | str | os.PathLike[str],
    a: str | Mapping[str, Any],
    b: str | Mapping[str, Any],
    *,
    split: str = "test",
    metric: str | None = None,
) -> raybasin.Interval:
    """How much better `a` is than `b`, and how sure that is: the mean difference with its 95 % interval, from the
    stored predictions, paired by checkpoint, replicate and image.

        best = {"method": "star_sse", "lr_ratio": 8, "cycle_ratio": 1}
        gain = raybasin.compare("results/digits", best, "local_de")
        print(gain.estimate, gain.low, gain.high, gain.verdict)             # better | worse | not distinguishable
        raybasin.compare("results/digits", {**best, "of": "soup"}, {"of": "hub", "bn": "reestimated"}, metric="nll")

    A replicate is an independent hub; two of them leave one degree of freedom, so the interval is wide, and one
    leaves the images alone (`knows`). Where points of several checkpoints are meant, it speaks of further checkpoints.

    Args:
        results: what `open` gives, or a results folder.
        a: a method (as `cells` names it) or, where it has several points, a mapping: `method`, `checkpoint`,
            `lr_ratio`, `cycle_ratio` and `n_members` choose cells; `of` is `ensemble` (the default), `soup`,
            `greedy_soup` or `hub`; `bn` is `own` or `reestimated`.
        b: what it is compared with, likewise, or `hub`: the hubs of the same replicates.
        split: `test`, `val` or the name of a shift set.
        metric: `accuracy`, `mean_class_accuracy` or `nll`; the metric of the data set by default.

    Returns:
        `estimate` (of a less b), `low`, `high`, `n_images`, `n_replicates`, `n_checkpoints`, `p_value`, `verdict` on a.

    Raises:
        UserError: if a or b is no point, or several, if they have no replicate in common, or if their predictions on
            `split` were not stored.
    """
    opened = results if isinstance(results, reading.Results) else reading.open(results)
    return comparisons.compare(opened, a, b, split=split, metric=metric)


def export(
    results: raybasin.Results | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    what: str = "soup",
    cell: str | None = None,
    onnx: bool = False,
) -> pathlib.Path:
    """Writes a soup, an ensemble or a hub as a folder that works elsewhere: timm loads it without raybasin, and the
    Hugging Face hub takes it as it is, with its scores and a model card.

        raybasin.export("results/digits", "digits-soup")
        net = timm.create_model("local-dir:digits-soup", pretrained=True)
        raybasin.export(results, "digits-ensemble", what="ensemble", cell=results.cells.cell_id[0])

    Args:
        results: what `open` gives, or a results folder.
        directory: the folder to write; it must be new or empty.
        what: `soup`, `greedy_soup`, `ensemble` or `hub`.
        cell: whose, a cell_id from the table `cells`; by default of the cell that is best on validation.
        onnx: whether to write `model.onnx` as well, which needs `pip install "raybasin[export]"`.

    Returns:
        The folder's path. Its README.md says how to load it, `raybasin.open(...)` is not needed for it.

    Raises:
        UserError: for a directory that is taken, weights that were not made or kept, or what timm or ONNX cannot take.
    """
    opened = results if isinstance(results, reading.Results) else reading.open(results)
    return export_folder.write(opened, directory, what, cell, onnx).folder


def predict(
    source: raybasin.Results | str | os.PathLike[str],
    images: Any,
    *,
    what: str | None = None,
    cell: str | None = None,
    labels: Any = None,
    device: str | None = None,
    batch_size: int = 256,
    skip_unreadable: bool = False,
    factory: str | None = None,
) -> pd.DataFrame:
    """What the networks of a sweep say of new images: a row for each, calibrated, and how sure they are.

        found = raybasin.predict("results/digits", "photos")          # by the best ensemble on validation
        found.sort_values("mutual_information").tail()                # what its members disagree on
        found.attrs["scores"]                                         # where the classes of images are known
        raybasin.predict("digits-soup", array_NHWC, labels=numbers)   # what `export` wrote, without the results

    Args:
        source: what `open` gives, a results folder, a folder that `export` wrote, or a file that `raybasin soup` wrote.
        images: a folder (at any depth; one below a folder with the name of a class is of that class), an image, a
            `.parquet`, `.npy` or `.npz` file, several of these, an array [N, H, W] or [N, H, W, 3] of uint8, or a list
            of images of Pillow.
        what: `ensemble` (the default of a results folder), `soup`, `greedy_soup`, `hub` or `member-K`.
        cell: whose, a cell_id from the table `cells`; by default of the cell that is best on validation.
        labels: of an array or a list, the name or the number of each image's class.
        device: such as `cuda`; by default the first GPU, else the processor.
        batch_size: images at once.
        skip_unreadable: whether images that cannot be read are left out, and listed in `attrs["unreadable"]`.
        factory: that of the networks, where they have one: it is code that is run, and must be named.

    Returns:
        `image, label, prediction, probability, entropy, mutual_information, disagreement, nll, probabilities`, in
        nats; the last is an array [classes] in the order of `attrs["classes"]`.

    Raises:
        UserError: for weights that were not kept, what is no image, or a device that does not compute.
    """
    predictor = predictors.find(source, what, cell, factory=factory)
    found = new_images.find(images, predictor.classes, labels)
    return predicting.frame(predictor, found, predicting.device_of(device), batch_size, skip_unreadable)
