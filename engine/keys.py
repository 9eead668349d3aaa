"""Keys, signatures and trust for bundles: what an aircraft that runs signed bundles alone needs on the ground.

    python -m engine.keys new mission.key                            a signing key, and mission.pub beside it
    python -m engine.keys sign bundle --key mission.key              writes bundle/manifest.json.sig
    python -m engine.keys release bundle --keys keys                sign by a key that is made and thrown away
    python -m engine.keys trust /etc/gemmnet/keys mission.pub        this installation trusts that key
    python -m engine.keys trust keys a.pub b.pub --root root.key     the root key vouches for these keys, and no others
    python -m engine.keys verify bundle --keys /etc/gemmnet/keys     is it signed by a trusted key, and whole?

A release needs no key that somebody keeps: its private half is never written, so nobody can sign another bundle.
A key is changed by `trust --root` with the new keys: those that are left out are trusted no longer. The formats, and
the setting that makes an installation require signatures, stand in engine/contract/trust.py.

Exit codes: 0 done, 2 options or a key that cannot be used, 4 a file cannot be written, 5 a bundle not to be trusted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.contract import trust
from engine.contract.atomic import write_whole
from engine.contract.bundle import MANIFEST_NAME, Bundle
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, OutputError, UsageError, one_line, writing
from engine.contract.formats import MalformedError, read_file
from engine.contract.trust import KEYS_DOMAIN, LIST_NAME, MANIFEST_DOMAIN, ROOT_NAME, SIGNATURE_SUFFIX, key_id


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        options.does(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The options; also what the documentation is checked against."""
    parser = command_parser("engine.keys", __doc__)
    words = parser.add_subparsers(required=True, metavar="COMMAND")
    new = words.add_parser("new", help="make a signing key")
    new.add_argument("key", type=Path, help="file of the private key; the public one gets the suffix .pub")
    new.set_defaults(does=_new)
    sign = words.add_parser("sign", help="sign a bundle")
    sign.add_argument("bundle", type=Path, help="folder of the bundle")
    sign.add_argument("--key", type=Path, required=True, help="private key")
    sign.add_argument("--beside", action="store_true", help="keep signatures by other keys, of the same manifest")
    sign.set_defaults(does=_sign)
    release = words.add_parser("release", help="sign a bundle by a key of its own, whose private half is thrown away")
    release.add_argument("bundle", type=Path, help="folder of the bundle")
    release.add_argument("--keys", type=Path, required=True, help="folder of trusted keys; gets the public key")
    release.add_argument("--replace", action="store_true", help="remove the keys that the folder trusted before")
    release.set_defaults(does=_release)
    trusting = words.add_parser("trust", help="say which keys an installation trusts")
    trusting.add_argument("keys", type=Path, help="folder of trusted keys")
    trusting.add_argument("public", type=Path, nargs="+", help="public keys")
    trusting.add_argument("--root", type=Path, help="private root key that vouches for them, and for no others")
    trusting.set_defaults(does=_trust)
    verify = words.add_parser("verify", help="check a bundle as an installation that requires signatures does")
    verify.add_argument("bundle", type=Path, help="folder of the bundle")
    verify.add_argument("--keys", type=Path, help="folder of trusted keys (this installation's)")
    verify.set_defaults(does=_verify)
    return parser


def sign_manifest(root: Path, key: Path, *, beside: bool = False) -> str:
    """Sign the manifest of a bundle.

    Args:
        root: folder of the bundle.
        key: file of the private key.
        beside: keep signatures of the same bytes by other keys; else this is the only one.

    Returns:
        The id of the key.

    Raises:
        BundleError: the bundle is not whole.
        UsageError: the key cannot be used.
        OutputError: the signature cannot be written.
    """
    return _sign_with(_private(key), root, beside=beside)


def _sign_with(private: Any, root: Path, *, beside: bool = False) -> str:
    bundle = Bundle.load(root, policy=trust.Policy())
    content = read_file(root / MANIFEST_NAME)
    if hashlib.sha256(content).hexdigest() != bundle.digest:
        raise UsageError(f"{root / MANIFEST_NAME} changed while it was signed: sign it again")
    mine = key_id(_raw(private.public_key()))
    target = root / f"{MANIFEST_NAME}{SIGNATURE_SUFFIX}"
    kept = [line for line in _lines(target) if not line.startswith(f"ed25519 {mine} ")] if beside else []
    lines = [*kept, f"ed25519 {mine} {private.sign(MANIFEST_DOMAIN + content).hex()}"]
    with writing(target):
        write_whole(target, "".join(f"{line}\n" for line in lines).encode(), durable=True)
    return mine


def _new(options: argparse.Namespace) -> None:
    ed25519, serialization = _cryptography()
    public_path = options.key.with_suffix(".pub")
    for path in (options.key, public_path):
        if path.exists():
            raise OutputError(f"{path} is there already, and a key is not replaced: choose another name")
    private = ed25519.Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = _raw(private.public_key())
    with writing(options.key):
        options.key.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(options.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(pem)
        write_whole(public_path, _public_line(public), durable=True)
    print(f"{key_id(public)}: {options.key} signs, keep it off the aircraft; {public_path} is for those who trust it")


def _sign(options: argparse.Namespace) -> None:
    print(f"{options.bundle}: signed by {sign_manifest(options.bundle, options.key, beside=options.beside)}")


def _release(options: argparse.Namespace) -> None:
    if (options.keys / ROOT_NAME).exists():
        raise UsageError(f"{options.keys} has a root key, which alone says what is trusted: pass another --keys")
    private = _cryptography()[0].Ed25519PrivateKey.generate()
    public = _raw(private.public_key())
    with writing(options.keys):
        options.keys.mkdir(parents=True, exist_ok=True)
        write_whole(options.keys / f"{key_id(public)}.pub", _public_line(public), durable=True)
    print(f"{options.bundle}: signed by {_sign_with(private, options.bundle)}, whose private half nobody has")
    others = sorted(path for path in options.keys.glob("*.pub") if path.stem != key_id(public))
    if options.replace:
        with writing(options.keys):
            for path in others:
                path.unlink()
    elif others:
        print(f"{options.keys} also trusts {', '.join(path.name for path in others)}: --replace removes them")


def _trust(options: argparse.Namespace) -> None:
    publics = [trust.read_public(path) for path in options.public]
    with writing(options.keys):
        options.keys.mkdir(parents=True, exist_ok=True)
        if options.root is None:
            if (options.keys / ROOT_NAME).exists():
                raise UsageError(f"{options.keys} has a root key, which alone says what is trusted: pass --root KEY")
            for public in publics:
                write_whole(options.keys / f"{key_id(public)}.pub", _public_line(public), durable=True)
        else:
            private = _private(options.root)
            root = _raw(private.public_key())
            known = options.keys / ROOT_NAME
            if known.exists() and trust.read_public(known) != root:
                raise UsageError(f"{known} is another root key than {options.root}: pass that one")
            content = b"".join(map(_public_line, publics))
            signature = f"ed25519 {key_id(root)} {private.sign(KEYS_DOMAIN + content).hex()}\n".encode()
            write_whole(options.keys / LIST_NAME, content, durable=True)
            write_whole(options.keys / f"{LIST_NAME}{SIGNATURE_SUFFIX}", signature, durable=True)
            write_whole(known, _public_line(root), durable=True)
    print(f"{options.keys} trusts {', '.join(map(key_id, publics))}")


def _verify(options: argparse.Namespace) -> None:
    policy = trust.installed_policy(require_signature=True)
    if options.keys is not None:
        policy = trust.Policy(require_signature=True, keys=options.keys, minimum_number=policy.minimum_number)
    bundle = Bundle.load(options.bundle, policy=policy)
    print(
        f"{options.bundle}: whole, signed by {bundle.signed_by}, {bundle.manifest.name} number {bundle.manifest.number}"
    )


def _lines(path: Path) -> list[str]:
    try:
        return read_file(path).decode("ascii").splitlines()
    except (OSError, MalformedError, UnicodeDecodeError):
        return []


def _private(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    try:
        private = serialization.load_pem_private_key(read_file(path, trust.SMALL_BYTES), password=None)
    except Exception as error:  # OpenSSL's errors have no class in common
        raise UsageError(f"{path} is no private key of `python -m engine.keys new`: {one_line(error)}") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} is no Ed25519 key: make one with `python -m engine.keys new`")
    return private


def _raw(public: Any) -> bytes:
    return bytes(public.public_bytes_raw())


def _public_line(public: bytes) -> bytes:
    return f"ed25519 {public.hex()}\n".encode()


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(f"signing needs a library that is not installed ({error}): {trust.INSTALL}") from error
    return ed25519, serialization


if __name__ == "__main__":
    sys.exit(main())
