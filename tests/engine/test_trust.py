"""Signed bundles: what is accepted, and twenty ways in which one that is not to be trusted is refused."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from engine import demo, keys
from engine.contract import trust
from engine.contract.bundle import MANIFEST_NAME, Bundle, FileRef, save_manifest
from engine.contract.errors import BundleError, IntegrityError, ManifestError, SignatureError
from engine.contract.plans import PlanHost, refusal
from engine.contract.sensors import Scenario
from engine.contract.trust import Policy, installed_policy, key_id, verifies
from tests.engine.plans import LIBRARIES, build

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")


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


@pytest.fixture
def aircraft(toy_bundle: Bundle, tmp_path: Path) -> Aircraft:
    root = Path(shutil.copytree(toy_bundle.root, tmp_path / "bundle"))
    save_manifest(replace(toy_bundle.manifest, number=7), root)
    good, other = private(tmp_path / "ground" / "good.key", 1), private(tmp_path / "ground" / "other.key", 2)
    assert keys.main(["trust", str(tmp_path / "keys"), str(good.with_suffix(".pub"))]) == 0
    assert keys.main(["sign", str(root), "--key", str(good)]) == 0
    policy = Policy(require_signature=True, keys=tmp_path / "keys", minimum_number=7)
    return Aircraft(root=root, policy=policy, good=good, other=other)


def test_a_signed_bundle_is_accepted_and_says_by_whom(aircraft: Aircraft, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = aircraft.load()
    public = trust.read_public(aircraft.good.with_suffix(".pub"))
    assert bundle.signed_by == key_id(public)
    assert keys.main(["verify", str(aircraft.root), "--keys", str(aircraft.policy.keys)]) == 0
    assert f"signed by {key_id(public)}" in capsys.readouterr().out
    assert Bundle.load(aircraft.root, Policy()).signed_by is None


@pytest.mark.parametrize(
    ("public", "message", "signature"),
    [  # RFC 8032, 7.1, tests 1 to 3
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595"
            "bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb43"
            "02aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716"
            "ed28dc027beceea1ec40a",
        ),
    ],
)  # fmt: skip
def test_signatures_are_those_of_the_standard(public: str, message: str, signature: str) -> None:
    key, content, signed = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
    assert verifies(key, signed, content)
    assert not verifies(key, signed, content + b"x")
    assert not verifies(key, bytes([signed[0] ^ 1]) + signed[1:], content)


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


def _replayed_older_bundle(a: Aircraft) -> None:
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
    **dict.fromkeys((_replayed_older_bundle, _signature_of_an_older_bundle, _signed_as_a_list_of_keys), SignatureError),
    **dict.fromkeys((_unsafe_key_file, _key_under_another_name, _no_keys), SignatureError),
    **dict.fromkeys((_altered_file, _swapped_graphs), IntegrityError),
    _no_manifest: ManifestError,
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_bundle_that_is_not_to_be_trusted_is_refused(
    attack: Callable[[Aircraft], None], aircraft: Aircraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    aircraft.load()
    attack(aircraft)
    if ATTACKS[attack] is SignatureError and attack is not _replayed_older_bundle:  # nothing is parsed before
        monkeypatch.setattr("engine.contract.bundle.from_json", lambda *_: pytest.fail("the manifest was parsed"))
    with pytest.raises(ATTACKS[attack]) as caught:
        aircraft.load()
    assert caught.value.exit_code == 5
    assert str(caught.value).isprintable()


def test_the_signature_is_of_what_is_used(aircraft: Aircraft) -> None:
    """A file that is swapped after the bundle was accepted is not the one that runs."""
    bundle = aircraft.load()
    shutil.copy(aircraft.root / "missing_ndsm.onnx", aircraft.root / "full.onnx")
    with pytest.raises(IntegrityError), bundle.opened([Scenario.FULL], "fp32"):
        pass


def test_a_root_key_says_which_keys_are_trusted_and_takes_its_word_back(aircraft: Aircraft, tmp_path: Path) -> None:
    folder, root = aircraft.policy.keys, private(tmp_path / "ground" / "root.key", 9)
    assert folder is not None
    good, other = (str(path.with_suffix(".pub")) for path in (aircraft.good, aircraft.other))
    assert keys.main(["trust", str(folder), good, other, "--root", str(root)]) == 0
    aircraft.load()
    assert keys.main(["trust", str(folder), other, "--root", str(root)]) == 0  # the rotation
    with pytest.raises(SignatureError, match="must be signed by a trusted key"):
        aircraft.load()
    keys.sign_manifest(aircraft.root, aircraft.other, beside=True)
    aircraft.load()
    assert keys.main(["trust", str(folder), good]) == 2  # without the root key nobody is added
    assert keys.main(["trust", str(folder), good, "--root", str(aircraft.good)]) == 2  # nor by another
    (folder / "keys.list").write_text(Path(good).read_text())
    with pytest.raises(SignatureError, match="not signed by the root key"):
        aircraft.load()


def test_the_highest_number_is_remembered(aircraft: Aircraft, tmp_path: Path) -> None:
    policy = replace(aircraft.policy, minimum_number=0, state=tmp_path / "state")
    Bundle.load(aircraft.root, policy)
    aircraft.edit(number=3)
    keys.sign_manifest(aircraft.root, aircraft.good)
    with pytest.raises(SignatureError, match="number 3, and this installation runs none below 7"):
        Bundle.load(aircraft.root, policy)
    aircraft.edit(number=8)
    keys.sign_manifest(aircraft.root, aircraft.good)
    Bundle.load(aircraft.root, policy)
    remembered = tmp_path / "state" / "numbers.json"
    assert msgspec.json.decode(remembered.read_bytes())["numbers"] == {"toy": 8}
    remembered.write_bytes(remembered.read_bytes().replace(b"toy", b"boy"))
    with pytest.raises(SignatureError, match="is not what was written"):
        Bundle.load(aircraft.root, policy)


def test_the_installation_decides_and_nobody_asks_for_less(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "POLICY_FOLDERS", (tmp_path / "etc",))
    monkeypatch.delenv(trust.REQUIRE_VARIABLE, raising=False)
    assert not installed_policy().require_signature
    assert installed_policy(require_signature=True).require_signature
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "trust.toml").write_text("require_signature = true\nminimum_number = 4\n")
    monkeypatch.setenv(trust.REQUIRE_VARIABLE, "0")
    policy = installed_policy()
    assert (policy.require_signature, policy.minimum_number, policy.keys) == (True, 4, tmp_path / "etc" / "keys")
    with pytest.raises(SignatureError, match="must be signed|holds manifest.json.sig"):
        Bundle.load(toy_bundle.root)
    (tmp_path / "etc" / "trust.toml").write_text("require_signatures = true\n")  # a letter too many
    with pytest.raises(SignatureError, match="says which bundles are trusted"):
        installed_policy()
    (tmp_path / "etc" / "trust.toml").write_bytes(b"\xff")
    with pytest.raises(SignatureError, match="says which bundles are trusted"):
        Bundle.load(toy_bundle.root)


def test_without_the_library_an_installation_that_requires_signatures_runs_nothing(
    aircraft: Aircraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SignatureError, match=r"gemmnet-edge\[signed\]"):
        aircraft.load()


def test_plans_built_on_board_are_not_run_where_signatures_are_required(aircraft: Aircraft) -> None:
    host = PlanHost(library="tensorrt", library_version=LIBRARIES["tensorrt"], device=None)
    bundle = Bundle.load(aircraft.root, Policy())
    record = build(bundle, "fp32")[Scenario.FULL].record
    assert refusal(record, bundle, host) is None
    assert "runs what is signed alone" in str(refusal(record, aircraft.load(), host))


def test_a_release_is_signed_by_a_key_that_nobody_has(
    aircraft: Aircraft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "shipped"
    assert keys.main(["release", str(aircraft.root), "--keys", str(shipped)]) == 0
    signed_by = Bundle.load(aircraft.root, Policy(require_signature=True, keys=shipped)).signed_by
    assert [path.name for path in shipped.iterdir()] == [f"{signed_by}.pub"]
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b"PRIVATE" in path.read_bytes() and path.parent.name != "ground"
    ]
    assert keys.main(["release", str(aircraft.root), "--keys", str(shipped)]) == 0
    assert f"also trusts {signed_by}.pub" in capsys.readouterr().out
    assert keys.main(["release", str(aircraft.root), "--keys", str(shipped), "--replace"]) == 0
    signed_by = Bundle.load(aircraft.root, Policy(require_signature=True, keys=shipped)).signed_by
    assert [path.name for path in shipped.iterdir()] == [f"{signed_by}.pub"]


def test_another_manifest_has_no_signature(aircraft: Aircraft) -> None:
    assert aircraft.signature.exists()
    save_manifest(replace(aircraft.load().manifest, number=8), aircraft.root)
    assert not aircraft.signature.exists()


def test_the_demo_bundle_is_signed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "POLICY_FOLDERS", (tmp_path,))
    bundle = Bundle.load(demo.BUNDLE, installed_policy(require_signature=True))
    assert [path.name for path in demo.KEYS.glob("*.pub")] == [f"{bundle.signed_by}.pub"]
    (tmp_path / "keys").mkdir()  # an installation that has keys of its own trusts those alone
    with pytest.raises(SignatureError, match="must be signed by a trusted key"):
        Bundle.load(demo.BUNDLE, installed_policy(require_signature=True))


def test_keys_are_made_and_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mission.key"
    assert keys.main(["new", str(path)]) == 0
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    assert keys.main(["new", str(path)]) == 4
    assert path.read_bytes() == before
    (tmp_path / "wrong.key").write_text("no key")
    assert keys.main(["sign", str(tmp_path), "--key", str(tmp_path / "wrong.key")]) == 2
    assert "is no private key" in capsys.readouterr().err
