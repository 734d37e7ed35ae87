"""What a user can put right: the one exception that says so, and texts as they may be printed."""

import difflib
import re
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input, found before anything is trained. Its text is one or two lines that name the file, the key and the
    way out; the command line prints it without a traceback and ends with exit status 2."""

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in super().__str__().split("\n"))


class NotMeasured(UserError):
    """Of what is asked for the results have nothing: the sweep was not to measure it, or has not come to it yet."""


def one_line(text: object, most: int = 1000) -> str:
    """A text from elsewhere as it may be printed: in one line, and without characters that a terminal obeys."""
    return " ".join(printable(str(text)[:most]).split())


def printable(text: str) -> str:
    """`text` without characters that a terminal obeys."""
    return "".join(c if c.isprintable() else " " for c in text.encode(errors="replace").decode())


class FolderLost(OSError):
    """The results folder can no longer be written, or is gone: whatever is left to do, nothing of it can be kept. Its
    text is one line that names the folder, the reason and the way out."""


class StoreError(FolderLost):
    """An object store does not answer, or refuses. It says nothing of whether an object is there or whole."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: the nearest known one, else what is known."""
    known = list(known)
    same = [name for name in known if _plain(name) == _plain(word)]
    close = same or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {some(known)}"


def _plain(word: str) -> str:
    """`StarSSE`, `star-sse` and `star_sse` are one word."""
    return re.sub(r"[-_\s]", "", word).casefold()


def some(names: Sequence[str], most: int = 30, between: str = ", ") -> str:
    """The first names of a list that may be long."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def format_bytes(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Seconds for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the processor's or a GPU's: that says nothing of what was being looked at. PyTorch's own
    are RuntimeErrors, and are told by their names here, where torch is not imported."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(said in str(error) for said in ("can't allocate memory", "out of memory"))
    )
