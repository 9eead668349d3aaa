"""Whose bundles this installation runs: signatures of manifests, checked before anything of a bundle is parsed.

A manifest holds the SHA-256 of every other file, so one signature over its bytes covers the bundle. Beside it lies
``manifest.json.sig``, a line per signature::

    ed25519 <key id: 16 hex digits> <signature: 128 hex digits>

over ``b"gemmnet manifest\\n"`` and the bytes of ``manifest.json`` (Ed25519, RFC 8032). A key id is the first 16 hex
digits of the SHA-256 of the public key, which lies in a folder of trusted keys::

    keys/<key id>.pub        ed25519 <public key: 64 hex digits>
    keys/root.pub            where it is there, no other file of the folder is trusted by itself, but
    keys/keys.list           the signing keys that the root key vouches for (see :mod:`engine.keys`)
    keys/keys.list.sig       the root's signature over b"gemmnet keys\\n" and its bytes

What is required is a setting of the installation, ``trust.toml`` in :data:`POLICY_FOLDERS`; a command line can ask for
more and never for less::

    require_signature = true
    keys = "keys"                      # beside trust.toml, or an absolute path
    minimum_number = 7                 # of Manifest.number: an older bundle is refused
    state = "/var/lib/gemmnet"         # remembers the highest number of each bundle's name; optional

``cryptography`` (extra ``signed``) is imported when a signature has to be checked, and an installation that requires
signatures without it runs nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.errors import SignatureError
from engine.contract.formats import MalformedError, from_json, from_toml, read_file

POLICY_NAME = "trust.toml"
POLICY_FOLDERS = (Path("/etc/gemmnet"), Path(sys.prefix, "etc", "gemmnet"))
SHIPPED_KEYS = Path(__file__).parents[1] / "demo" / "keys"
"""The demo bundle's key: trusted where an installation has neither a policy nor keys of its own."""
REQUIRE_VARIABLE = "GEMMNET_REQUIRE_SIGNATURE"
"""Set to anything but ``0`` it requires signatures, as ``--require-signature`` does; it cannot switch them off."""
SIGNATURE_SUFFIX = ".sig"
ROOT_NAME, LIST_NAME, STATE_NAME = "root.pub", "keys.list", "numbers.json"
MANIFEST_DOMAIN, KEYS_DOMAIN = b"gemmnet manifest\n", b"gemmnet keys\n"
SMALL_BYTES = 64 << 10

_SIGNATURE = re.compile(r"ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})")
_PUBLIC = re.compile(r"ed25519 ([0-9a-f]{64})")
INSTALL = "pip install 'gemmnet-edge[signed]'"
"""What brings the library that signatures need."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an installation asks of a bundle."""

    require_signature: bool = False
    keys: Path | None = None
    """Folder of trusted keys."""
    minimum_number: int = 0
    state: Path | None = None
    """Folder in which the highest number of each bundle is remembered."""


class _PolicyFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A name that is not known is refused: what was misspelt might be the rule itself."""

    require_signature: bool = False
    keys: str = "keys"
    minimum_number: int = 0
    state: str | None = None


class _Numbers(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The highest number of each bundle, and their SHA-256: a name that is damaged would be forgotten unseen."""

    numbers: dict[str, int]
    sha256: str

    @classmethod
    def of(cls, numbers: dict[str, int]) -> _Numbers:
        return cls(numbers=numbers, sha256=hashlib.sha256(msgspec.json.encode(numbers, order="sorted")).hexdigest())

    @classmethod
    def read(cls, path: Path) -> _Numbers:
        found = from_json(read_file(path, SMALL_BYTES), cls)
        if found != cls.of(found.numbers):
            raise MalformedError("it is not what was written")
        return found

    def write(self, path: Path) -> None:
        write_whole(path, msgspec.json.encode(self), durable=True)


def installed_policy(require_signature: bool = False, *, folders: Sequence[Path] | None = None) -> Policy:
    """The policy of this installation.

    Args:
        require_signature: asked for beyond it.
        folders: that may hold a ``trust.toml``; None is :data:`POLICY_FOLDERS`.

    Raises:
        SignatureError: a policy is there and cannot be read: then nothing is run rather than everything.
    """
    require = require_signature or os.environ.get(REQUIRE_VARIABLE, "0") not in ("", "0")
    found: list[Policy] = []
    places = POLICY_FOLDERS if folders is None else tuple(folders)
    for folder in places:
        path = folder / POLICY_NAME
        try:
            told = from_toml(read_file(path, SMALL_BYTES), _PolicyFile)
        except FileNotFoundError:
            continue
        except (OSError, MalformedError) as error:
            raise SignatureError(
                f"{path} says which bundles are trusted and cannot be read: {error}: mend it"
            ) from error
        found.append(
            Policy(
                require_signature=told.require_signature,
                keys=folder / told.keys,
                minimum_number=told.minimum_number,
                state=None if told.state is None else folder / told.state,
            )
        )
    own = places[0] / "keys"
    first = found[0] if found else Policy(keys=own if own.is_dir() else SHIPPED_KEYS)
    return Policy(
        require_signature=require or any(each.require_signature for each in found),
        keys=first.keys,
        minimum_number=max((each.minimum_number for each in found), default=0),
        state=first.state,
    )


def check_signature(manifest: bytes, path: Path, policy: Policy) -> str | None:
    """See that a manifest is signed by a trusted key, where the policy asks for it.

    Args:
        manifest: its bytes, of which nothing has been parsed.
        path: where they are from.
        policy: of the installation.

    Returns:
        The id of the key that signed it; None where no signature is required.

    Raises:
        SignatureError: there is no signature of a trusted key, or it is not one of these bytes.
    """
    if not policy.require_signature:
        return None
    again = "get the bundle from whoever signs it, or add their key to the trusted ones"
    signatures = _signatures(path.with_name(f"{path.name}{SIGNATURE_SUFFIX}"), again)
    trusted = trusted_keys(policy)
    known = {key: signature for key, signature in signatures.items() if key in trusted}
    if not known:
        raise SignatureError(
            f"{path} must be signed by a trusted key; it is signed by {', '.join(signatures)}, and "
            f"{policy.keys} holds {', '.join(sorted(trusted)) or 'none'}: {again}"
        )
    for key, signature in known.items():
        if not verifies(trusted[key], signature, MANIFEST_DOMAIN + manifest):
            raise SignatureError(f"{path} is not what key {key} signed: {again}")
    return next(iter(known))


def check_number(name: str, number: int, path: Path, policy: Policy) -> None:
    """See that a bundle is not older than one that this installation has run.

    Raises:
        SignatureError: it is, or the numbers cannot be read.
    """
    lowest = max(policy.minimum_number, _remembered(policy).get(name, 0))
    if number < lowest:
        raise SignatureError(
            f"{path} has the number {number}, and this installation runs none below {lowest}: get the newer bundle"
        )


def remember_number(name: str, number: int, policy: Policy) -> None:
    """Refuse older bundles of this name from now on, where the policy says that numbers are remembered.

    Raises:
        SignatureError: the numbers cannot be written.
    """
    numbers = _remembered(policy)
    if policy.state is None or numbers.get(name, -1) >= number:
        return
    state = policy.state / STATE_NAME
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        _Numbers.of({**numbers, name: number}).write(state)
    except OSError as error:
        raise SignatureError(f"{state} cannot be written ({error.strerror}): check its permissions") from error


def _remembered(policy: Policy) -> dict[str, int]:
    if policy.state is None:
        return {}
    state = policy.state / STATE_NAME
    try:
        return _Numbers.read(state).numbers
    except FileNotFoundError:
        return {}
    except (OSError, MalformedError) as error:
        raise SignatureError(
            f"{state} remembers the bundles' numbers and cannot be read ({error}): set minimum_number to the last that "
            "ran, and delete it"
        ) from error


def trusted_keys(policy: Policy) -> Mapping[str, bytes]:
    """Public keys by their ids.

    Raises:
        SignatureError: a key, or the root's list of keys, is not what it should be.
    """
    folder = policy.keys
    if folder is None or not folder.is_dir():
        return {}
    root = folder / ROOT_NAME
    if root.exists():
        return _listed(folder, read_public(root))
    found = {}
    for path in sorted(folder.glob("*.pub")):
        key = read_public(path)
        if key_id(key) != path.stem:
            raise SignatureError(f"{path} bears the id of another key than {key_id(key)}: rename it, or remove it")
        found[key_id(key)] = key
    return found


def key_id(public: bytes) -> str:
    """The name of a public key, 16 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()[:16]


def verifies(public: bytes, signature: bytes, content: bytes) -> bool:
    """Whether the signature is one of this content by this key (RFC 8032).

    Raises:
        SignatureError: ``cryptography`` is not installed.
    """
    ed25519, invalid = _cryptography()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except invalid:
        return False
    return True


def _cryptography() -> tuple[Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise SignatureError(
            f"this installation requires signed bundles and cannot check one ({error}): {INSTALL}"
        ) from error
    return ed25519, InvalidSignature


def _signatures(path: Path, again: str) -> dict[str, bytes]:
    lines = _lines(path, f"a signed bundle holds {path.name}", again)
    found = {}
    for line in lines:
        match = _SIGNATURE.fullmatch(line)
        if match is None or match[1] in found:
            raise SignatureError(
                f"{path}: a line is `ed25519 KEY-ID SIGNATURE`, one a key; received {line[:80]!r}: {again}"
            )
        found[match[1]] = bytes.fromhex(match[2])
    return found


def read_public(path: Path) -> bytes:
    """The key in a ``.pub`` file, 32 bytes.

    Raises:
        SignatureError: it is none.
    """
    lines = _lines(path, "a public key is a file", "replace it")
    match = _PUBLIC.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise SignatureError(f"{path}: a public key is one line `ed25519 KEY`: replace it")
    return bytes.fromhex(match[1])


def _listed(folder: Path, root: bytes) -> dict[str, bytes]:
    """The keys that the root key vouches for."""
    path = folder / LIST_NAME
    again = "write it again with `python -m engine.keys trust`"
    try:
        content = read_file(path, SMALL_BYTES)
    except (OSError, MalformedError) as error:
        raise SignatureError(
            f"{folder} has a root key and no list of keys that can be read ({error}): {again}"
        ) from error
    signature = _signatures(folder / f"{LIST_NAME}{SIGNATURE_SUFFIX}", again).get(key_id(root))
    if signature is None or not verifies(root, signature, KEYS_DOMAIN + content):
        raise SignatureError(f"{path} is not signed by the root key {key_id(root)}: {again}")
    found = {}
    for line in content.decode("ascii", errors="replace").splitlines():
        match = _PUBLIC.fullmatch(line)
        if match is None:
            raise SignatureError(f"{path}: a line is `ed25519 KEY`, received {line[:80]!r}: {again}")
        public = bytes.fromhex(match[1])
        found[key_id(public)] = public
    return found


def _lines(path: Path, rule: str, again: str) -> list[str]:
    try:
        text = read_file(path, SMALL_BYTES).decode("ascii")
    except (OSError, MalformedError, UnicodeDecodeError) as error:
        raise SignatureError(f"{rule}; {path} cannot be read ({error}): {again}") from error
    lines = text.splitlines()
    if not lines:
        raise SignatureError(f"{path} is empty: {again}")
    return lines
