"""The front door: what `raybasin` offers to Python, to editors and to type checkers."""

import inspect
import pathlib
import pydoc
import subprocess
import sys
import textwrap
import typing

import numpy as np
import numpy.typing as npt
import pandas
import places
import pytest
import torch

import raybasin
from raybasin.jobs import local

FUNCTIONS = ("run", "open", "pretrain", "log_probs", "compare", "export", "predict")
RETURNED = ("Results", "Report", "Pretrained", "Interval")


def test_all_and_dir_show_the_functions_and_what_they_return():
    assert {*FUNCTIONS, *RETURNED, "SweepSpec", "UserError", "FolderLost"} <= set(raybasin.__all__)
    assert dir(raybasin) == sorted([*FUNCTIONS, *RETURNED, "FolderLost", "UserError", "__version__"])
    assert all(hasattr(raybasin, name) for name in raybasin.__all__)


def test_tab_completion_offers_them():
    import rlcompleter

    completer = rlcompleter.Completer({"raybasin": raybasin})
    offered = {completer.complete("raybasin.", i) for i in range(len(raybasin.__all__))}
    assert {f"raybasin.{name}(" for name in (*FUNCTIONS, *RETURNED)} <= {str(name).rstrip(")") for name in offered}


def test_help_shows_signatures_arguments_and_types():
    text = pydoc.render_doc(raybasin, renderer=pydoc.plaintext)
    assert len(text) < 32_000
    assert "run(spec: 'raybasin.SweepSpec | str | os.PathLike[str] | Mapping[str, Any]', results:" in text
    assert all(f"class {name}" in text for name in RETURNED) and "-> 'raybasin.Report'" in text and "pretrain(" in text
    for name in FUNCTIONS:
        documented = inspect.getdoc(getattr(raybasin, name))
        parameters = inspect.signature(getattr(raybasin, name)).parameters
        assert all(f"    {parameter}: " in documented for parameter in parameters)
        assert "Returns:" in documented and "Raises:" in documented and "raybasin." in documented


def test_the_type_hints_are_types():
    hints = {name: typing.get_type_hints(getattr(raybasin, name)) for name in FUNCTIONS}
    returned = {name: hints[name]["return"] for name in FUNCTIONS}
    assert returned == {"run": raybasin.Report, "open": raybasin.Results, "pretrain": raybasin.Pretrained,
                        "log_probs": npt.NDArray[np.float32], "compare": raybasin.Interval,
                        "export": pathlib.Path, "predict": pandas.DataFrame}  # fmt: skip
    assert {raybasin.SweepSpec, str} < set(typing.get_args(hints["run"]["spec"]))
    assert set(typing.get_args(hints["run"]["device"])) == {str, torch.device}
    assert raybasin.Results in typing.get_args(hints["log_probs"]["results"])


def test_importing_the_package_waits_for_nothing():
    code = "import sys, raybasin; dir(raybasin); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=places.REPOSITORY)
    loaded = set(found.stdout.split())
    assert "raybasin" in loaded and not loaded & {"torch", "ray", "matplotlib", "pandas", "numpy", "pyarrow", "typer"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = raybasin.nonsense


SNIPPET = """
import raybasin
report = raybasin.run("sweep.yaml", "results")
reveal_type(report)
reveal_type(report.complete)
reveal_type(raybasin.pretrain("sweep.yaml", "results").made)
results = raybasin.open("results")
reveal_type(results.cells)
reveal_type(raybasin.log_probs(results, "cell", "test"))
raybasin.run()
"""


def test_type_checkers_see_what_the_functions_return(tmp_path):
    """As a user's project sees it: through `py.typed`, with no stubs and no settings of ours."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--config-file=", "snippet.py"]
    cache = ["--cache-dir", str(places.REPOSITORY / ".mypy_cache" / "snippet")]
    done = subprocess.run([*command, *cache], cwd=tmp_path, capture_output=True, text=True,
                          env={"MYPYPATH": str(places.REPOSITORY)})  # fmt: skip
    revealed = [line.partition("Revealed type is ")[2].strip('"') for line in done.stdout.splitlines()
                if "Revealed" in line]  # fmt: skip
    assert (places.REPOSITORY / "raybasin" / "py.typed").exists()
    assert revealed[:3] == ["raybasin.jobs.local.Report", "bool", "tuple[raybasin.sweep.facts.CheckpointFacts, ...]"]
    assert "DataFrame" in revealed[3] and "32Bit" in revealed[4]
    assert 'snippet.py:10: error: Missing positional arguments "spec", "results"' in done.stdout


def test_a_report_fits_on_a_screen(finished):
    root = str(finished.folder.root)
    report = local.Report(finished.plan, committed=4, results=root)
    assert repr(report) == f"Report: 4 of 4 cells committed, 0 failed; results in {root}"
    ended = local.Report(finished.plan, committed=3, ended="the disk is full", results=root)
    assert repr(ended) == f"Report: 3 of 4 cells committed, 0 failed; the disk is full; results in {root}"
    made = local.pretrained(finished.folder, finished.plan, ())
    assert repr(made) == f"Pretrained: 1 of 1 checkpoints made; results in {root}"
    opened = raybasin.open(finished.folder.root)
    assert repr(opened) == f"Results({root!r}, settings={opened.settings_id!r})"
    assert textwrap.shorten(repr(opened), 400) == repr(opened)
