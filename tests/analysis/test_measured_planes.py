"""`raybasin plane` on a real small sweep: what it measures, keeps, goes on with and refuses."""

import shutil

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.analysis import integrity, plane_drawing, planes
from raybasin.analysis import results as reading
from raybasin.errors import UserError
from raybasin.jobs import measure_planes
from raybasin.jobs.worker_context import WorkerContext
from raybasin.landscape import batch_norm
from raybasin.store.schemas import KEYS
from raybasin.training import evaluation, models


def asked(sweep, **more):
    results = raybasin.open(sweep.folder.root)
    cell = reading.cell_of(results, sweep.cell("star_sse", 4.0).cell_id)
    return planes.ask(results, cell, **{"points": 3, **more})


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """A copy of the finished sweep with a plane of 3 x 3 points in it."""
    from raybasin.store.folders import Folder

    root = tmp_path_factory.mktemp("plane") / "copy"
    shutil.copytree(finished.folder.root, root)
    sweep = tiny.Sweep(Folder(root), finished.plan)
    planes.measure(asked(sweep), raybasin.open(root))
    return sweep


@pytest.fixture
def points(monkeypatch):
    """How many points of planes are evaluated."""
    count, at = [], WorkerContext.predict_at
    monkeypatch.setattr(WorkerContext, "predict_at", lambda *given: count.append(1) or at(*given))
    return count


def test_the_members_lie_in_the_plane_with_the_scores_and_distances_that_they_have(measured):
    results = raybasin.open(measured.folder.root)
    cell = measured.cell("star_sse", 4.0)
    plane = planes.points_of(results, asked(measured))
    members = plane.dropna(subset=["member_index"]).set_index("member_index")
    scores = results.scores.query("cell_id == @cell.cell_id and split == 'val' and bn == 'reestimated'")
    scores = scores.drop_duplicates("predictor_id").set_index("predictor_id")
    for index, member_id in enumerate(cell.member_ids):
        assert members.loc[index, "nll"] == pytest.approx(scores.loc[member_id, "nll"], rel=1e-9)
        assert members.loc[index, "error"] == pytest.approx(1 - scores.loc[member_id, "accuracy"], abs=1e-12)
    paths = results.paths.query("cell_id == @cell.cell_id").drop_duplicates("path_id")
    for path in paths.to_dict("records"):
        ends = [members.loc[cell.member_ids.index(path[end]), ["x", "y"]] for end in ("start_id", "end_id")]
        assert np.hypot(*(ends[0] - ends[1])) == pytest.approx(path["l2_distance"], rel=1e-9)


def test_a_point_of_the_grid_has_the_error_of_the_network_with_its_weights(measured):
    """The weights at the grid's centre, put together by hand from the axes."""
    results, context = raybasin.open(measured.folder.root), tiny.context(measured.folder.root, measured.plan.spec)
    plane = planes.points_of(results, asked(measured))
    rows = measured.members()
    a, b, c = (
        models.from_bytes(measured.folder.get(f"weights/{rows[m]['weights_sha256']}.safetensors"))
        for m in measured.cell("star_sse", 4.0).member_ids
    )
    net = context.network(a)
    names = [name for name, _ in net.named_parameters()]
    a, b, c = (torch.cat([state[name].double().flatten() for name in names]) for state in (a, b, c))
    u = (b - a) / (b - a).norm()
    v = (c - a) - u * ((c - a) @ u)
    centre = plane.query("row == 1 and column == 1").iloc[0]
    flat = (a + centre["x"] * u + centre["y"] * v / v.norm()).float()
    torch.nn.utils.vector_to_parameters(flat, net.parameters())
    batch_norm.reestimate(net, evaluation.batches(context.bn_images_NHWC, context.preprocess))
    images, labels = context.splits["val"]
    log_probs = evaluation.log_probs(net, images, context.preprocess)
    assert centre["nll"] == pytest.approx(-log_probs[np.arange(len(labels)), labels].mean(), rel=1e-5)
    assert (centre["images"], centre["bn_images"]) == (60, 20)


def test_the_rows_make_a_grid_and_name_their_cell(measured):
    plane = planes.points_of(raybasin.open(measured.folder.root), asked(measured))
    assert len(plane) == 12 and plane["member_index"].notna().sum() == 3
    grid = plane.dropna(subset=["row"])
    assert sorted(zip(grid["row"], grid["column"], strict=True)) == [(r, c) for r in range(3) for c in range(3)]
    assert set(plane["cell_id"]) == {measured.cell("star_sse", 4.0).cell_id} and set(plane["lr_ratio"]) == {4.0}
    assert integrity.check(measured.folder) == []


def test_a_measured_plane_is_drawn_without_computing(measured, points, tmp_path):
    command = ["plane", str(measured.folder.root), "--cell", asked(measured).cell_id, "--points", "3"]
    for value in ("error", "nll"):
        done = CliRunner().invoke(cli.app, [*command, "--value", value, "-o", str(tmp_path / f"{value}.png")])
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"{value}.png").read_bytes().startswith(b"\x89PNG")
    assert points == []


def test_an_interrupted_plane_goes_on_where_it_stopped(copied, monkeypatch, points):
    wanted = asked(copied)

    def interrupt(done, n_points):
        assert n_points == 12
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planes.measure(wanted, raybasin.open(copied.folder.root), beat=interrupt)
    assert len(points) == 6 and not wanted.is_measured(copied.folder)  # the members and one row
    planes.measure(wanted, raybasin.open(copied.folder.root))
    assert len(points) == 12 and wanted.is_measured(copied.folder)


def test_members_that_are_points_of_the_grid_are_measured_once(copied, points):
    wanted = asked(copied, margin=0.0)
    planes.measure(wanted, raybasin.open(copied.folder.root))
    plane = planes.points_of(raybasin.open(copied.folder.root), wanted)
    assert len(plane.dropna(subset=["row"])) == 9 and len(plane) == len(points) < 12
    assert integrity.check(copied.folder) == []
    plane_drawing.plane_figure(raybasin.open(copied.folder.root), plane)


def test_the_training_images_can_be_shown_instead(copied):
    wanted = asked(copied, split="train")
    planes.measure(wanted, raybasin.open(copied.folder.root))
    assert set(planes.points_of(raybasin.open(copied.folder.root), wanted)["images"]) == {40}


def test_other_members_points_margins_and_splits_are_other_planes(finished):
    other = [{"members": "0,2,1"}, {"points": 4}, {"margin": 0.3}, {"split": "train"}]
    assert len({asked(finished).plane_id, *(asked(finished, **more).plane_id for more in other)}) == 5


@pytest.mark.parametrize("members", ["0,1", "0,1,1", "0,1,3", "0,1,-1", "0,1,hub", ""])
def test_members_that_are_not_three_of_the_cell_are_refused(finished, members):
    with pytest.raises(UserError, match=f"--members {members}: must be three different members of 0 .the hub. to 2"):
        asked(finished, members=members)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("points", "2", "must be from 3 to 501"),
        ("points", "502", "must be from 3 to 501"),
        ("margin", "-0.1", "must be from 0 to 10"),
        ("margin", "nan", "must be from 0 to 10"),
        ("split", "test", "must be val or train"),
        ("value", "loss", "must be error or nll"),
        ("device", "tpu", "must be cpu"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(finished, option, value, said):
    done = CliRunner().invoke(cli.app, ["plane", str(finished.folder.root), f"--{option}", value])
    assert isinstance(done.exception, UserError) and f"--{option} {value}: {said}" in str(done.exception)


@pytest.mark.parametrize("more", [{"points": 2}, {"margin": float("nan")}, {"split": "test"}])
def test_a_caller_is_refused_like_the_command(finished, more):
    [(option, value)] = more.items()
    with pytest.raises(UserError, match=f"--{option} {value}: must be"):
        asked(finished, **more)


def test_members_with_equal_weights_are_refused_by_name(copied):
    """The first cycles of star_sse and sse are the same network, so a cell could hold it twice."""
    wanted = asked(copied)
    same = measure_planes.PlaneAsked(
        wanted.cell_id, (0, 1, 2), wanted.member_ids, (wanted.sha256s[0],) * 3, "val", 3, 0.2
    )
    with pytest.raises(UserError, match="--members 0,1,2: span no plane .*one line"):
        planes.measure(same, raybasin.open(copied.folder.root))


def test_missing_weights_are_named(copied):
    wanted = asked(copied)
    copied.folder.delete(f"weights/{wanted.sha256s[1]}.safetensors")
    with pytest.raises(UserError, match="weights of members 0,1,2 cannot be read .*raybasin check"):
        planes.measure(wanted, raybasin.open(copied.folder.root))


def test_other_data_are_refused(copied, monkeypatch):
    from raybasin.data import dataset

    load = dataset.load
    fewer = {"train_images": 30}
    monkeypatch.setattr(dataset, "load", lambda spec: load(spec.model_copy(update=fewer)))
    with pytest.raises(UserError, match="are not the data of this sweep; name their folder with --data"):
        planes.measure(asked(copied), raybasin.open(copied.folder.root))


def test_a_compacted_copy_keeps_planes_and_measures_none(measured, tmp_path):
    integrity.compact(measured.folder, tmp_path / "small")
    assert len(raybasin.open(tmp_path / "small").planes) == 12
    done = CliRunner().invoke(cli.app, ["plane", str(tmp_path / "small")])
    assert isinstance(done.exception, UserError) and "compacted copy" in str(done.exception)


def test_the_figure_shows_the_members_where_they_are(measured):
    results = raybasin.open(measured.folder.root)
    plane = planes.points_of(results, asked(measured))
    axis = plane_drawing.plane_figure(results, plane).axes[0]
    marks = next(line for line in axis.lines if line.get_marker() == "o")
    members = plane.dropna(subset=["member_index"]).sort_values("member_index")
    np.testing.assert_array_equal(marks.get_xydata(), members[["x", "y"]].to_numpy())
    assert axis.get_aspect() == 1.0
    assert [text.get_text().splitlines()[0] for text in axis.texts] == ["hub", "member 1", "member 2"]
    assert f"{100 * members['error'].iloc[0]:.3g} %" in axis.texts[0].get_text()
    assert KEYS["planes"] == ("plane_id", "x", "y")
