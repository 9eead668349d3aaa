"""Maps published in a bucket: objects of S3, Google Cloud Storage or Azure, by obstore.

obstore rather than fsspec: it has conditional puts, which make a marker and a claim the first one's or nobody's; it
tries again by itself; it is one wheel without a development kit (https://developmentseed.org/obstore). Keys come from
the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …).

::

    PREFIX/<unit>/...            the maps, then ``unit.json``: put last, by the first to come, and proof of the others
    PREFIX/.fleet/claims/<key>   who maps the unit; renewed while that lasts, free for others LEASE_S after it was not

A map is made in a folder of this machine, so that a worker that is lost costs its unit a whole new attempt.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import from_url

from engine.contract.errors import OutputError, UsageError, one_line, writing
from engine.contract.formats import MalformedError, from_json
from engine.fleet.marker import NAME as MARKER_NAME
from engine.fleet.marker import Marker
from engine.fleet.store import FOLDER, Claim

log = logging.getLogger(__name__)

LEASE_S = 120.0
"""A claim that is not renewed for so long is nobody's. Clocks of machine and bucket must agree better than that."""
RENEW_S = 30.0
ATTEMPTS = 5
"""Of what obstore itself tries once."""


class BucketStore:
    """A prefix in a bucket, see :class:`engine.fleet.store.Store`.

    Args:
        url: as in ``s3://bucket/prefix``.

    Raises:
        UsageError: the URL names no bucket.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            self.bucket: Any = from_url(self._url)
        except (BaseError, ValueError) as error:
            raise UsageError(
                f"{url} names no bucket that can be used ({one_line(error)}): write it as in s3://bucket/maps"
            ) from error
        self._made = tempfile.TemporaryDirectory(prefix="gemmnet-fleet-")  # gone with this object
        self._scratch = Path(self._made.name)

    def marker(self, unit: str) -> Marker | None:
        """See :meth:`engine.fleet.store.Store.marker`."""
        with suppress(FileNotFoundError), self.asking(f"{unit}/{MARKER_NAME}", may_lack=True):
            return Marker.read(bytes(obstore.get(self.bucket, f"{unit}/{MARKER_NAME}").bytes()))
        return None

    def whole(self, marker: Marker) -> bool:
        """Whether all objects are there and as long as they were: a bucket takes an object whole or not at all."""
        with self.asking(marker.unit):
            found = {each["path"].rpartition("/")[2]: each["size"] for each in self._list(marker.unit)}
        return all(found.get(name) == published.size_bytes for name, published in marker.files.items())

    @contextmanager
    def claim(self, key: str) -> Iterator[Claim | None]:
        """See :meth:`engine.fleet.store.Store.claim`."""
        path = f"{FOLDER}/claims/{key}"
        with self.asking(path):
            taken = self._take(path)
        if taken is None:
            yield None
            return
        died, content = taken
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(path, content, ended), daemon=True)
        renewing.start()
        try:
            yield Claim(folder=self._scratch / key, died=died)
        finally:
            ended.set()
            renewing.join()
            self._forget(path)

    def publish(self, claim: Claim, marker: Marker) -> bool:
        """See :meth:`engine.fleet.store.Store.publish`."""
        place = f"{marker.unit}/{MARKER_NAME}"
        there = self.marker(marker.unit)
        first = there is None or there.key != marker.key or not self.whole(there)
        if first:
            with self.asking(marker.unit):
                if there is not None:
                    self._delete(place)  # what it proves is about to be replaced
                for name in marker.files:
                    obstore.put(self.bucket, f"{marker.unit}/{name}", claim.folder / name)
                first = self._put_first(place, marker.encode())
        shutil.rmtree(claim.folder)
        return first

    def fetch(self, marker: Marker) -> Path:
        """See :meth:`engine.fleet.store.Store.fetch`."""
        folder = self._scratch / "fetched" / marker.unit
        with writing(folder), self.asking(marker.unit):
            folder.mkdir(parents=True, exist_ok=True)
            for name, published in marker.files.items():
                path = folder / name
                if not path.exists() or path.stat().st_size != published.size_bytes:
                    with path.open("wb") as file:
                        for piece in obstore.get(self.bucket, f"{marker.unit}/{name}").stream():
                            file.write(piece)
        return folder

    def forget(self, place: str) -> None:
        """See :meth:`engine.fleet.store.Store.forget`."""
        shutil.rmtree(self._scratch / "fetched" / place, ignore_errors=True)
        with suppress(OutputError), self.asking(place):
            for each in list(self._list(place)):
                self._forget(each["path"])

    @property
    def books(self) -> Path:
        """See :attr:`engine.fleet.store.Store.books`."""
        return self._scratch / "books"

    def keep(self, name: str) -> None:
        """See :meth:`engine.fleet.store.Store.keep`."""
        with self.asking(name):
            obstore.put(self.bucket, name, self.books / name)

    @contextmanager
    def shown(self) -> Iterator[str]:
        """See :meth:`engine.fleet.store.Store.shown`."""
        word = uuid.uuid4().hex
        with self.asking(word):
            obstore.put(self.bucket, f"{FOLDER}/driver-{word}", b"")
        try:
            yield word
        finally:
            self._forget(f"{FOLDER}/driver-{word}")

    def sees(self, word: str) -> bool:
        """See :meth:`engine.fleet.store.Store.sees`."""
        with suppress(FileNotFoundError), self.asking(word, may_lack=True):
            obstore.head(self.bucket, f"{FOLDER}/driver-{word}")
            return True
        return False

    def _list(self, unit: str) -> Iterator[Any]:
        for some in obstore.list(self.bucket, f"{unit}/"):
            yield from some

    def _take(self, path: str) -> tuple[int, bytes] | None:
        """How many died with the claim, and its content; None where somebody has it."""
        content = _holder(0)
        if self._put_first(path, content):
            return 0, content
        try:
            found = obstore.get(self.bucket, path)
            if datetime.now(UTC) - found.meta["last_modified"] < timedelta(seconds=LEASE_S):
                return None
            died = _died(bytes(found.bytes())) + 1
            content = _holder(died)
            obstore.put(self.bucket, path, content, mode={"e_tag": found.meta["e_tag"] or ""})
            return died, content
        except (FileNotFoundError, PreconditionError):  # its holder is done, or somebody was faster
            return None

    def _put_first(self, path: str, content: bytes) -> bool:
        """Put an object where there is none; False where somebody was first.

        Content must be nobody else's. obstore tries such a put once: where an answer was lost on its way, nobody knows
        whether it was done, but for who looks.
        """
        for attempt in range(ATTEMPTS):
            try:
                obstore.put(self.bucket, path, content, mode="create")
                return True
            except AlreadyExistsError:
                with suppress(FileNotFoundError):
                    return bytes(obstore.get(self.bucket, path).bytes()) == content
            except GenericError:
                if attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(0.2 * 2**attempt)
        return False

    def _delete(self, path: str) -> None:
        """Delete an object, there or not. obstore tries that once as well."""
        for attempt in range(ATTEMPTS):
            try:
                obstore.delete(self.bucket, path)
                return
            except FileNotFoundError:
                return
            except BaseError:
                if attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(0.2 * 2**attempt)

    def _forget(self, path: str) -> None:
        """Delete an object of ours; where that fails it says nothing after a while."""
        try:
            self._delete(path)
        except BaseError as error:
            log.debug("%s/%s cannot be deleted: %s", self._url, path, one_line(error))

    def _renew(self, path: str, content: bytes, ended: threading.Event) -> None:
        """Put a claim anew while it is ours. Whoever took it over has another content."""
        while not ended.wait(RENEW_S):
            try:
                found = obstore.get(self.bucket, path)
                if bytes(found.bytes()) != content:
                    log.warning("%s/%s was taken over: its marker decides in the end", self._url, path)
                    return
                obstore.put(self.bucket, path, content, mode={"e_tag": found.meta["e_tag"] or ""})
            except (BaseError, OSError) as error:
                log.warning("the claim %s/%s cannot be renewed: %s", self._url, path, one_line(error))

    @contextmanager
    def asking(self, path: str, *, may_lack: bool = False) -> Iterator[None]:
        """Around a request.

        Args:
            path: of the object.
            may_lack: a FileNotFoundError passes.

        Raises:
            OutputError: the bucket refuses, or cannot be reached.
        """
        try:
            yield
        except (BaseError, OSError) as error:
            if may_lack and isinstance(error, FileNotFoundError):
                raise
            place = f"{self._url}/{path}".rstrip("/")
            told = _told(str(error))
            raise OutputError(f"{place} cannot be used ({told}): check rights, space and network") from error


def _told(error: str) -> str:
    """What a server answered, without the words around it."""
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", error)
    code, message = (re.search(f"<{name}>(.*?)</{name}>", error, re.DOTALL) for name in ("Code", "Message"))
    if status is None or code is None:
        return one_line(error.partition("Debug source")[0], 300)
    return one_line(f"{status[1].strip()}: {code[1]}" + (f", {message[1].rstrip('.')}" if message else ""), 300)


def listed(url: str) -> Iterator[tuple[str, str]]:
    """Name and URL of each object right below a prefix.

    Args:
        url: as in ``s3://bucket/prefix``.

    Raises:
        UsageError: the URL names no bucket.
        OutputError: the bucket refuses, or cannot be reached.
    """
    store = BucketStore(url)
    place = url.rstrip("/")
    with store.asking(""):
        for some in obstore.list(store.bucket):
            for each in some:
                name = str(each["path"])
                if "/" not in name:
                    yield name, f"{place}/{name}"


def version_of(bucket: str, path: str) -> str | None:
    """The entity tag of an object; None where it cannot be seen."""
    try:
        return str(obstore.head(_bucket(bucket), path)["e_tag"])
    except (BaseError, OSError, ValueError):
        return None  # mapping it will say what is wrong


@cache
def _bucket(url: str) -> Any:
    return from_url(url)


def _holder(died: int) -> bytes:
    return json.dumps({"died": died, "id": uuid.uuid4().hex}).encode()


def _died(content: bytes) -> int:
    try:
        return int(from_json(content, dict[str, Any]).get("died", 0))
    except (MalformedError, TypeError, ValueError):
        return 0
