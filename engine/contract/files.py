"""The files of a bundle: named by a path, a size and a hash, and read so that what was hashed is what is used.

A file that is hashed under its name and opened again under its name may be another one by then. So a bundle's files are
read once, from one descriptor, and used from memory (:meth:`FileRef.read`) or from a private copy
(:func:`private_copies`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.contract.errors import BundleError, IntegrityError
from engine.contract.formats import MalformedError, open_regular

PIECE_BYTES = 1 << 20
NAME_LIMIT_BYTES = 255
"""Of one part of a path: what file systems allow."""
PATH_LIMIT = 1024


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file of the bundle, by its path relative to the bundle's folder.

    Raises:
        ValueError: the path leaves the bundle or cannot be one, the size is negative, or the hash is not 64 hexadecimal
            digits.
    """

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise ValueError(f"a bundle file's path must stay inside the bundle, received {self.path!r}")
        longest = max(len(part.encode(errors="replace")) for part in parts.parts)
        if (
            not self.path.isprintable()
            or "\\" in self.path
            or longest > NAME_LIMIT_BYTES
            or len(self.path) > PATH_LIMIT
        ):
            raise ValueError(
                f"a bundle file's path must be printable, with / between names of at most {NAME_LIMIT_BYTES} bytes, "
                f"received {self.path[:80]!r} ({len(self.path)} characters)"
            )
        if self.size_bytes < 0:
            raise ValueError(f"size_bytes must not be negative, received {self.size_bytes}")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 must be 64 lower-case hexadecimal digits, received {self.sha256[:80]!r}")

    @classmethod
    def of(cls, file: Path, root: Path) -> FileRef:
        """Describe ``file`` as it is on disk now."""
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path=file.relative_to(root).as_posix(), size_bytes=file.stat().st_size, sha256=digest)

    def verify(self, root: Path) -> None:
        """See that the file in ``root`` has this size and hash.

        Raises:
            IntegrityError: it has not, or it cannot be read.
        """
        for _ in self._pieces(root):
            pass

    def read(self, root: Path) -> bytes:
        """The verified content.

        Raises:
            IntegrityError: the file differs, or cannot be read.
        """
        return b"".join(self._pieces(root))

    def _pieces(self, root: Path) -> Iterator[bytes]:
        """The content in pieces; the error comes before the last one is asked for."""
        file = root / self.path
        again = "copy the bundle again or export it anew with `python -m export.run`"
        digest, size = hashlib.sha256(), 0
        try:
            with open_regular(file) as stream:
                stream.seek(0, 2)
                found = stream.tell()
                if found != self.size_bytes:
                    raise IntegrityError(f"{file}: the manifest says {self.size_bytes} bytes, found {found}: {again}")
                stream.seek(0)
                while size < found and (piece := stream.read(min(PIECE_BYTES, found - size))):
                    digest.update(piece)
                    size += len(piece)
                    yield piece
        except OSError as error:
            raise IntegrityError(
                f"{file}: named by the manifest but cannot be read ({error.strerror}): {again}"
            ) from error
        except MalformedError as error:
            raise IntegrityError(f"{file}: named by the manifest but {error}: {again}") from error
        if digest.hexdigest() != self.sha256:
            raise IntegrityError(
                f"{file}: the manifest says sha256 {self.sha256[:12]}…, found {digest.hexdigest()[:12]}…: {again}"
            )


@contextmanager
def private_copies(root: Path, files: Iterable[FileRef]) -> Iterator[Path]:
    """A folder that only this user can enter, with verified copies of ``files`` and nothing else.

    For libraries that open a file by its name, and the files it names. The folder is gone afterwards; where a library
    has mapped a file, its content stays until that is unmapped.

    Args:
        root: of the bundle.
        files: what is copied.

    Raises:
        IntegrityError: a file differs from what the manifest says.
        BundleError: there is no room for the copies.
    """
    by_path = {ref.path: ref for ref in files}
    with tempfile.TemporaryDirectory(prefix="gemmnet-bundle-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            for path, ref in by_path.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copy:
                    for piece in ref._pieces(root):
                        copy.write(piece)
        except OSError as error:
            needed = sum(ref.size_bytes for ref in by_path.values())
            raise BundleError(
                f"a verified copy of the bundle's graphs needs {needed / 1e6:.0f} MB in {folder.parent} "
                f"({error.strerror}): free space, or set TMPDIR to a folder that has it"
            ) from error
        yield folder
