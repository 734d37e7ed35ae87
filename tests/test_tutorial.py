"""The tutorial, line by line in an empty folder: as it stands where slow tests run, else with a shorter sweep."""

import os
import re
import subprocess
import sys
from pathlib import Path

import places
import pytest

PAGE = places.REPOSITORY / "docs" / "tutorial.md"


SHORTER = " --set recipe.epochs=5 --set replicates=1"
"""Of the page's sweep, which is most of its minutes; and no replicates are compared then."""


def blocks(shorter):
    page = PAGE.read_text()
    if shorter:
        page, count = re.subn(r"^raybasin (?:plan|sweep) first.yaml", rf"\g<0>{SHORTER}", page, flags=re.MULTILINE)
        assert count == 2
    return re.findall(r"^```(bash|python)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.ray
@pytest.mark.parametrize("shorter", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_tutorial_runs_from_top_to_bottom(shorter, tmp_path):
    on_path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    within = {**os.environ, "PATH": on_path, "PYTHONPATH": str(places.REPOSITORY),
              "RAYBASIN_DATA": str(tmp_path / "cache"),
              "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
    said = []
    for language, text in blocks(shorter):
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=within, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    whole = "\n".join(said)
    assert "recipe.lr: " in whole and "digit-5" in whole and "whose class is known" in whole
    accuracy = float(re.search(r"accuracy ([\d.]+)", said[-2]).group(1))
    assert accuracy > 60, "far better than chance, 20 %"
    assert {"map.png", "report.html", "my-model", "my-ensemble", "predictions.parquet"} <= set(os.listdir(tmp_path))
