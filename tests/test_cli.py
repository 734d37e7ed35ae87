"""The command line as a user meets it: what is printed, and with which exit status."""

import contextlib
import io
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
import yaml

import raybasin as package
from raybasin import cli, tables

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def raybasin(*arguments):
    """Runs a command in this process, where torch is imported already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["raybasin", *map(str, arguments)])
        patch.chdir(REPOSITORY)
        cli.main()
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tiny.tree()))
    return path


def assert_refused(done, *words):
    """Exit status 2, and one or two lines that name what is wrong; nothing of Python's."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recipe.momentumm=0.9", ["recipe.momentumm", "did you mean 'momentum'"]),
        ("methods.star_sse.lr_ratio=[-1]", ["methods.star_sse.lr_ratio", "greater than 0"]),
        ("recipe.lr=.nan", ["recipe.lr", "finite"]),
        ("recipe.epochs=many", ["recipe.epochs", "integer"]),
        ("model.name=test_resnt", ["model.name", "did you mean 'test_resnet'"]),
        ("data.classes=[5, 60]", ["60"]),
        ("data.validation={images: 5000}", ["validation"]),
        ("methods.star_sse.cycle_ratio=[0.001]", ["methods.star_sse.cycle_ratio", "0 steps"]),
        ("methods.star_sse.cycle_ratio=[1, 1.001]", ["methods.star_sse.cycle_ratio", "leave one of them out"]),
        ("basin.points=4", ["basin.points", "odd"]),
    ],
)
def test_a_wrong_value_is_named_before_anything_starts(sweep_file, tmp_path, change, words):
    assert_refused(raybasin("sweep", sweep_file, "--results", tmp_path / "r", "--set", change), *words)
    assert not (tmp_path / "r" / "members").exists()


def test_missing_data_without_a_network_names_three_ways(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise socket.gaierror("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path / "d"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    done = raybasin("sweep", "sweeps/cifar10-cpu.yaml", "--results", tmp_path / "r")
    assert_refused(done, "--data", "make demo")


def test_a_data_folder_that_holds_no_data_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    done = raybasin("sweep", "sweeps/cifar10-cpu.yaml", "--data", tmp_path / "empty", "--results", tmp_path / "r")
    assert_refused(done, str(tmp_path / "empty"))


def test_a_checkpoint_of_another_architecture_names_the_first_tensors(sweep_file, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"stem.weight": torch.zeros(3, 3)}, path)
    done = raybasin("sweep", sweep_file, "--checkpoint", path, "--results", tmp_path / "r")
    assert_refused(done, "other.safetensors", "does not fit model test_resnet", "missing")


def test_a_corrupt_checkpoint_is_named(sweep_file, tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert_refused(raybasin("plan", sweep_file, "--checkpoint", path), "half.safetensors", "cannot be read")


def test_a_results_folder_that_cannot_be_written_is_named(sweep_file, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = raybasin("sweep", sweep_file, "--results", tmp_path / "file" / "r")
    assert_refused(done, str(tmp_path / "file" / "r"), "--results")


def test_a_cluster_that_does_not_answer_is_named(sweep_file, tmp_path):
    done = raybasin("sweep", sweep_file, "--results", tmp_path / "r", "--address", "127.0.0.1:1")
    assert done.returncode == 2 and "127.0.0.1:1: the Ray cluster does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "map", "report", "scores", "check"])
def test_reading_what_is_not_there_is_refused(command, tmp_path):
    assert_refused(raybasin(command, tmp_path / "nothing"), "nothing")


def test_plan_says_what_is_done_and_trains_nothing(finished, sweep_file):
    before = sorted(path.name for path in finished.folder.root.rglob("*"))
    done = raybasin("plan", sweep_file, "--results", finished.folder.root, "--set", "methods.star_sse.n_members=4")
    assert done.returncode == 0, done.stderr
    assert "networks 11, of which done 9" in done.stdout  # two ratios, one more cycle each
    assert sorted(path.name for path in finished.folder.root.rglob("*")) == before


def test_a_dry_run_of_other_settings_counts_them_apart(finished, sweep_file):
    done = raybasin("sweep", sweep_file, "--results", finished.folder.root, "--dry-run", "--set", "recipe.lr=0.01")
    assert "of which done 0" in done.stdout and "4 cells of other settings" in done.stdout


def test_status_counts_and_names_failures(finished):
    done = raybasin("status", finished.folder.root)
    assert done.returncode == 0
    assert "cells done 4 of 4, networks done 9 of 9" in done.stdout and "failed 0" in done.stdout


def test_scores_equal_what_is_stored_and_a_changed_one_is_noticed(copied):
    done = raybasin("scores", copied.folder.root)
    assert done.returncode == 0 and "of 4 cells computed again" in done.stdout
    unit = copied.plan.cells[0].cell_id
    rows = tables.rows(copied.folder, "scores", [unit])
    rows[3]["nll"] += 1e-3
    copied.folder.put(f"scores/{unit}.parquet", tables.encode("scores", rows))
    done = raybasin("scores", copied.folder.root)
    assert done.returncode == 1 and "1 figures are not what is stored" in done.stdout and "nll" in done.stdout


def test_a_soup_is_exported_and_timm_loads_it(finished, tmp_path):
    import timm

    path = tmp_path / "out" / "soup.safetensors"
    done = raybasin("soup", finished.folder.root, "--kind", "greedy", "-o", path)
    assert done.returncode == 0, done.stderr
    net = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(path))
    stored = {row["greedy_soup_sha256"]: row for row in finished.rows("cells")}
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
        assert facts["weights_sha256"] in stored and facts["kind"] == "greedy_soup" and facts["num_classes"] == "5"
        assert all(torch.equal(tensor, file.get_tensor(name)) for name, tensor in net.state_dict().items())


def test_a_compacted_copy_has_the_same_rows_in_few_files(finished, tmp_path):
    import pandas as pd

    assert raybasin("compact", finished.folder.root, "-o", tmp_path / "copy").returncode == 0
    for table in ("cells", "members", "epochs", "paths", "scores", "predictions"):
        original, copy = (pd.read_parquet(root / table) for root in (finished.folder.root, tmp_path / "copy"))
        assert len(list((tmp_path / "copy" / table).iterdir())) == 1
        by = [column for column in original if not isinstance(original[column].iloc[0], (list, type(original.values)))]
        by = [column for column in by if original[column].map(type).nunique() == 1]
        pd.testing.assert_frame_equal(
            original.sort_values(by).reset_index(drop=True), copy.sort_values(by).reset_index(drop=True)
        )
    assert raybasin("scores", tmp_path / "copy").returncode == 0
    cell_id = finished.plan.cells[0].cell_id
    assert (
        package.log_probs(tmp_path / "copy", cell_id, "test")
        == package.log_probs(finished.folder.root, cell_id, "test")
    ).all()
    for command in ("status", "check"):
        assert_refused(raybasin(command, tmp_path / "copy"), "compacted copy")
    assert_refused(raybasin("compact", finished.folder.root, "-o", tmp_path / "copy"), "holds results already")


def test_pretrain_makes_only_the_checkpoint(sweep_file, tmp_path):
    done = raybasin("pretrain", sweep_file, "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert "digits-seed0" in done.stdout and ".safetensors" in done.stdout
    assert not (tmp_path / "r" / "members").exists()


def test_a_checkpoint_that_cannot_be_made_is_a_failure(sweep_file, tmp_path):
    tree = yaml.safe_load(sweep_file.read_text())
    tree["model"]["pretrained"][0]["pretrain"]["recipe"] |= {"lr": 1e6, "epochs": 3}
    sweep_file.write_text(yaml.safe_dump(tree))
    done = raybasin("pretrain", sweep_file, "--results", tmp_path / "r")
    assert done.returncode == 1, done.stderr
    assert "1 of 1 checkpoints could not be made" in done.stderr


def test_the_module_is_the_command_and_usage_errors_end_with_2(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "raybasin", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    assert run("--help").returncode == 0 and "sweep" in run("--help").stdout
    assert run("sweep", "--unknown").returncode == 2
    assert_refused(run("plan", "nothing.yaml"), "nothing.yaml", "No such file")
