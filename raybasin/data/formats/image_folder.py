"""Image folders: `<split>/<class>/*`, with classes numbered in the order of their names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raybasin.data import stored
from raybasin.data.formats import parquet
from raybasin.data.images import IMAGE_SUFFIXES
from raybasin.data.stored import Labelled, Stored, StoredSplit, choose_splits, entries, folders_in
from raybasin.errors import UserError, some
from raybasin.sweep.specs import DataSpec


def open(folder: Path, spec: DataSpec) -> Stored | None:
    """`train/<class>/*` with `test/`, `valid/`, `validation/` or `val/`, or None."""
    class_names = folders_in(folder / "train")
    if not class_names:
        return None
    if len(class_names) < 2:
        deeper = folders_in(folder / "train" / class_names[0])
        further = f"; the classes may be those in it: {some(deeper, 10)}. Move them up" if deeper else ""
        raise UserError(f"{folder / 'train'}: holds one class folder, {class_names[0]}, and must hold two{further}")
    validation, reporting = choose_splits(lambda name: folders_in(folder / name), spec)
    used = ["train", *filter(None, (validation, reporting))]
    for split in used[1:]:
        _check_same_classes(folder, split, class_names)
    found = {split: _images(folder / split) for split in used}
    train, val, test = (found[name][0] if name else [] for name in ("train", validation, reporting))
    return Stored(
        stored.split_of_files(train + val),
        stored.split_of_files(test) if reporting else None,
        class_names,
        source=f"image folder '{folder}': {', '.join(used)}",
        validation_n=np.arange(len(train), len(train) + len(val)) if validation else None,
        notes=(
            *(note for _, notes in found.values() for note in notes),
            *stored.not_read({*folders_in(folder), *parquet.unread(folder, ())} - set(used)),
        ),
    )


def open_split(folder: Path, split: str) -> StoredSplit | None:
    """`<split>/<class>/*`, or None."""
    class_names = folders_in(folder / split)
    if not class_names:
        return None
    labelled, notes = _images(folder / split)
    return StoredSplit(stored.split_of_files(labelled), class_names, notes)


def _check_same_classes(folder: Path, split: str, ours: Sequence[str]) -> None:
    """The class folders of train, and those of another split."""
    theirs = folders_in(folder / split)
    more, missing = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if not more and not missing:
        return
    only = [f"only {name} has {some(found, 10)}" for name, found in (("train", more), (split, missing)) if found]
    spelled = [{unicodedata.normalize("NFKC", name).casefold().strip() for name in names} for names in (more, missing)]
    same = " (they differ in capitals, spaces or Unicode forms alone)" if spelled[0] & spelled[1] else ""
    raise UserError(
        f"{folder}: train and {split} must hold the same classes; {'; '.join(only)}{same}.\n"
        f"Rename or take away what differs, or take {split} away where its images have no classes"
    )


def _images(folder: Path) -> tuple[Labelled, tuple[str, ...]]:
    """The images of `<class>/*` in `folder`, by class and path, and notes of what was passed over. Raises UserError
    where a class has folders of images in place of images."""
    labelled = Labelled()
    deeper: list[str] = []
    passed = [(entry.path, "outside of the class folders") for entry in entries(folder) if not entry.is_dir()]
    for label, name in enumerate(folders_in(folder)):
        top = os.path.join(folder, name, "")
        files = list(walk(top))
        images = sorted(path for path, why in files if why is None)
        below = [path for path in images if os.sep in path[len(top) :]]
        inside = sorted({path[len(top) :].split(os.sep)[0] for path in below})
        if len(below) == len(images) and len(inside) > 1:
            raise UserError(
                f"{top}: holds no images but folders of images, {some(inside, 10)}: are these the classes?\n"
                f"Then move them up; otherwise move their images into {name}"
            )
        passed += [(path, why) for path, why in files if why is not None]
        labelled += [(path, label) for path in images]
        deeper += below
    notes = []
    if passed:
        counts = Counter(why for _, why in passed)
        example = {why: path for path, why in reversed(passed)}
        listed = [f"{n:,} {why} (such as {example[why]})" for why, n in counts.most_common(5)]
        more = f" and {len(counts) - 5} other endings" if len(counts) > 5 else ""
        notes.append(f"passed over in {folder.name}: {', '.join(listed)}{more}")
    if deeper:
        notes.append(f"{stored.counted(deeper, 'image')} in folders below their class folder, such as {deeper[0]}")
    return labelled, tuple(notes)


def walk(top: str) -> Iterator[tuple[str, str | None]]:
    """Every file below `top`, with the reason where it is passed over; None for an image. Links are followed."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        there = os.stat(folder)
        if (here := (there.st_dev, there.st_ino)) in above:
            raise UserError(f"{folder}: a link on the way leads back to a folder that it lies in; take the link out")
        for entry in entries(folder):
            if entry.name.startswith("."):
                yield entry.path, "hidden"
            elif entry.is_dir():
                waiting.append((entry.path, (*above, here)))
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield entry.path, os.path.splitext(entry.name)[1].lower() or "without an ending"
            elif not entry.is_file():
                raise UserError(f"{entry.path}: is no file, or a link to what is not there; put the image there")
            else:
                yield entry.path, None
