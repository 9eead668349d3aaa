"""Signed bundles: what is accepted, and twenty ways in which one that is not to be trusted is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine import demo, keys
from engine.contract import trust
from engine.contract.bundle import Bundle, save_manifest
from engine.contract.errors import IntegrityError, SignatureError
from engine.contract.plans import PlanHost, refusal
from engine.contract.sensors import Scenario
from engine.contract.trust import Policy, installed_policy, key_id, verifies
from tests.engine.attacks import ATTACKS, Aircraft, make_aircraft, private, replayed_older_bundle
from tests.engine.plans import LIBRARIES, build


@pytest.fixture
def aircraft(toy_bundle: Bundle, tmp_path: Path) -> Aircraft:
    return make_aircraft(toy_bundle, tmp_path)


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


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_bundle_that_is_not_to_be_trusted_is_refused(
    attack: Callable[[Aircraft], None], aircraft: Aircraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    aircraft.load()
    attack(aircraft)
    if ATTACKS[attack] is SignatureError and attack is not replayed_older_bundle:  # nothing is parsed before
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
