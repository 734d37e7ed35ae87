"""Tiny data sets on disk, for tests of reading them: pixel values tell which image one looks at."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raybasin.data import dataset
from raybasin.errors import UserError
from raybasin.sweep import specs
from raybasin.sweep.specs import DataSpec


def encoded(value, size=(6, 4), mode="RGB", file_format="PNG"):
    """An image of one colour as a file's bytes; `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "P", "I;16") else (value,) * len(mode)).save(buffer, file_format)
    return buffer.getvalue()


def write_folder(root, counts, splits=("train", "test"), **image):
    """`counts` images of each class in each split; the value of image i of class k is 10 k + i."""
    for split in splits:
        for k, (name, count) in enumerate(sorted(counts.items())):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i:03d}.png").write_bytes(encoded(10 * k + i, **image))
    return root


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_shard(
    path, values, labels, label="label", column="img", metadata=None, paths=None, images=None, names=None,
    kind=STRUCT, label_kind=None, further=None,
):  # fmt: skip
    """A Parquet file as `datasets` writes it: `names` are those of a ClassLabel, `kind` and `label_kind` the types of
    the two columns, `further` more columns."""
    contents = images or [encoded(v) for v in values]
    paths = paths or [f"{v}.png" for v in values]
    rows = [{"bytes": content, "path": name} for content, name in zip(contents, paths, strict=True)]
    columns = {column: pa.array(rows if pa.types.is_struct(kind) else contents, kind)}
    columns[label] = pa.array(labels, label_kind or (pa.string() if isinstance(labels[0], str) else pa.int64()))
    table = pa.table({**columns, **(further or {})})
    if names:
        metadata = {"info": {"features": {label: {"_type": "ClassLabel", "names": names}, column: {"_type": "Image"}}}}
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)


def write_parquet(root, n=12, **options):
    """Two training shards and one of test; image i has value i and label i % 3."""
    half = n // 2
    write_shard(root / "train-00000-of-00002.parquet", range(half), [i % 3 for i in range(half)], **options)
    write_shard(root / "train-00001-of-00002.parquet", range(half, n), [i % 3 for i in range(half, n)], **options)
    write_shard(root / "test-00000-of-00001.parquet", range(100, 106), [i % 3 for i in range(6)], **options)
    return root


def spec(folder, **keys):
    return DataSpec(**{"name": "mine", "dir": str(folder), "validation": {"images": 3}, **keys})


def values(images):
    """The value that tells which image it is."""
    return images.images_NHWC[:, 0, 0, 0].tolist()


def error_of(made_spec):
    with pytest.raises(UserError) as caught:
        dataset.load(made_spec)
    return str(caught.value)


def sweep(folder, **keys):
    small = {"name": "mine", "dir": str(folder), "image_size": 32, "augment": ["random_resized_crop", "flip"],
             "validation": {"images": 4}, **keys}  # fmt: skip
    return specs.parse({
        "name": "decoding", "data": small,
        "model": {"name": "test_resnet",
                  "pretrained": [{"pretrain": {"data": small, "recipe": {"epochs": 1, "batch_size": 5}}}]},
        "recipe": {"epochs": 2, "batch_size": 5, "lr": 0.02},
        "methods": {"star_sse": {"n_members": 2}},
        "basin": {"points": 3, "bn_images": 8},
    })  # fmt: skip
