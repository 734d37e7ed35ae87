"""An exported network as model.onnx: from normalised pixels to logits, for any number of images at once."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raybasin.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "model.onnx"
INPUT, OUTPUT = "pixels", "logits"
N_TRACED, N_CHECKED = 2, 5
"""So many images the exporter is shown, and so many others the two networks are compared on."""
WITHOUT = "leave --onnx out, the rest does not need it"
LARGEST_FILE = 1_800_000_000
"""Bytes of weights that one file can hold: protobuf ends at 2 GiB. Beyond, they lie beside it."""
INSTALL = 'pip install "raybasin[export]"'


@dataclass(frozen=True)
class Checked:
    """How far what onnxruntime finds lies from what torch finds, on random pixels. None: it was not installed."""

    largest_difference: float | None
    largest_logit: float | None
    n_images: int


def check_installed() -> None:
    """Raises UserError where torch's exporter lacks what it needs."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx: {' and '.join(missing)} are not installed, which torch needs for it; {INSTALL}")


def write(net: nn.Module, side: int, folder: Path) -> Checked:
    """Writes `net` to model.onnx in `folder`, for square images of `side` pixels. Raises UserError where torch cannot
    export it, or where what was exported computes something else."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def pixels(n: int) -> Tensor:
        return torch.randn(n, 3, side, side, generator=generator)

    size = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                net.eval(), (pixels(N_TRACED),), folder / FILE, dynamo=True, verbose=False,
                input_names=[INPUT], output_names=[OUTPUT], external_data=size > LARGEST_FILE,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except Exception as error:  # whatever a network does that has no counterpart
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"--onnx: torch {torch.__version__} cannot export this network ({type(error).__name__}: "
            f"{one_line(first, 200)}); {WITHOUT}"
        ) from error
    _check_batch(folder / FILE)
    return _check(net, pixels(N_CHECKED), folder / FILE)


def _check_batch(path: Path) -> None:
    """Raises UserError where the exporter took the number of images that it was shown for the only one: of the ways
    that it tries, not all keep to what it is asked."""
    import onnx

    first = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0]
    if not first.dim_param:
        raise UserError(
            f"--onnx: torch exports this network for {first.dim_value} images at once and no other number, since its "
            f"code makes a constant of it; {WITHOUT}"
        )


def _check(net: nn.Module, pixels_NCHW: Tensor, path: Path) -> Checked:
    import torch

    n = len(pixels_NCHW)
    if importlib.util.find_spec("onnxruntime") is None:
        return Checked(None, None, n)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [found_NC] = session.run([OUTPUT], {INPUT: pixels_NCHW.numpy()})
    except Exception as error:  # of an operator that it lacks, for one
        said = one_line(f"{type(error).__name__}: {error}", 200)
        raise UserError(f"--onnx: onnxruntime {onnxruntime.__version__} cannot run it ({said}); {WITHOUT}") from error
    with torch.inference_mode():
        logits_NC = net(pixels_NCHW)
    difference = float((torch.from_numpy(found_NC) - logits_NC).abs().max())
    largest = float(logits_NC.abs().max())
    if not difference <= 1e-3 * max(1.0, largest):
        raise UserError(
            f"--onnx: onnxruntime {onnxruntime.__version__} finds other logits than torch, by up to {difference:.2g} "
            f"where they are up to {largest:.2g}; {WITHOUT}"
        )
    return Checked(difference, largest, n)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own progress, to every stream."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
