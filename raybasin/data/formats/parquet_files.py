"""Which Parquet files make a split, told by their names as the Hugging Face hub and its library `datasets` give them,
and whether they are all there and of one revision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from raybasin.data.stored import entries, folders_in
from raybasin.errors import UserError, some

ENDING = ".parquet"
_OF = re.compile(r"(?:.*-)?(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?\.parquet")
"""`train-00000-of-00002.parquet`; older ones end in a fingerprint, `train-00000-of-00002-1f0c8a9b.parquet`."""


def place_of(folder: Path, split: str) -> Path | None:
    """`folder` or its `data/`, where files of `split` lie; None where there are none.

    Raises UserError where there are some in both.
    """
    places = [place for place in (folder, folder / "data") if _flat(place, split) or _parquet_in(place / split)]
    if len(places) > 1:
        raise UserError(f"{folder}: holds Parquet files of {split}, and so does its folder data; take one of them away")
    return places[0] if places else None


def only_folder(folder: Path, split: str) -> Path | None:
    """The one folder in `folder` in which files of `split` lie, as the hub has one for each configuration.

    Raises UserError where it is one of several folders.
    """
    places = [folder / name for name in folders_in(folder)]
    found = [place for place in places if _flat(place, split) or _parquet_in(place / split)]
    if found and len(places) > 1:
        raise UserError(
            f"{folder}: holds Parquet files of {split} in {some([place.name for place in found], 10)}; "
            f"name the folder to read, such as dir: {found[0]}"
        )
    return found[0] if found else None


def files(place: Path, split: str) -> list[Path]:
    """The files of `split` in `place`, in order: `train.parquet`, `train-*.parquet` or `train/*.parquet`.

    Raises UserError where some are missing, or where they are not of one set.
    """
    flat, nested = _flat(place, split), _parquet_in(place / split)
    if flat and nested:
        raise UserError(f"{place}: holds {split} twice, as {flat[0]} and in the folder {split}; take one away")
    if nested:
        _check_whole(place / split, split, nested, re.compile(r"(?P<number>\d+)\.parquet"), first=0)
        return [place / split / name for name in nested]
    if flat:
        _check_whole(place, split, flat, re.compile(re.escape(split) + r"-(?P<number>\d+)\.parquet"), first=None)
    return [place / name for name in flat]


def unread(place: Path, read: Sequence[Path]) -> list[str]:
    """Parquet files of `place`, and folders of such files, that are not among those read."""
    used = {path.relative_to(place).parts[0] for path in read}
    names = [name for name in folders_in(place) if _parquet_in(place / name)]
    return [name for name in sorted({*names, *_parquet_in(place)}) if name not in used]


def _flat(place: Path, split: str) -> list[str]:
    return [name for name in _parquet_in(place) if name == split + ENDING or name.startswith(f"{split}-")]


def _parquet_in(folder: Path) -> list[str]:
    names = (entry.name for entry in entries(folder))
    return [name for name in names if name.endswith(ENDING) and not name.startswith(".")]


def _check_whole(place: Path, split: str, names: Sequence[str], pattern: re.Pattern[str], first: int | None) -> None:
    """Whether the files are those of one set, and, as far as their numbers tell, all of it.

    Names that say of how many files they are (`_OF`) are numbered from 0; those that only have a number, as `pattern`
    finds it, from `first` or, where it is None, from any. Files of other names have no numbers.
    """
    shards = {name: found for name in names if (found := _OF.fullmatch(name))}
    others = [name for name in names if name not in shards]
    if shards and others:
        raise UserError(f"{place}: {others[0]} is no shard of the set of {next(iter(shards))}; take one of them away")
    if split + ENDING in others and len(others) > 1:
        raise UserError(f"{place}: holds {split} twice, as {split + ENDING} and {others[0]}; take one of them away")
    numbered = shards or {name: found for name in others if (found := pattern.fullmatch(name))}
    if len(numbered) == len(names):
        _check_numbers(place, split, numbered, 0 if shards else first)


def _check_numbers(place: Path, split: str, numbered: Mapping[str, re.Match[str]], first: int | None) -> None:
    """Whether each number from `first` to the last is that of one file."""
    totals = {int(found["total"]): name for name, found in numbered.items() if "total" in found.groupdict()}
    if len(totals) > 1:
        raise UserError(f"{place}: {' and '.join(islice(totals.values(), 2))} are of two revisions; take one away")
    numbers: dict[int, str] = {}
    for name, found in numbered.items():
        if (number := int(found["number"])) in numbers:
            raise UserError(f"{place}: {numbers[number]} and {name} have one number; take one of them away")
        numbers[number] = name
    wanted = range(min(numbers) if first is None else first, next(iter(totals), max(numbers) + 1))
    # Counted and not listed, and not by len(): a name may claim to be one of any number of files.
    n_wanted = wanted.stop - wanted.start
    n_missing = n_wanted - sum(number in wanted for number in numbers)
    if n_missing:
        like, found = next(iter(numbered.items()))
        start, stop = found.span("number")
        end = f"-of-{found['total']}{ENDING}" if totals else ENDING  # fingerprints are left out
        missing = (f"{like[:start]}{k:0{stop - start}d}{end}" for k in wanted if k not in numbers)
        raise UserError(
            f"{place}: {n_missing:,} of {n_wanted:,} files of {split} {'is' if n_missing == 1 else 'are'} missing: "
            f"{', '.join(islice(missing, 5))}{' and more' if n_missing > 5 else ''}; fetch the data set anew"
        )
