"""No sweep file and no results folder, however broken or forged, ends in a traceback or hangs.

pytest tests/test_fuzz.py                              # a small share, always the same
FUZZ_INPUTS=10000 FUZZ_SEED=1 pytest tests/test_fuzz.py -s   # as many others as wanted
"""

import os
import shutil
from collections import Counter

import fuzzing
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from raybasin.errors import UserError
from raybasin.store import inventory
from raybasin.store.folders import Folder

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
FOLDERS = max(1, INPUTS * 3 // 10)
SWEEP_FILES = INPUTS - FOLDERS


OFTEN = [name for name in (*fuzzing.COMMANDS, "python") for _ in range({"report": 1, "map": 2}.get(name, 6))]
"""Commands, those that draw for a second or two less often than the others."""


def many(inputs):
    """Settings for so many inputs, the same for the same seed."""

    def decorate(test):
        quiet = settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                         print_blob=False)  # fmt: skip
        return seed(SEED)(quiet(test))

    return decorate


def test_sweep_files(tmp_path):
    counts = Counter()

    @many(SWEEP_FILES)
    @given(fuzzing.sweep_files())
    def read(drawn):
        content, options = drawn
        with fuzzing.limited():
            made = fuzzing.read_sweep_file(tmp_path / "sweep.yaml", content, options)
        counts["refused" if made is None else "planned"] += 1
        if made is not None and len(made.cells) < 100:
            folder = Folder(tmp_path)
            folder.put(f"sweeps/{made.settings_id}.yaml", inventory.resolved(made).encode())
            again = inventory.stored_plan(folder, made.settings_id)  # what is stored of a sweep says what was planned
            assert (again.settings_id, again.eval_id, again.cells) == (made.settings_id, made.eval_id, made.cells)

    read()
    print(f"\nsweep files, seed {SEED}: {dict(counts)}")
    assert counts["refused"] and counts["planned"]


def test_results_folders(finished, tmp_path):
    counts = Counter()

    @many(FOLDERS)
    @given(st.data())
    def read(data):
        root, out = tmp_path / "r", tmp_path / "out"
        for folder in (root, out):
            shutil.rmtree(folder, ignore_errors=True)
        out.mkdir()
        fuzzing.linked(finished.folder.root, root)
        done = [fuzzing.mutate_folder(data.draw, root) for _ in range(data.draw(st.integers(1, 3)))]
        name = data.draw(st.sampled_from(OFTEN))
        try:
            with fuzzing.limited():
                if name != "python":
                    counts[f"{name}: {fuzzing.assert_handled(name, root, out)}"] += 1
                else:
                    _from_python(root, counts)
        except BaseException as error:
            error.add_note(f"{name} after {done}")
            raise

    read()
    print(f"\nresults folders, seed {SEED}: {dict(sorted(counts.items()))}")
    drawn = {name.partition(":")[0] for name in counts}
    assert len(drawn) > 3 and (FOLDERS < 1000 or drawn >= set(fuzzing.COMMANDS))


def _from_python(root, counts):
    try:
        fuzzing.tables_from_python(root)
        counts["python: read"] += 1
    except UserError as error:
        fuzzing.assert_said_well(str(error))
        counts["python: refused"] += 1
