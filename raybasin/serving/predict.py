"""What networks say of new images: a row for each, with calibrated probabilities, how sure they are, and, where classes
are known, how right.

Axes: M networks, B images of a batch, C classes, S the side that the network sees.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybasin.data import images
from raybasin.errors import UserError, is_out_of_memory, one_line
from raybasin.metrics import classification, intervals, uncertainty
from raybasin.metrics.classification import FloatArray
from raybasin.serving import exported
from raybasin.serving.exported import Tree
from raybasin.serving.new_images import NewImage, NewImages
from raybasin.serving.predictors import Predictor

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from raybasin.data.images import PixelArray

BATCH = 256
ROW_GROUP = 8192
ENDING = ".parquet"
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "image": (pa.string(), "Its path, or the file or array and its number there."),
    "label": (pa.string(), "Its class, where that is known."),
    "prediction": (pa.string(), "The likeliest class; null where the network overflows."),
    "probability": (pa.float64(), "Of that class, calibrated."),
    "entropy": (pa.float64(), "Of the calibrated probabilities, in nats: 0 is certain, log C is no idea."),
    "mutual_information": (
        pa.float64(),
        "What members disagree on, in nats, before calibration; null for one network.",
    ),
    "disagreement": (pa.float64(), "Share of the pairs of members that name different classes; null for one network."),
    "nll": (pa.float64(), "Negative log-likelihood of the label, calibrated, in nats; null without a known class."),
    "probabilities": (pa.list_(pa.float32()), "Of all classes, calibrated, in the order of `classes`."),
}
"""Of the table that is written: type and meaning."""


@dataclass
class Scored:
    """How right predictions are where classes are known; it grows with each batch."""

    n_rows: int = 0
    correct_N: list[float] = field(default_factory=list)
    nll_N: list[float] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    """Labels that are no class of the network, with the number of their images."""
    unreadable: list[str] = field(default_factory=list)
    """Images that were left out, and why."""

    def scores(self) -> dict[str, dict[str, float]]:
        """`accuracy` and `nll`, each with `value`, `low`, `high` (95 % over images) and `n_images`."""
        found = {"accuracy": np.asarray(self.correct_N), "nll": np.asarray(self.nll_N)}
        return {
            name: _estimate(values_N, share=name == "accuracy") for name, values_N in found.items() if len(values_N)
        }


def _estimate(values_N: FloatArray, share: bool) -> dict[str, float]:
    low, high = intervals.of_mean(values_N, share=share) if len(values_N) > 1 else (math.nan, math.nan)
    low = max(0.0, low) if low > -math.inf else low  # an NLL is never below 0
    return {"value": float(values_N.mean()), "low": low, "high": high, "n_images": len(values_N)}


def told(path: Path, predictor: Predictor, scored: Scored) -> Tree:
    """What a program reads of predictions that were written."""
    return exported.plain({
        "file": str(path), "n_images": scored.n_rows, "predictor": predictor.words, "n_networks": len(predictor.nets),
        "classes": predictor.classes, "temperature": predictor.temperature, "scores": scored.scores(),
        "unknown_labels": scored.unknown, "unreadable": scored.unreadable,
    })  # fmt: skip


def schema(predictor: Predictor) -> pa.Schema:
    """Of the table, with what it was made by in the metadata: `classes` as JSON, `temperature`, `predictor`."""
    fields = [pa.field(name, kind, metadata={"description": meaning}) for name, (kind, meaning) in COLUMNS.items()]
    about = {"classes": json.dumps(predictor.classes), "temperature": repr(predictor.temperature),
             "predictor": predictor.words}  # fmt: skip
    return pa.schema(fields, metadata=about)


def batches(
    predictor: Predictor,
    found: NewImages,
    scored: Scored,
    device: torch.device,
    batch_size: int = BATCH,
    skip_unreadable: bool = False,
    beat: Callable[[int], None] = lambda n_images: None,
) -> Iterator[pa.RecordBatch]:
    """The rows of all images, in their order.

    Args:
        predictor: its networks are moved to the device, all of them at once.
        found: the images.
        scored: is filled in on the way.
        device: where the networks run.
        batch_size: how many images at once.
        skip_unreadable: leave out images that cannot be read, which `scored` then names.
        beat: is called after each batch with the number of its images.

    Raises:
        UserError: for an image that cannot be read, or a device without the memory.
    """
    position = {name: k for k, name in enumerate(predictor.classes)}
    wanted = schema(predictor)
    with _explaining_memory(device, batch_size):
        nets = [net.to(device) for net in predictor.nets]
        for taken, pixels in _decoded(predictor, found, batch_size, skip_unreadable, scored.unreadable):
            if taken:
                log_probs_MBC = _log_probs(nets, _shown(predictor, pixels, device))
                labels = [position.get(image.label) if image.label is not None else None for image in taken]
                for image, label in zip(taken, labels, strict=True):
                    if image.label is not None and label is None:
                        scored.unknown[image.label] = scored.unknown.get(image.label, 0) + 1
                yield _rows(predictor, taken, labels, log_probs_MBC, scored, wanted)
            beat(len(taken))
    if len(scored.unreadable) == found.n:
        raise UserError(f"none of the {found.n:,} images can be read; the first: {scored.unreadable[0]}")


def frame(
    predictor: Predictor, found: NewImages, device: torch.device, batch_size: int, skip_unreadable: bool
) -> pd.DataFrame:
    """The rows as a data frame, with `classes`, `temperature`, `predictor` and `scores` in its `attrs`."""
    scored = Scored()
    rows = list(batches(predictor, found, scored, device, batch_size, skip_unreadable))
    table: pd.DataFrame = pa.Table.from_batches(rows, schema(predictor)).to_pandas()
    table.attrs = {
        "classes": list(predictor.classes), "temperature": predictor.temperature, "predictor": predictor.words,
        "scores": scored.scores(), "unreadable": scored.unreadable,
    }  # fmt: skip
    return table


def device_of(name: str | None) -> torch.device:
    """The first GPU where there is one and no device is named. Raises UserError for one that does not compute."""
    import torch

    from raybasin.jobs import local

    return local.device_of(name or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextlib.contextmanager
def _explaining_memory(device: torch.device, batch_size: int) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"there is not enough memory on {device} for the networks and {batch_size} images at once; make --batch "
            "smaller, or take a soup, which is one network"
        ) from error


# Images


def _decoded(
    predictor: Predictor, found: NewImages, batch_size: int, skip_unreadable: bool, unreadable: list[str]
) -> Iterator[tuple[list[NewImage], list[PixelArray]]]:
    """Batches of images with their pixels [H, W, 3]; while one is used, the next is decoded."""
    reader, side = found.read(), predictor.view.common_side
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:

        def begin() -> list[tuple[NewImage, Future[PixelArray]]]:
            return [(image, threads.submit(_pixels, image, side)) for image in itertools.islice(reader, batch_size)]

        coming = begin()
        while coming:
            now, coming = coming, begin()
            taken, pixels = [], []
            for image, future in now:
                try:
                    pixels.append(future.result())
                    taken.append(image)
                except UserError as error:
                    if not skip_unreadable:
                        way_out = "--skip-unreadable (skip_unreadable=True) leaves such images out, and says which"
                        raise UserError(f"{error}; {way_out}") from error
                    unreadable.append(one_line(error, 300))
            yield taken, pixels


def _pixels(image: NewImage, side: int | None) -> PixelArray:
    """As the sweep's test images were: brought to one square where those had several sizes, else in their own size."""
    from PIL import Image, ImageOps

    if isinstance(image.stored, bytes):
        picture = images.to_rgb(image.name, image.stored)
    elif side is None or image.stored.shape[:2] == (side, side):
        grey = image.stored.ndim == 2
        return np.repeat(image.stored[..., None], 3, axis=-1) if grey else image.stored
    else:
        picture = Image.fromarray(np.ascontiguousarray(image.stored)).convert("RGB")
    if side is not None:
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _shown(predictor: Predictor, pixels: Sequence[PixelArray], device: torch.device) -> Tensor:
    """float32 [B, 3, S, S], as evaluation shows images; those of one size are resized together."""
    import torch

    from raybasin.training import augment

    own = predictor.view.preprocess
    of_size: dict[tuple[int, ...], list[int]] = {}
    for position, one in enumerate(pixels):
        of_size.setdefault(one.shape, []).append(position)
    shown_BCSS = torch.empty((len(pixels), 3, own.image_size, own.image_size), device=device)
    for positions in of_size.values():
        alike_BHWC = torch.from_numpy(np.stack([pixels[position] for position in positions])).to(device)
        shown_BCSS[positions] = augment.evaluation_batch(alike_BHWC, own)
    return shown_BCSS.contiguous(memory_format=torch.channels_last)


def _log_probs(nets: Sequence[Any], shown_BCSS: Tensor) -> FloatArray:
    """Natural logarithms of probabilities, [M, B, C]."""
    import torch

    with torch.inference_mode():
        return np.stack([torch.log_softmax(net(shown_BCSS).float(), 1).cpu().numpy() for net in nets])


# Rows


def _rows(
    predictor: Predictor,
    taken: Sequence[NewImage],
    labels: Sequence[int | None],
    log_probs_MBC: FloatArray,
    scored: Scored,
    wanted: pa.Schema,
) -> pa.RecordBatch:
    calibrated_BC = uncertainty.averaged(log_probs_MBC)
    if not math.isnan(predictor.temperature):
        calibrated_BC = classification.tempered(calibrated_BC, predictor.temperature)
    classes_B = classification.classes_of(calibrated_BC)
    probs_BC = np.exp(calibrated_BC)
    known_b = np.flatnonzero([label is not None for label in labels])
    labels_b = np.array([label for label in labels if label is not None], dtype=np.int64)
    nll_B = np.full(len(taken), math.nan)
    nll_B[known_b] = classification.nll_of_images(calibrated_BC[known_b], labels_b)
    scored.n_rows += len(taken)
    scored.correct_N += (classes_B[known_b] == labels_b).astype(float).tolist()
    scored.nll_N += nll_B[known_b].tolist()
    columns = {
        "image": [one_line(image.name) for image in taken],
        "label": [image.label for image in taken],
        "prediction": [None if k == classification.NO_CLASS else predictor.classes[k] for k in classes_B],
        "probability": probs_BC.max(axis=1),
        "entropy": uncertainty.entropy(calibrated_BC),
        "mutual_information": _null_if_nan(uncertainty.mutual_information(log_probs_MBC)),
        "disagreement": _null_if_nan(uncertainty.disagreement(log_probs_MBC)),
        "nll": _null_if_nan(nll_B),
        "probabilities": pa.ListArray.from_arrays(
            np.arange(len(taken) + 1, dtype=np.int32) * probs_BC.shape[1], probs_BC.astype(np.float32).ravel()
        ),
    }
    return pa.RecordBatch.from_arrays(
        [one if isinstance(one, pa.Array) else pa.array(one, wanted.field(name).type) for name, one in columns.items()],
        schema=wanted,
    )


def _null_if_nan(values_B: FloatArray) -> pa.Array[Any]:
    return pa.array(values_B, from_pandas=True)


# The file


def write(path: Path, rows: Iterator[pa.RecordBatch], wanted: pa.Schema) -> None:
    """Writes the rows as they come; the file appears whole or not at all. Raises UserError where it cannot be."""
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(beside, wanted) as file:
            waiting: list[pa.RecordBatch] = []
            for batch in itertools.chain(rows, [None]):
                if batch is not None:
                    waiting.append(batch)
                if waiting and (batch is None or sum(map(len, waiting)) >= ROW_GROUP):
                    file.write_table(pa.Table.from_batches(waiting, wanted))
                    waiting.clear()
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); name another file with -o") from error
    finally:
        beside.unlink(missing_ok=True)
