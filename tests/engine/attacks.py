"""An aircraft that runs signed bundles alone, and more than twenty ways to have it run another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519

from engine import keys
from engine.contract import trust
from engine.contract.bundle import MANIFEST_NAME, Bundle, FileRef, save_manifest
from engine.contract.errors import BundleError, IntegrityError, ManifestError, SignatureError
from engine.contract.trust import Policy


def private(path: Path, number: int) -> Path:
    """A private key that is the same in every run; its public key lies beside it."""
    from cryptography.hazmat.primitives import serialization

    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    path.parent.mkdir(exist_ok=True)
    none, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    path.with_suffix(".pub").write_text(f"ed25519 {key.public_key().public_bytes_raw().hex()}\n")
    return path


@dataclass(frozen=True, kw_only=True)
class Aircraft:
    """A signed bundle, and the installation that it is for."""

    root: Path
    policy: Policy
    good: Path
    other: Path

    @property
    def manifest(self) -> Path:
        return self.root / MANIFEST_NAME

    @property
    def signature(self) -> Path:
        return self.root / "manifest.json.sig"

    def load(self) -> Bundle:
        return Bundle.load(self.root, self.policy)

    def edit(self, **changes: object) -> None:
        told = msgspec.json.decode(self.manifest.read_bytes())
        self.manifest.write_bytes(msgspec.json.encode({**told, **changes}))


def make_aircraft(bundle: Bundle, folder: Path) -> Aircraft:
    """A copy of a bundle with the number 7, signed, and an installation that trusts the key."""
    root = Path(shutil.copytree(bundle.root, folder / "bundle"))
    save_manifest(replace(bundle.manifest, number=7), root)
    good, other = private(folder / "ground" / "good.key", 1), private(folder / "ground" / "other.key", 2)
    assert keys.main(["trust", str(folder / "keys"), str(good.with_suffix(".pub"))]) == 0
    assert keys.main(["sign", str(root), "--key", str(good)]) == 0
    policy = Policy(require_signature=True, keys=folder / "keys", minimum_number=7)
    return Aircraft(root=root, policy=policy, good=good, other=other)


def _unsigned(a: Aircraft) -> None:
    a.signature.unlink()


def _empty_signature(a: Aircraft) -> None:
    a.signature.write_text("")


def _truncated_signature(a: Aircraft) -> None:
    a.signature.write_text(a.signature.read_text()[:-3])


def _garbage_signature(a: Aircraft) -> None:
    a.signature.write_bytes(os.urandom(200))


def _huge_signature(a: Aircraft) -> None:
    a.signature.write_text(a.signature.read_text() * 10_000)


def _signature_is_a_pipe(a: Aircraft) -> None:
    a.signature.unlink()
    os.mkfifo(a.signature)


def _altered_signature(a: Aircraft) -> None:
    text = a.signature.read_text()
    a.signature.write_text(text[:-2] + ("0" if text[-2] != "0" else "1") + "\n")


def _two_of_one_key(a: Aircraft) -> None:
    a.signature.write_text(a.signature.read_text() * 2)


def _another_algorithm(a: Aircraft) -> None:
    a.signature.write_text(a.signature.read_text().replace("ed25519", "none"))


def _wrong_key(a: Aircraft) -> None:
    keys.sign_manifest(a.root, a.other)


def _wrong_key_under_the_right_name(a: Aircraft) -> None:
    right = a.signature.read_text().split()[1]
    keys.sign_manifest(a.root, a.other)
    a.signature.write_text(a.signature.read_text().replace(a.signature.read_text().split()[1], right))


def _altered_manifest(a: Aircraft) -> None:
    a.edit(halo_px=0)


def _one_space_more(a: Aircraft) -> None:
    a.manifest.write_bytes(a.manifest.read_bytes() + b" ")


def _altered_file(a: Aircraft) -> None:
    path = a.root / "full.onnx"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def _altered_file_and_hash(a: Aircraft) -> None:
    _altered_file(a)
    graphs = msgspec.json.decode(a.manifest.read_bytes())["graphs"]
    graphs["full"]["fp32"] = msgspec.to_builtins(FileRef.of(a.root / "full.onnx", a.root))
    a.edit(graphs=graphs)


def _swapped_graphs(a: Aircraft) -> None:
    one, other = a.root / "full.onnx", a.root / "missing_ndsm.onnx"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def replayed_older_bundle(a: Aircraft) -> None:
    a.edit(number=6)
    keys.sign_manifest(a.root, a.good)


def _signature_of_an_older_bundle(a: Aircraft) -> None:
    signature = a.signature.read_text()
    a.edit(number=8)
    a.signature.write_text(signature)


def _signed_as_a_list_of_keys(a: Aircraft) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(a.good.read_bytes(), None)
    signature = key.sign(trust.KEYS_DOMAIN + a.manifest.read_bytes())
    a.signature.write_text(f"ed25519 {a.signature.read_text().split()[1]} {signature.hex()}\n")


def _no_manifest(a: Aircraft) -> None:
    a.manifest.unlink()


def _unsafe_key_file(a: Aircraft) -> None:
    assert a.policy.keys is not None
    next(a.policy.keys.glob("*.pub")).write_text("ed25519 00\n")


def _key_under_another_name(a: Aircraft) -> None:
    assert a.policy.keys is not None
    shutil.copy(a.other.with_suffix(".pub"), next(a.policy.keys.glob("*.pub")))


def _no_keys(a: Aircraft) -> None:
    assert a.policy.keys is not None
    shutil.rmtree(a.policy.keys)


ATTACKS: dict[Callable[[Aircraft], None], type[BundleError]] = {
    **dict.fromkeys((_unsigned, _empty_signature, _truncated_signature, _garbage_signature), SignatureError),
    **dict.fromkeys((_huge_signature, _signature_is_a_pipe, _altered_signature, _two_of_one_key), SignatureError),
    **dict.fromkeys((_another_algorithm, _wrong_key, _wrong_key_under_the_right_name), SignatureError),
    **dict.fromkeys((_altered_manifest, _one_space_more, _altered_file_and_hash), SignatureError),
    **dict.fromkeys((replayed_older_bundle, _signature_of_an_older_bundle, _signed_as_a_list_of_keys), SignatureError),
    **dict.fromkeys((_unsafe_key_file, _key_under_another_name, _no_keys), SignatureError),
    **dict.fromkeys((_altered_file, _swapped_graphs), IntegrityError),
    _no_manifest: ManifestError,
}
