"""The README's Python runs as it stands, on tables like the demo's."""

import re

import places
import pytest

README = (places.REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def results_beside(finished, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits").symlink_to(finished.folder.root)
    monkeypatch.chdir(tmp_path)


def test_the_readme_answers_questions_in_pandas():
    assert sum(block.count("?") for block in BLOCKS) >= 4


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_of_the_readme_runs(block, results_beside, capsys):
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "lr_ratio" in printed and "mean" in printed and "star_sse" in printed


def test_log_probs_of_a_cell_are_members_by_examples_by_classes(results_beside, finished):
    import numpy as np

    import raybasin

    cell = finished.plan.cells[0]
    log_probs_MNC = raybasin.log_probs("results/digits", cell.cell_id, "test")
    assert log_probs_MNC.shape == (3, 50, 5)
    np.testing.assert_allclose(np.exp(log_probs_MNC).sum(-1), 1, atol=1e-5)
