"""Tables: every file has the whole schema, is written once, and is named when it cannot be read."""

import threading
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybasin.errors import UserError
from raybasin.store import schemas, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import Block, read_predictions, write_predictions
from raybasin.store.schemas import COLUMNS, COMMON, KEYS, SCHEMAS

VALUES = {
    pa.string(): "text",
    pa.int64(): 2**40,
    pa.float64(): 0.1,
    pa.bool_(): False,
    pa.timestamp("us", tz="UTC"): datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=UTC),
    pa.list_(pa.string()): ["b", "a"],
    pa.list_(pa.float32()): [-0.5, -1.25],
}
SHARED = {"method": "sse", "checkpoint": "c", "replicate": 2, "lr_ratio": 1.0, "cycle_ratio": 0.5, "settings_id": "s",
          "sweep": "a"}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.mark.parametrize("table", SCHEMAS)
def test_values_and_nulls_of_every_column_come_back(folder, table):
    full = {field.name: VALUES[field.type] for field in SCHEMAS[table]}
    empty = dict.fromkeys(full)
    assert tables.write(folder, table, "a", [full, {}])
    assert tables.rows(folder, table) == [full, empty]


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_file_of_nulls_alone_has_the_types_of_its_table(folder, table):
    """A column of nulls that were typed by what is in it would not fit the next file."""
    tables.write(folder, table, "a", [{}])
    found = pq.read_schema(folder.root / f"{table}/a.parquet")
    assert found.equals(SCHEMAS[table])
    assert found.metadata[b"schema_version"] == b"1" and found.metadata[b"table"] == table.encode()


@pytest.mark.parametrize("table", SCHEMAS)
def test_what_tells_rows_apart_comes_first_and_the_settings_last(table):
    names = SCHEMAS[table].names
    assert (names[:5], names[-2:]) == (["method", "checkpoint", "replicate", "lr_ratio", "cycle_ratio"],
                                       ["settings_id", "sweep"])  # fmt: skip
    assert names[5].endswith("_id")


def test_units_and_meanings_stand_in_the_files(folder):
    tables.write(folder, "cells", "a", [{}])
    schema = pq.read_schema(folder.root / "cells/a.parquet")
    assert schema.field("barrier_nll").metadata[b"unit"] == b"nats"
    assert schema.field("barrier_error").metadata[b"unit"] == b"share"
    assert b"hub-member" in schema.field("barrier_nll").metadata[b"description"]
    assert b"unit" not in schema.field("cell_id").metadata


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_says_what_it_means(table):
    nothing = {name for name, column in COLUMNS[table].items() if not column.meaning}
    no_point = {"method", "replicate", "lr_ratio", "cycle_ratio"} if table in ("checkpoints", "points") else set()
    assert nothing == no_point


def test_a_column_is_added_by_one_line(folder, monkeypatch):
    """In a class of rows; here in one that is made up."""

    class Added(schemas.Member):
        l2_from_parent: Annotated[float | None, schemas.STEPS, "How far it went."]
        n_restarts: Annotated[int, schemas.WHEN, "How often it was begun."]

    monkeypatch.setitem(schemas._ROWS, "members", Added)
    columns = schemas._columns("members")
    assert list(columns)[-4:] == ["l2_from_parent", "n_restarts", "settings_id", "sweep"]
    assert columns["n_restarts"] == schemas.Column(
        pa.int64(), True, "How often it was begun.", "", frozenset({schemas.WHEN}), None
    )
    monkeypatch.setitem(schemas.COLUMNS, "members", columns)
    monkeypatch.setitem(SCHEMAS, "members", schemas._schema("members"))
    tables.write(folder, "members", "a", [{"member_id": "a", "n_restarts": 1, **SHARED}])
    assert pd.read_parquet(folder.root / "members")["n_restarts"].tolist() == [1]
    tables.write(folder, "members", "b", [{"member_id": "b", **SHARED}])
    with pytest.raises(UserError, match="n_restarts is missing in a row"):
        tables.sound(folder, "members")


def test_integers_are_nullable_ones_in_pandas(folder):
    tables.write(folder, "cells", "a", [{"cell_id": "a", "replicate": 1, "exit_step": None}])
    tables.write(folder, "cells", "b", [{"cell_id": "b", "replicate": None, "exit_step": 2**60 + 1}])
    plain = pd.read_parquet(folder.root / "cells").sort_values("cell_id", ignore_index=True)
    part = pd.read_parquet(folder.root / "cells", columns=["cell_id", "exit_step"], filters=[("cell_id", "==", "b")])
    for frame in (plain, tables.read(folder, "cells").to_pandas()):
        assert {str(frame[name].dtype) for name in ("replicate", "n_members", "exit_step")} == {"Int64"}
        assert frame["exit_step"].isna().tolist() == [True, False] and frame.loc[1, "exit_step"] == 2**60 + 1
        assert list(frame.index) == [0, 1]
    assert str(part["exit_step"].dtype) == "Int64" and part["exit_step"].tolist() == [2**60 + 1]
    assert str(SCHEMAS["cells"].empty_table().to_pandas()["replicate"].dtype) == "Int64"


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_table_has_its_key_and_the_columns_that_all_share(table):
    names = SCHEMAS[table].names
    assert {*KEYS[table], *COMMON} <= set(names)
    assert len(set(names)) == len(names)
    assert set(KEYS) == set(SCHEMAS)


def test_nan_and_null_are_told_apart(folder):
    tables.write(folder, "scores", "a", [{"calibrated_nll": float("nan"), "accuracy": None}])
    (row,) = tables.rows(folder, "scores")
    assert row["accuracy"] is None
    assert np.isnan(row["calibrated_nll"])


def test_pandas_reads_the_folder_of_a_table(folder):
    tables.write(folder, "cells", "b", [{"cell_id": "b", "replicate": 1, "in_basin": True}])
    tables.write(folder, "cells", "a", [{"cell_id": "a", "barrier_error": 0.5, "member_ids": ["x", "y"]}])
    (folder.root / "cells" / ".c.parquet.0123").write_bytes(b"half a file")
    frame = pd.read_parquet(folder.root / "cells").set_index("cell_id").sort_index()
    assert list(frame.index) == ["a", "b"]
    assert frame.loc["a", "barrier_error"] == 0.5 and np.isnan(frame.loc["b", "barrier_error"])
    assert list(frame.loc["a", "member_ids"]) == ["x", "y"]
    assert frame.loc["b", "in_basin"]
    assert {"cell_id", *frame.columns} == set(SCHEMAS["cells"].names)


def test_a_unit_is_written_once(folder):
    assert tables.write(folder, "members", "m", [{"member_id": "m", "seed": 1}]) is True
    assert tables.write(folder, "members", "m", [{"member_id": "m", "seed": 2}]) is False
    assert tables.row(folder, "members", "m")["seed"] == 1


def test_of_racing_writers_one_row_stays(folder):
    gate, won = threading.Barrier(8), []

    def write(seed):
        gate.wait()
        if tables.write(folder, "members", "m", [{"member_id": "m", "seed": seed}]):
            won.append(seed)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["seed"] for row in tables.rows(folder, "members")] == won
    assert len(won) == 1


def test_a_column_that_the_table_does_not_have_is_refused_and_nothing_written(folder):
    with pytest.raises(ValueError, match=r"^table cells has no column barier, zzz$"):
        tables.write(folder, "cells", "a", [{"cell_id": "a"}, {"barier": 1.0, "zzz": 2}])
    assert tables.units(folder, "cells") == []


def test_a_value_of_another_type_is_refused_and_nothing_written(folder):
    with pytest.raises(pa.ArrowException):
        tables.write(folder, "cells", "a", [{"cell_id": "a", "barrier_error": "high"}])
    assert tables.units(folder, "cells") == []


def test_units_are_read_one_by_one_or_all(folder):
    for unit in ("b", "a"):
        tables.write(folder, "members", unit, [{"member_id": unit}])
    assert tables.units(folder, "members") == ["a", "b"]
    assert [row["member_id"] for row in tables.rows(folder, "members", ["b"])] == ["b"]
    assert [row["member_id"] for row in tables.rows(folder, "members")] == ["a", "b"]
    assert tables.exists(folder, "members", "a") and not tables.exists(folder, "members", "c")


@pytest.mark.parametrize("only", [None, []])
def test_a_table_without_files_is_empty_and_has_its_schema(folder, only):
    found = tables.read(folder, "paths", only)
    assert found.num_rows == 0 and found.schema.equals(SCHEMAS["paths"])


def test_a_column_that_an_older_file_lacks_is_null(folder):
    older = pa.table({"cell_id": ["old"], "barrier_error": [0.25]})
    folder.put_new("cells/old.parquet", tables.encode_table(older))
    tables.write(folder, "cells", "new", [{"cell_id": "new", "rise_error": 0.5}])
    rows = {row["cell_id"]: row for row in tables.rows(folder, "cells")}
    assert (rows["old"]["barrier_error"], rows["old"]["rise_error"], rows["old"]["in_basin"]) == (0.25, None, None)
    assert rows["new"]["rise_error"] == 0.5


def test_a_column_that_a_newer_file_has_is_left_out(folder):
    folder.put_new("cells/a.parquet", tables.encode_table(pa.table({"cell_id": ["a"], "invented_later": [1]})))
    (row,) = tables.rows(folder, "cells")
    assert row["cell_id"] == "a" and "invented_later" not in row


BROKEN = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "something else": lambda content: b"<html>not found</html>",
    "without its footer": lambda content: content[:-8] + b"\0" * 8,
    "of another type": lambda content: tables.encode_table(pa.table({"cell_id": [[1.5]]})),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_is_named_among_whole_ones(folder, broken):
    for unit in ("a", "b", "c"):
        tables.write(folder, "cells", unit, [{"cell_id": unit}])
    path = folder.root / "cells/b.parquet"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        tables.read(folder, "cells")
    text = str(caught.value)
    assert text.startswith(f"{path}: is not a readable file of table cells;") and "check" in text
    assert [row["cell_id"] for row in tables.rows(folder, "cells", ["a", "c"])] == ["a", "c"]


# Predictions


def block(split, bn, n, n_classes, seed):
    generator = np.random.default_rng(seed)
    log_probs_NC = generator.normal(size=(n, n_classes)).astype(np.float32)
    return Block(split, bn, log_probs_NC, generator.integers(n_classes, size=n))


def test_predictions_come_back_bit_for_bit_by_split_and_statistics(folder):
    blocks = [block(split, bn, n, 7, seed) for seed, (split, bn, n) in enumerate(
        [("val", "own", 5), ("test", "own", 3), ("val", "reestimated", 5), ("test", "reestimated", 3)])]  # fmt: skip
    known = {"kind": "member", "n_members": 1, **SHARED}
    assert write_predictions(folder, "m", "e", blocks, known) is True
    assert write_predictions(folder, "m", "e", blocks[:1], known) is False
    found = read_predictions(folder, "m", "e")
    assert set(found) == {(b.split, b.bn) for b in blocks}
    for written in blocks:
        read = found[written.split, written.bn]
        assert read.log_probs_NC.dtype == np.float32
        np.testing.assert_array_equal(read.log_probs_NC, written.log_probs_NC)
        np.testing.assert_array_equal(read.labels_N, written.labels_N)


def test_predictions_are_rows_with_one_list_for_each_example(folder):
    one = block("val", "own", 4, 3, seed=0)
    write_predictions(folder, "m", "e", [one], {"kind": "member", "replicate": 2})
    rows = tables.rows(folder, "predictions")
    assert [row["example"] for row in rows] == [0, 1, 2, 3]
    assert [row["label"] for row in rows] == one.labels_N.tolist()
    assert [row["log_probs"] for row in rows] == one.log_probs_NC.tolist()
    assert {(row["predictor_id"], row["kind"], row["replicate"], row["n_members"]) for row in rows} == {
        ("m", "member", 2, None)
    }


def test_predictions_of_a_slice_are_those_of_the_slice(folder):
    """An array that is not contiguous must not be written as if it were."""
    whole = block("val", "own", 6, 8, seed=1)
    part = Block("val", "own", whole.log_probs_NC[::2, 1:4], whole.labels_N[::2])
    write_predictions(folder, "m", "e", [part], SHARED)
    np.testing.assert_array_equal(
        read_predictions(folder, "m", "e")["val", "own"].log_probs_NC, whole.log_probs_NC[::2, 1:4]
    )


def test_predictions_of_one_predictor_are_found_among_others(folder):
    for predictor, evaluation, seed in (("m", "e", 0), ("m", "f", 1), ("n", "e", 2)):
        write_predictions(folder, predictor, evaluation, [block("val", "own", 4, 3, seed)], SHARED)
    found = read_predictions(folder, "m", "f")["val", "own"]
    np.testing.assert_array_equal(found.log_probs_NC, block("val", "own", 4, 3, 1).log_probs_NC)


def test_predictions_are_found_whatever_file_and_order_their_rows_lie_in(folder):
    """In a compacted folder one file holds many predictors."""
    blocks = {predictor: block("val", "own", 5, 3, seed) for seed, predictor in enumerate("mn")}
    rows = [
        {**SHARED, "predictor_id": predictor, "eval_id": "e", "split": "val", "bn": "own", "example": n,
         "label": int(one.labels_N[n]), "log_probs": one.log_probs_NC[n].tolist()}
        for n in (3, 0, 4, 1, 2)
        for predictor, one in blocks.items()
    ]  # fmt: skip
    tables.write(folder, "predictions", "part-0", rows)
    for predictor, written in blocks.items():
        found = read_predictions(folder, predictor, "e")["val", "own"]
        np.testing.assert_array_equal(found.log_probs_NC, written.log_probs_NC)
        np.testing.assert_array_equal(found.labels_N, written.labels_N)


def test_predictions_that_are_missing_are_named(folder):
    with pytest.raises(UserError, match="predictions.*m.*check"):
        read_predictions(folder, "m", "e")
