"""The command line as a user meets it: what is printed, and with which exit status."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass

import places
import pytest
import safetensors.torch
import tiny
import torch
import typer
import yaml

import raybasin as package
from raybasin import cli
from raybasin.errors import nearest
from raybasin.jobs import local, prepare
from raybasin.serving import export
from raybasin.store import folders, heartbeat, tables
from raybasin.sweep import specs

REPOSITORY = places.REPOSITORY


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
        patch.delenv("COLUMNS", raising=False)  # of the terminal that the tests are run in
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


EMPTY = [
    (("plan", "FILE", "--results", ""), "results folder: its name is empty"),
    (("sweep", "FILE", "--results", ""), "results folder: its name is empty"),
    (("plan", "FILE", "--data", ""), "data.dir: is empty"),
    (("plan", "FILE", "--checkpoint", ""), "model.pretrained.0: is empty"),
    (("init", "", "--checkpoint", "x"), "the folder of images: is empty"),
    (("init", "x", "--checkpoint", ""), "--checkpoint: is empty"),
    (("status", ""), "results folder: its name is empty"),
    (("map", ""), "results folder: its name is empty"),
]


@pytest.mark.parametrize(("command", "complaint"), EMPTY)
def test_a_path_whose_variable_is_not_set_is_not_taken_for_the_current_folder(sweep_file, command, complaint):
    assert_refused(raybasin(*(sweep_file if one == "FILE" else one for one in command)), complaint)


def test_a_cluster_that_does_not_answer_is_named(sweep_file, tmp_path):
    done = raybasin("sweep", sweep_file, "--results", tmp_path / "r", "--address", "127.0.0.1:1")
    assert done.returncode == 2 and "127.0.0.1:1: the Ray cluster does not answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "map", "report", "scores", "check"])
def test_reading_what_is_not_there_is_refused(command, tmp_path):
    assert_refused(raybasin(command, tmp_path / "nothing"), "nothing")


COMMANDS = ("status", "map", "report", "scores", "check", "soup", "export", "compact", "plane", "figures")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_results_is_refused(command, tmp_path):
    (tmp_path / "r" / "state").mkdir(parents=True)
    (tmp_path / "r" / "notes.txt").write_text("not of a sweep")
    where = {"status": (), "scores": (), "check": (), "soup": ("-o", tmp_path / "out.safetensors")}
    done = raybasin(command, tmp_path / "r", *where.get(command, ("-o", tmp_path / "out.png")))
    assert_refused(done, f"results folder {tmp_path / 'r'}: holds no results; `raybasin sweep FILE")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]


def test_check_says_what_is_whole(copied):
    done = raybasin("check", copied.folder.root)
    assert (done.returncode, done.stdout) == (0, "everything is whole: cells 4, networks 8, checkpoints made 1\n")
    for table in ("cells", "scores", "paths"):
        shutil.rmtree(copied.folder.root / table)
    assert "whole: cells 0, networks 8," in raybasin("check", copied.folder.root).stdout


def test_a_map_that_cannot_be_drawn_takes_nothing_else_from_the_end_of_a_sweep(copied, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("no glyph")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    report = local.Report(copied.plan, committed=4)
    cli._conclude(report, copied.folder, 1.0)
    said = capsys.readouterr()
    assert said.err == "map: the figure cannot be drawn (RuntimeError: no glyph)\n"
    assert said.out.splitlines()[-1].startswith("4 of 4 cells done in ")
    monkeypatch.undo()
    cli._conclude(report, copied.folder, 1.0)
    assert (copied.folder.root / "map.png").read_bytes().startswith(b"\x89PNG")


def test_settings_of_a_folder_are_listed_compared_and_removed(copied, monkeypatch):
    root, first = copied.folder.root, copied.plan.settings_id
    changes = {"recipe__lr": 0.01, "replicates": 2, "methods": {"local_de": {"n_members": 2}}}
    second = package.run(tiny.tree(**changes), root).plan.settings_id
    assert_refused(raybasin("status", root), "holds 2 settings", "recipe.lr (0.02, not 0.01)", "--settings latest")
    assert f"settings {second}" in raybasin("status", root, "--settings", "latest").stdout
    lines = raybasin("settings", "list", root).stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[second, "tiny", "2"], [first, "tiny", "4"]]
    assert lines[2].endswith("recipe.lr (0.02, not 0.01)")
    found = json.loads(raybasin("settings", "list", root, "--json").stdout)
    assert [one["settings"] for one in found["settings"]] == [second, first] and found["results"] == str(root)
    assert found["settings"][1]["differs_from_newest"] == {"recipe.lr": [0.01, 0.02]}
    said = raybasin("settings", "compare", root, first, "latest").stdout
    assert "recipe.lr  0.02" in said and "replicates" in said.partition("what else")[2]
    differ = json.loads(raybasin("settings", "compare", root, first, second, "--json").stdout)["differ"]
    assert differ["settings"] == {"recipe.lr": [0.02, 0.01]} and differ["further"]["replicates"] == [1, 2]
    would = raybasin("settings", "rm", root, first, "--dry-run").stdout
    assert f"settings {first}: would be removed: 4 cells, 8 networks; " in would and " MB in all" in would
    assert raybasin("settings", "rm", root, first).stdout == would.replace("would be removed", "removed")
    assert raybasin("status", root).returncode == raybasin("check", root).returncode == 0
    assert_refused(raybasin("settings", "rm", root, first), f"holds no settings {first}; known are {second} (tiny, 2 c")
    with heartbeat.beating(copied.folder, second):
        assert_refused(raybasin("settings", "rm", root, second), "nothing is removed while a sweep runs")


def test_settings_that_do_not_differ_or_are_not_there_are_said_so(finished, tmp_path):
    root, settings_id = finished.folder.root, finished.plan.settings_id
    said = raybasin("settings", "compare", root, settings_id, "latest").stdout
    assert said == "no key of their sweep files differs\n"
    assert_refused(raybasin("settings", "compare", root, settings_id, "abc"), "holds no settings abc; known are ")
    assert_refused(raybasin("settings", "list", tmp_path / "nothing"), "nothing: is not there")
    assert_refused(raybasin("settings", "list", tmp_path), "holds no results")


def test_status_and_plan_as_json(copied, sweep_file):
    failure = local.Failure(copied.plan.cells[0], "Diverged: loss is nan", 2)
    local.record_failure(copied.folder, copied.plan, failure)
    copied.folder.delete(f"cells/{copied.plan.cells[0].cell_id}.parquet")
    now = json.loads(raybasin("status", copied.folder.root, "--json").stdout)
    assert set(now) == {"results", "sweep", "settings", "cells", "networks", "search", "running", "failures"}
    assert now["cells"] == {"planned": 4, "done": 3} and now["networks"] == {"planned": 8, "done": 8}
    (failed,) = now["failures"]
    assert (failed["method"], failed["replicate"], failed["tries"]) == ("star_sse", 0, 2)
    found = json.loads(raybasin("plan", sweep_file, "--results", copied.folder.root, "--json", "--cells").stdout)
    assert found["cells"] == {"planned": 4, "done": 3, "begun": 1, "new": 0} and found["to_do"]["networks"] == 0
    states = {cell["cell_id"]: cell["state"] for cell in found["cell_list"]}
    assert len(states) == 4 and states[copied.plan.cells[0].cell_id] == "begun"
    assert found["settings"] == copied.plan.settings_id and found["disk_bytes"]["staying"] > 0
    assert "cell_list" not in json.loads(raybasin("plan", sweep_file, "--json").stdout)


def test_quiet_commands_say_their_last_line_and_errors(copied, sweep_file, tmp_path):
    root = copied.folder.root
    done = raybasin("plan", sweep_file, "--results", root, "--quiet")
    assert (done.stdout, done.stderr) == ("to do: 0 networks of 0 epochs in all, 0 checkpoints, 0 paths\n", "")
    done = raybasin("pretrain", sweep_file, "--results", root, "-o", tmp_path / "out", "--quiet")
    assert (done.stdout, done.stderr) == (f"1 of 1 checkpoints in {tmp_path / 'out'}\n", "")
    done = raybasin("sweep", sweep_file, "--results", root, "--quiet")
    assert done.stdout.startswith("4 of 4 cells done in ") and len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert_refused(raybasin("sweep", sweep_file, "--results", root, "--quiet", "--set", "recipe.lr=many"), "recipe.lr")


def test_the_version_is_said():
    assert raybasin("--version").stdout == f"raybasin {package.__version__}\n"


def test_plan_says_what_is_done_and_trains_nothing(finished, sweep_file):
    before = sorted(path.name for path in finished.folder.root.rglob("*"))
    done = raybasin("plan", sweep_file, "--results", finished.folder.root, "--set", "methods.star_sse.n_members=4")
    assert done.returncode == 0, done.stderr
    assert "networks 10, of which done 8" in done.stdout  # two ratios, one more cycle each
    assert sorted(path.name for path in finished.folder.root.rglob("*")) == before


def test_a_dry_run_of_other_settings_counts_them_apart(finished, sweep_file):
    done = raybasin("sweep", sweep_file, "--results", finished.folder.root, "--dry-run", "--set", "recipe.lr=0.01")
    assert "of which done 0" in done.stdout and "4 cells of other settings" in done.stdout


def test_a_sweep_says_where_it_runs_already(copied, sweep_file):
    done = raybasin("sweep", sweep_file, "--results", copied.folder.root)
    assert done.returncode == 0 and "besides" not in done.stderr
    with heartbeat.beating(copied.folder, copied.plan.settings_id):
        done = raybasin("sweep", sweep_file, "--results", copied.folder.root)
    assert done.returncode == 0
    assert f"note: besides this command, running on {os.uname().nodename} (process {os.getpid()})" in done.stderr


def test_the_plan_of_a_large_sweep_is_a_summary_unless_every_cell_is_asked_for(sweep_file, tmp_path):
    asked = ("plan", sweep_file, "--results", tmp_path / "none", "--set", "replicates=30")
    done, every = raybasin(*asked), raybasin(*asked, "--cells")
    assert done.returncode == every.returncode == 0, done.stderr
    assert "120 cells, by method" in done.stdout and len(done.stdout.splitlines()) < 40
    assert "cells 120, of which done 0, begun 0, new 120" in done.stdout
    assert len(every.stdout.splitlines()) > 120


def test_status_counts_and_names_failures(finished):
    done = raybasin("status", finished.folder.root)
    assert done.returncode == 0
    assert "cells done 4 of 4, networks done 8 of 8" in done.stdout and "failed 0" in done.stdout


def test_status_and_report_of_a_search_count_what_was_chosen(searching, tmp_path):
    said = raybasin("status", searching.folder.root).stdout
    assert "cells done 3 of 7" in said and "search: 3 of 5 points by ray.tune.search.optuna:OptunaSearch, 1 poi" in said
    assert raybasin("check", searching.folder.root).returncode == 0
    assert raybasin("report", searching.folder.root, "-o", tmp_path / "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert "4 finished, 4 not" in page and "lr_ratio 0.5 to 32, cycle_ratio 1" in page and "3 of 5 points by" in page


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
    of_copy, of_original = (raybasin("status", root).stdout for root in (tmp_path / "copy", finished.folder.root))
    assert of_copy == of_original and "cells done 4 of 4" in of_copy
    assert_refused(raybasin("check", tmp_path / "copy"), "compacted copy")
    settings_id = finished.plan.settings_id
    assert_refused(raybasin("settings", "rm", tmp_path / "copy", settings_id), "compacted copy", "cannot be changed")
    assert settings_id in raybasin("settings", "list", tmp_path / "copy").stdout
    assert_refused(raybasin("compact", finished.folder.root, "-o", tmp_path / "copy"), "holds results already")


def test_a_checkpoint_is_written_as_a_file_that_timm_loads_with_its_head(copied, sweep_file, tmp_path):
    """The sweep has made it already, so nothing is trained and no cluster is started."""
    import timm

    done = raybasin("pretrain", sweep_file, "--results", copied.folder.root, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "digits-test_resnet-seed0.safetensors" and str(path) in done.stdout
    net = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(path))
    (row,) = copied.rows("checkpoints")
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
        assert set(file.keys()) == set(net.state_dict())
        assert all(torch.equal(tensor, file.get_tensor(name)) for name, tensor in net.state_dict().items())
    assert facts["weights_sha256"] == row["weights_sha256"] and facts["checkpoint_id"] == row["checkpoint_id"]
    assert (facts["source"], facts["model"], facts["seed"], facts["epochs"], facts["image_size"]) == (
        "digits", "test_resnet", "0", "1", "32",
    )  # fmt: skip
    assert json.loads(facts["classes"]) == ["0", "1", "2", "3", "4"] and facts["num_classes"] == "5"
    assert json.loads(facts["recipe"])["batch_size"] == 20 and json.loads(facts["versions"])["torch"]
    assert facts["source_fingerprint"] == copied.plan.facts.pretrain_data[0].train_fingerprint
    assert float(facts["val_accuracy"]) == pytest.approx(row["val_accuracy"])
    assert _accuracy(done.stdout.partition("\n")[2], facts) == pytest.approx(row["val_accuracy"])
    inside = raybasin("pretrain", sweep_file, "--results", copied.folder.root)
    assert (copied.folder.root / "pretrained" / path.name).read_bytes() == path.read_bytes()
    assert "1, of which done 1" in inside.stderr and raybasin("check", copied.folder.root).returncode == 0


def _accuracy(printed, facts):
    """On the validation images that the metadata describe, by what was printed."""
    from PIL import Image

    from raybasin.data import dataset

    space = {}
    exec(printed, space)
    val = dataset.load(specs.DataSpec.model_validate(json.loads(facts["source_spec"]))).val
    images_BCHW = torch.stack([space["transform"](Image.fromarray(image)) for image in val.images_NHWC])
    with torch.no_grad():
        predicted_B = space["net"](images_BCHW).argmax(1)
    assert space["classes"] == ["0", "1", "2", "3", "4"]
    return float((predicted_B == torch.from_numpy(val.labels_N)).double().mean())


def test_a_file_of_another_checkpoint_is_not_overwritten(copied, sweep_file, tmp_path):
    (tmp_path / "digits-test_resnet-seed0.safetensors").write_bytes(b"precious")
    done = raybasin("pretrain", sweep_file, "--results", copied.folder.root, "-o", tmp_path)
    assert_refused(done, "digits-test_resnet-seed0.safetensors: is another checkpoint", "-o")
    assert (tmp_path / "digits-test_resnet-seed0.safetensors").read_bytes() == b"precious"
    done = raybasin("pretrain", sweep_file, "--results", tmp_path / "r", "-o", sweep_file)
    assert_refused(done, str(sweep_file), "-o")


def test_a_checkpoint_that_was_kept_without_its_head_is_not_written(copied, sweep_file, tmp_path):
    (row,) = copied.rows("checkpoints")
    state = safetensors.torch.load(copied.folder.get(f"weights/{row['weights_sha256']}.safetensors"))
    content = safetensors.torch.save({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    sha256 = hashlib.sha256(content).hexdigest()
    copied.folder.put_new(f"weights/{sha256}.safetensors", content)
    old = {**row, "weights_sha256": sha256}
    copied.folder.put(f"checkpoints/{row['checkpoint_id']}.parquet", tables.encode("checkpoints", [old]))
    done = raybasin("pretrain", sweep_file, "--results", copied.folder.root, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert f"kept without its head; delete checkpoints/{row['checkpoint_id']}.parquet" in done.stderr


def test_a_checkpoint_that_cannot_be_made_is_a_failure_and_the_others_are_made(sweep_file, tmp_path):
    tree = yaml.safe_load(sweep_file.read_text())
    (entry,) = tree["model"]["pretrained"]
    entry["pretrain"]["count"] = 2
    bad = {"pretrain": {**entry["pretrain"], "recipe": {"lr": 1e6, "weight_decay": 1e30, "epochs": 3}, "count": 1}}
    tree = {"name": "a", "model": {"name": "test_resnet", "pretrained": [entry, bad]}}
    sweep_file.write_text(json.dumps(tree))
    report = package.pretrain(sweep_file, tmp_path / "r")
    assert not report.complete and len(report.made) == 2
    ((name, reason),) = report.failures.items()
    assert name.startswith("digits-seed0-") and "Diverged" in reason
    assert list(export.checkpoint_names(report.plan).values()) == [
        f"digits-test_resnet-seed0-{report.made[0].key[:8]}.safetensors",
        "digits-test_resnet-seed1.safetensors",
        f"digits-test_resnet-seed0-{report.plan.facts.checkpoints[2].key[:8]}.safetensors",
    ]
    assert not (tmp_path / "r" / "members").exists()


def test_a_checkpoint_of_many_is_the_same_as_alone_and_a_sweep_finds_them(sweep_file, tmp_path):
    tree = tiny.tree(methods={"local_de": {"n_members": 2}})
    tree["model"]["pretrained"][0]["pretrain"] |= {"seed": 3, "count": 2}
    sweep_file.write_text(yaml.safe_dump(tree))
    made = package.pretrain(sweep_file, tmp_path / "r")
    assert made.complete and [checkpoint.seed for checkpoint in made.made] == [3, 4]
    tree["model"]["pretrained"][0]["pretrain"] |= {"seed": 4, "count": 1}
    (alone,) = package.pretrain(tree, tmp_path / "alone").made
    assert (alone.key, alone.name) == (made.made[1].key, made.made[1].name)
    rows = [{row["checkpoint_id"]: row for row in tables.rows(folders.Folder(tmp_path / name), "checkpoints")}
            for name in ("r", "alone")]  # fmt: skip
    assert rows[0][alone.key]["weights_sha256"] == rows[1][alone.key]["weights_sha256"]
    assert rows[0][alone.key]["seed"] == 4
    assert len({row["weights_sha256"] for row in rows[0].values()}) == 2
    report = package.run(sweep_file, tmp_path / "r")
    assert report.complete and [cell.point.checkpoint.key for cell in report.plan.cells] == [c.key for c in made.made]
    after = tables.rows(folders.Folder(tmp_path / "r"), "checkpoints")
    assert {row["checkpoint_id"]: row for row in after} == rows[0]  # found, not made again


def test_a_folder_of_checkpoints_is_a_sweep_of_each(copied, sweep_file, tmp_path):
    raybasin("pretrain", sweep_file, "--results", copied.folder.root, "-o", tmp_path / "out")
    first = tmp_path / "out" / "digits-test_resnet-seed0.safetensors"
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor
             for name, tensor in safetensors.torch.load_file(first).items()}  # fmt: skip
    safetensors.torch.save_file(other, tmp_path / "out" / "another.safetensors")
    done = raybasin("plan", sweep_file, "--checkpoint", tmp_path / "out", "--results", tmp_path / "none")
    assert done.returncode == 0 and "cells 8, of which done 0" in done.stdout, done.stderr
    made = prepare.prepare(specs.load(sweep_file, checkpoints=[str(tmp_path / "out")])).plan
    assert [c.name.rpartition("-")[0] for c in made.facts.checkpoints] == ["another", "digits-test_resnet-seed0"]
    (tmp_path / "empty").mkdir()
    assert_refused(raybasin("plan", sweep_file, "--checkpoint", tmp_path / "empty"), "holds no .safetensors file")


def test_importing_the_command_line_waits_for_neither_torch_nor_ray():
    code = "import sys, raybasin.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    loaded = set(found.stdout.split())
    assert "raybasin.cli" in loaded and not loaded & {"torch", "ray", "matplotlib"}


def test_a_soup_of_another_kind_and_hours_that_are_none_are_refused(finished, tmp_path):
    soup = "soup", finished.folder.root, "-o", tmp_path / "soup.safetensors"
    assert_refused(raybasin(*soup, "--kind", "best"), "--kind best: must be uniform or greedy")
    for hours in ("0", "-1", "nan", "inf"):
        assert_refused(raybasin("sweep", "sweeps/digits.yaml", "--stop-after", hours), f"--stop-after {hours}: must be")


def test_the_module_is_the_command_and_usage_errors_end_with_2(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "raybasin", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    assert run("--help").returncode == 0 and "sweep" in run("--help").stdout
    assert run("sweep", "--unknown").returncode == 2
    assert_refused(run("plan", "nothing.yaml"), "nothing.yaml", "No such file")


def test_shipped_sweeps_are_listed_printed_and_planned_by_name(tmp_path):
    listed = raybasin("sweeps")
    assert listed.returncode == 0 and "digits\n  On scikit-learn's digits" in listed.stdout
    assert "\n  cost: about 6 minutes on 2 CPU cores\n" in listed.stdout
    assert raybasin("sweeps", "digits").stdout == (REPOSITORY / "sweeps" / "digits.yaml").read_text()
    assert_refused(raybasin("sweeps", "digit"), "digit: ", "there are ", "digits-boundary")
    assert_refused(raybasin("sweep", "digit"), "digit: ", "there are ", "digits-boundary")
    # In a folder of its own: `make demo` may have been run in this one.
    into = ("--results", str(tmp_path / "results"), "--quiet")
    by_name, by_path = (raybasin("plan", file, *into) for file in ("digits", "sweeps/digits.yaml"))
    assert by_name == by_path and by_name.stdout.startswith("to do: 118 networks")


def test_a_word_is_near_however_it_is_written():
    for word in ("StarSSE", "star-sse", "STAR_SSE", "star_see", "starsse"):
        assert nearest(word, ["sse", "star_sse", "local_de"]) == "; did you mean 'star_sse'?"
    assert nearest("xyz", ["sse"]) == "; known are sse"


def test_an_interrupt_that_nothing_has_taken_is_one_line_and_status_130(capsys):
    with pytest.raises(typer.Exit) as ended, cli._interruptible():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"
