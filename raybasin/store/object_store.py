"""A results folder in an object store: Amazon S3 and what speaks its language, Google Cloud Storage, Azure.

An object appears whole when its one PUT has ended, so no temporary name is needed. The PUT of `put_new` is conditional
(`If-None-Match: *`, on Google `x-goog-if-generation-match: 0`): the server refuses it where the key is taken. S3 takes
5 GB in one. Credentials, region and endpoint come from the environment, by the names that the vendors' own tools use.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore import exceptions, store

from raybasin.errors import StoreError, UserError
from raybasin.store.folders import Folder, checked

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from typing_extensions import Buffer

CONNECT_SECONDS, SILENT_SECONDS, UPLOAD_SECONDS = 5, 60, 1800
SMALL_BYTES = 8_000_000
"""Up to this size an upload is given up when nothing has come back for SILENT_SECONDS; a larger one may take longer."""
PATIENT = {"max_retries": 8, "retry_timeout": timedelta(seconds=60), "backoff": {
    "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2}}  # fmt: skip
IMPATIENT = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
CONFLICTS = 8
CALL_SECONDS = 2 * UPLOAD_SECONDS
"""Longer than any call takes, repeats included: it ends by one of the limits above."""
AT_ONCE = 16

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the machine's role; AWS_REGION; AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or the machine's account",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the machine's identity",
}


@dataclass(frozen=True, kw_only=True)
class Objects(Folder):
    """The objects under one prefix. `large` is for uploads that may take long, `small` for everything else."""

    small: ObjectStore
    large: ObjectStore
    under_way: dict[object, float] = field(default_factory=dict, compare=False, repr=False)
    """When each call to the store that has not ended was made, in whatever thread."""

    def get(self, key: str) -> bytes:
        return bytes(self._get(key))

    def get_all(self, keys: Sequence[str]) -> list[Buffer]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._get, keys))

    def exists(self, key: str) -> bool:
        try:
            with self._telling(key):
                self.small.head(key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._telling(key):
            self.small.delete(key)

    def move(self, key: str, target: str) -> None:
        with self._telling(key):
            self.large.copy(key, checked(target))
            self.small.delete(key)

    def is_there(self) -> bool:
        with self._telling():
            found = self.small.list_with_delimiter()
        return bool(found["objects"] or found["common_prefixes"])

    def size(self) -> int:
        with self._telling():
            return sum(entry["size"] for page in self.small.list() for entry in page)

    def sizes(self, folder: str) -> dict[str, int]:
        with self._telling(folder):
            found = self.small.list_with_delimiter(folder)["objects"]
        return {entry["path"].rpartition("/")[2]: entry["size"] for entry in found}

    def waits(self) -> bool:
        """Whether a call is under way that its own limits will end."""
        return any(time.monotonic() - since < CALL_SECONDS for since in list(self.under_way.values()))

    def free(self) -> None:
        return None

    def unfinished(self) -> Iterator[tuple[str, float]]:
        return iter(())

    def check_there(self) -> None:
        """A store that is gone says so when it is asked."""

    def _create(self, key: str, content: bytes) -> bool:
        """Creates the object `key`; whether this call did.

        The client repeats a PUT whose answer was lost, and is then refused because of its own first one. So False
        may mean "ours"; what is there is whole in either case, and callers go on with what is there.
        """
        with self._telling(key):
            for turn in range(CONFLICTS):
                try:
                    self._for(content).put(key, content, mode="create", use_multipart=False)
                    return True
                except exceptions.AlreadyExistsError:
                    # The client says this also of status 409: another request was under way, and may come to nothing.
                    if self.exists(key):
                        return False
                time.sleep(random.uniform(0, 0.1 * 2**turn))
        raise StoreError(f"{self.name(key)}: {CONFLICTS} attempts to create it met others, and none left it there")

    def _replace(self, key: str, content: bytes) -> None:
        with self._telling(key):
            self._for(content).put(key, content, mode="overwrite", use_multipart=False)

    def _names(self, folder: str) -> list[str]:
        with self._telling(folder):
            found = self.small.list_with_delimiter(folder)["objects"]
        return [entry["path"].rpartition("/")[2] for entry in found]

    def _get(self, key: str) -> Buffer:
        with self._telling(key):
            return self.small.get(key).buffer()

    def _for(self, content: bytes) -> ObjectStore:
        return self.small if len(content) <= SMALL_BYTES else self.large

    @contextlib.contextmanager
    def _telling(self, key: str | None = None) -> Iterator[None]:
        """Around each call: turns the client's exceptions, which say everything, into ones that say what a person
        needs. Raises BadName for a `key` that would lead outside of the folder."""
        call, place = object(), self.root if key is None else self.name(key)
        self.under_way[call] = time.monotonic()
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{self.root}: the bucket is not there") from error
            raise FileNotFoundError(f"{place} is not there") from error
        except exceptions.BaseError as error:
            raise StoreError(f"{self.root}: {_reason(error, str(self.root))}") from error
        finally:
            del self.under_way[call]


def _reason(error: Exception, address: str) -> str:
    """One line of an error of the client, which also prints its own inner state and the server's answer."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code and code[1] == "NoSuchBucket":
        return "the bucket is not there"
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or "169.254." in text:
        known = _CREDENTIALS.get(address.partition(":")[0], "")
        return f"access is denied{f' ({code[1]})' if code else ''}; credentials: {known}"
    return f"{text.partition(': <')[0][:300]}{f' ({code[1]})' if code else ''}"


def open(address: str, patient: bool) -> Objects:
    """The folder with this address. Raises UserError for one that is not well-formed or configured wrongly."""
    scheme, _, rest = address.partition("://")
    bucket, *parts = rest.rstrip("/").split("/")
    # The client would write other characters as %XX, and other programs would not find them under the same name.
    if not bucket or any(not re.fullmatch(r"[\w.=+@-]+", part, re.ASCII) or part in (".", "..") for part in parts):
        raise UserError(
            f"results folder {address}: must be {scheme}://BUCKET/PREFIX, "
            "with letters, digits and any of . _ - = + @ / in the prefix"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    retries: Any = dict(PATIENT if patient else IMPATIENT)

    def client(**limits: Any) -> Any:
        options: Any = {"connect_timeout": f"{CONNECT_SECONDS}s", "timeout": f"{UPLOAD_SECONDS}s", **limits}
        common: Any = {"prefix": "/".join(parts) or None, "client_options": options, "retry_config": retries}
        if scheme == "gs":
            return store.GCSStore(bucket, **common)
        if scheme == "az":
            return store.AzureStore(bucket, **common)
        options["allow_http"] = endpoint.startswith("http://")
        return store.S3Store(bucket, disable_bulk_delete=True, conditional_put="etag", **common)

    try:
        small, large = client(read_timeout=f"{SILENT_SECONDS}s"), client()
    except (exceptions.BaseError, ValueError) as error:
        raise UserError(f"results folder {address}: {_reason(error, address)}") from error
    return Objects(f"{scheme}://{'/'.join([bucket, *parts])}", small=small, large=large)
