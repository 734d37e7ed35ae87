"""`make gpu-check` where there is no GPU: every part at the size of a toy, so that it is there when one is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check"
HOLD = ("recorded", "agree", "precisions")
MEASURE = ("limits", "training", "workers", "authors_way", "evaluating", "decoding", "stacked")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """By part. `memory` asks a GPU, what `fleet` does without one the tests of the cluster do."""
    return checked(tmp_path_factory.mktemp("gpu-check"), *HOLD, *MEASURE)


def checked(out, *parts):
    """The rows of so many parts."""
    command = [sys.executable, CHECK, "--toy", "--device", "cpu", "--out", out, "--parts", ",".join(parts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "table.md").read_text() in done.stdout
    lines = {part: (out / f"{part}.jsonl").read_text().splitlines() for part in parts}
    return {part: [json.loads(line) for line in written] for part, written in lines.items()}


def test_everything_that_must_hold_was_looked_at_and_holds(rows):
    for part in HOLD:
        verdicts = [row["holds"] for row in rows[part] if row["holds"] is not None]
        assert len(verdicts) >= 2 and all(verdicts), rows[part]


@pytest.mark.slow
def test_kill_and_continue(tmp_path):
    verdicts = [row["holds"] for row in checked(tmp_path, "continued")["continued"] if row["holds"] is not None]
    assert len(verdicts) == 3 and all(verdicts)


def test_everything_else_is_measured(rows):
    for part in MEASURE:
        figures = [row["value"] for row in rows[part] if row["what"] != "took"]
        assert figures and all(figure > 0 for figure in figures), rows[part]


def test_unknown_parts_are_refused():
    done = subprocess.run([sys.executable, str(CHECK), "--parts", "speed"], capture_output=True, text=True)
    assert done.returncode == 2 and "speed" in done.stderr and "training" in done.stderr
