"""What networks say of new images: the same as the sweep said of its own, wherever the networks come from."""

import io
import json
import shutil

import nets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from PIL import Image
from three_digits import CLASSES
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.errors import UserError
from raybasin.metrics import classification, uncertainty
from raybasin.serving import exported
from raybasin.store import checksum


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], catch_exceptions=True)


def refused(*arguments, **options):
    with pytest.raises(UserError) as error:
        raybasin.predict(*arguments, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def pixels(images):
    """The test images as an array, and their classes, in the order of the tables."""
    paths = [path for name in CLASSES for path in sorted((images / "test" / name).glob("*.png"))]
    return np.stack([np.asarray(Image.open(path)) for path in paths]), [path.parent.name for path in paths]


def test_an_ensemble_says_of_the_test_images_what_the_sweep_has_stored(swept, cell, images):
    found = raybasin.predict(swept, images / "test", cell=cell["cell_id"])
    log_probs_MNC = raybasin.log_probs(swept, cell["cell_id"], "test")
    [row] = swept.scores.query(
        "cell_id == @cell.cell_id and kind == 'ensemble' and split == 'test' and bn == 'own' and n_members == 3"
    ).to_dict("records")
    calibrated_NC = classification.tempered(uncertainty.averaged(log_probs_MNC), row["temperature"])
    assert np.stack(found["probabilities"]) == pytest.approx(np.exp(calibrated_NC), abs=1e-4)
    assert found.attrs["classes"] == list(CLASSES) and found.attrs["temperature"] == row["temperature"]
    assert found["label"].tolist() == [name for name in CLASSES for _ in range((found["label"] == name).sum())]
    right = (found["prediction"] == found["label"]).mean()
    assert found.attrs["scores"]["accuracy"]["value"] == right == row["accuracy"]
    assert found.attrs["scores"]["nll"]["value"] == pytest.approx(row["calibrated_nll"], abs=1e-4)
    assert found["nll"].mean() == pytest.approx(row["calibrated_nll"], abs=1e-4)
    assert found["entropy"].to_numpy() == pytest.approx(uncertainty.entropy(calibrated_NC), abs=1e-3)
    assert found["mutual_information"].mean() == pytest.approx(row["mutual_information"], abs=1e-4)
    assert found["disagreement"].mean() == pytest.approx(row["disagreement"])


@pytest.mark.parametrize("what", exported.WHATS)
def test_an_exported_folder_says_the_same_without_the_results(swept, cell, folder, pixels, what, tmp_path):
    array_NHWC, labels = pixels
    away = shutil.copytree(folder / what, tmp_path / "away")
    here = raybasin.predict(swept, array_NHWC, what=what, cell=cell["cell_id"], labels=labels)
    there = raybasin.predict(away, array_NHWC, labels=labels)
    pd.testing.assert_frame_equal(here, there)
    assert here.attrs["scores"] == there.attrs["scores"] and here.attrs["temperature"] == there.attrs["temperature"]
    alone = what != "ensemble"
    assert there["mutual_information"].isna().all() == there["disagreement"].isna().all() == alone


def test_a_member_of_an_exported_ensemble_and_a_soup_in_one_file(swept, cell, folder, pixels, tmp_path):
    array_NHWC, _ = pixels
    member = raybasin.predict(swept, array_NHWC, what="member-2", cell=cell["cell_id"])
    pd.testing.assert_frame_equal(member, raybasin.predict(folder / "ensemble", array_NHWC, what="member-2"))
    hub = raybasin.predict(folder / "ensemble", array_NHWC, what="hub")
    pd.testing.assert_frame_equal(hub, raybasin.predict(folder / "hub", array_NHWC))
    assert not np.allclose(np.stack(hub["probabilities"]), np.stack(member["probabilities"]))
    assert run("soup", swept.folder.root, "--cell", cell["cell_id"], "-o", tmp_path / "soup.safetensors").exit_code == 0
    soup = raybasin.predict(tmp_path / "soup.safetensors", array_NHWC)
    pd.testing.assert_frame_equal(soup, raybasin.predict(folder / "soup", array_NHWC))
    about = json.loads((folder / "soup" / "scores.json").read_text())
    assert soup.attrs["temperature"] == about["temperature"]["value"]


def test_every_way_to_give_images_gives_the_same(folder, images, pixels, tmp_path):
    array_NHWC, labels = pixels
    encoded = [{"bytes": path.read_bytes()} for name in CLASSES for path in sorted((images / "test" / name).glob("*"))]
    pq.write_table(pa.table({"img": encoded, "label": labels}), tmp_path / "some.parquet")
    np.save(tmp_path / "pixels.npy", array_NHWC)
    np.savez(tmp_path / "both.npz", images=array_NHWC, labels=np.array([CLASSES.index(label) for label in labels]))
    first, second, third = (images / "test" / name for name in CLASSES)
    several = [first, *sorted(second.glob("*")), third]
    ways = [images / "test", tmp_path / "some.parquet", tmp_path / "pixels.npy", tmp_path / "both.npz", array_NHWC,
            [Image.fromarray(one) for one in array_NHWC], several]  # fmt: skip
    found = [raybasin.predict(folder / "soup", way, batch_size=7) for way in ways]
    for one in found[1:]:
        assert one["prediction"].tolist() == found[0]["prediction"].tolist()
        assert np.stack(one["probabilities"]) == pytest.approx(np.stack(found[0]["probabilities"]), abs=1e-5)
    assert [bool(one["label"].notna().all()) for one in found] == [True, True, False, True, False, False, False]
    assert found[1]["image"][3] == f"{tmp_path / 'some.parquet'}, row 3"


def test_grey_images_and_those_of_other_sizes_are_shown_as_evaluation_would(folder, pixels):
    array_NHWC, _ = pixels
    grey = raybasin.predict(folder / "soup", array_NHWC[..., 0])
    assert grey["prediction"].tolist() == raybasin.predict(folder / "soup", array_NHWC)["prediction"].tolist()
    larger = [Image.fromarray(one).resize((40 + k % 3, 44)) for k, one in enumerate(array_NHWC)]
    together = raybasin.predict(folder / "soup", larger, batch_size=64)
    alone = [raybasin.predict(folder / "soup", [one])["probabilities"][0] for one in larger[:5]]
    assert np.stack(together["probabilities"][:5]) == pytest.approx(np.stack(alone), abs=1e-5)


def test_the_command_writes_one_file_and_says_how_right_it_is(folder, images, tmp_path):
    done = run("predict", folder / "ensemble", images / "test", "-o", tmp_path / "out.parquet", "--device", "cpu")
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "out.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == list(CLASSES)
    found = raybasin.predict(folder / "ensemble", images / "test")
    pd.testing.assert_frame_equal(table.to_pandas(), found, check_names=False)
    accuracy = found.attrs["scores"]["accuracy"]
    assert f"accuracy {100 * accuracy['value']:.1f}" in done.output and "whose class is known" in done.output
    again = run("predict", folder / "ensemble", images / "test", "-o", tmp_path / "out.parquet")
    assert again.exit_code and "left as it is" in str(again.exception)
    told = run("predict", folder / "soup", images, "-o", tmp_path / "more.parquet", "--json", "--quiet")
    about = json.loads(told.output)
    assert about["n_images"] == len(list(images.rglob("*.png"))) and about["scores"]["accuracy"]["n_images"]
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet", "more.parquet"}


def test_labels_that_are_no_classes_are_told_and_not_scored(folder, images, pixels, tmp_path):
    array_NHWC, labels = pixels
    found = raybasin.predict(folder / "soup", array_NHWC, labels=["cat", *labels[1:]])
    assert found.attrs["scores"]["accuracy"]["n_images"] == len(labels) - 1
    assert found["label"][0] == "cat" and np.isnan(found["nll"][0])
    held = [*[-1] * 3, *range(3)]
    withheld = raybasin.predict(folder / "soup", array_NHWC[:6], labels=held)
    assert withheld["label"].tolist()[3:] == list(CLASSES) and withheld["label"][:3].isna().all()
    encoded = io.BytesIO()
    Image.fromarray(array_NHWC[0]).save(encoded, "png")
    pq.write_table(pa.table({"image": [encoded.getvalue()] * 2, "label": ["cat", CLASSES[0]]}), tmp_path / "a.parquet")
    done = run("predict", folder / "soup", tmp_path / "a.parquet", "-o", tmp_path / "out.parquet")
    assert "1 images are of classes it does not know: 'cat'" in done.output


def test_an_image_that_cannot_be_read_stops_it_or_is_left_out(folder, images, tmp_path):
    shutil.copytree(images / "test" / CLASSES[1], tmp_path / "photos" / CLASSES[1])
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    done = run("predict", folder / "soup", tmp_path / "photos", "-o", tmp_path / "out.parquet")
    assert "broken.png" in str(done.exception) and "--skip-unreadable" in str(done.exception)
    assert done.exit_code and not (tmp_path / "out.parquet").exists()
    done = run("predict", folder / "soup", tmp_path / "photos", "-o", tmp_path / "out.parquet", "--skip-unreadable")
    assert done.exit_code == 0 and "left out" in done.output
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == len(list((tmp_path / "photos").rglob("*.png"))) - 1
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "broken.png").write_bytes(b"no image")
    assert "none of the 1 images" in refused(folder / "soup", tmp_path / "none", skip_unreadable=True)


def test_what_is_no_image_and_what_is_not_there_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("no")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    soup = folder / "soup"
    assert "is not there" in refused(soup, tmp_path / "missing")
    assert "holds no images" in refused(soup, tmp_path / "empty")
    assert "no image by its ending" in refused(soup, tmp_path / "a.txt")
    assert "no image column" in refused(soup, tmp_path / "x.parquet")
    assert "NumPy" in refused(soup, tmp_path / "objects.npy")
    assert "uint8" in refused(soup, np.zeros((2, 32, 32, 3)))
    assert "shape" in refused(soup, np.zeros((2, 3, 32, 32), np.uint8))
    assert "one for each image" in refused(soup, np.zeros((2, 32, 32, 3), np.uint8), labels=[0])
    assert "below 3" in refused(soup, np.zeros((1, 32, 32, 3), np.uint8), labels=[3])
    assert "device" in refused(soup, np.zeros((1, 32, 32, 3), np.uint8), device="nonsense")
    done = run("predict", soup, tmp_path / "a.txt", "-o", tmp_path / "out.csv")
    assert done.exit_code and "out.parquet" in str(done.exception)


def test_what_is_asked_for_must_be_there(swept, cell, folder, tmp_path):
    one = np.zeros((1, 32, 32, 3), np.uint8)
    assert "member-K" in refused(swept, one, what="best")
    assert "counted from 0" in refused(swept, one, what="member-3")
    assert "counted from 0" in refused(folder / "ensemble", one, what="member-3")
    assert "leave --what out" in refused(folder / "soup", one, what="hub")
    assert "--cell" in refused(folder / "soup", one, cell=cell["cell_id"])
    assert "holds no results" in refused(tmp_path, one)


def damaged(folder, tmp_path, **changes):
    """The exported soup with other metadata."""
    content = (folder / "soup" / "model.safetensors").read_bytes()
    metadata = {**checksum.header(content)[0], **changes}
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
    tensors = safetensors.torch.load(content)
    path.write_bytes(safetensors.torch.save(tensors, {k: v for k, v in metadata.items() if v is not None}))
    return path


def test_metadata_of_a_stranger_are_not_believed(folder, tmp_path):
    one = np.zeros((1, 32, 32, 3), np.uint8)
    bad = {
        "model": "hf-hub:somebody/some-model", "image_size": "1e9", "std": "[0, 0, 0]", "classes": "[]", "head": "5",
        "args": '{"checkpoint_path": "/etc/passwd"}', "temperature": "-1", "common_side": "99999", "mean": None,
        "interpolation": "nearest",
    }  # fmt: skip
    for key, value in bad.items():
        path = damaged(folder, tmp_path, **{key: value})
        assert str(path) in refused(path, one) or key == "model", key
    assert "timm has no model" in refused(damaged(folder, tmp_path, model="hf-hub:somebody/some-model"), one)
    assert "is not the network" in refused(damaged(folder, tmp_path, model="test_vit"), one)
    assert "is not the network" in refused(damaged(folder, tmp_path, classes='["a", "b"]'), one)
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x04.")
    assert "no safetensors file" in refused(tmp_path / "pickled.safetensors", one)
    away = shutil.copytree(folder / "ensemble", tmp_path / "away")
    (away / "ensemble.json").write_text(json.dumps({"members": [{"folder": "../soup"}]}))
    assert "member-0" in refused(away, one)


def test_code_of_a_factory_is_run_only_where_it_is_named(folder, tmp_path):
    one = np.zeros((1, 32, 32, 3), np.uint8)
    net, content = nets.batch_norm(3, width=12), (folder / "soup" / "model.safetensors").read_bytes()
    metadata = checksum.header(content)[0] | {"model": "own", "factory": "nets:batch_norm", "args": '{"width": 12}'}
    safetensors.torch.save_file(net.state_dict(), tmp_path / "own.safetensors", metadata)
    assert "add --factory nets:batch_norm" in refused(tmp_path / "own.safetensors", one)
    assert "leave --factory out" in refused(folder / "soup", one, factory="nets:batch_norm")
    assert len(raybasin.predict(tmp_path / "own.safetensors", one, factory="nets:batch_norm")) == 1
