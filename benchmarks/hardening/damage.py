"""Damage to a file's content, as disks, networks and attackers do it; the same for the same number."""

from __future__ import annotations

import random

WORDS = (
    *(b"", b"\0", b"\xff", b"null", b"true", b"1e400", b"-1", b"0", b"9" * 40, b"NaN", b"1e-9"),
    *(b'"', b"[" * 2000, b"{", b"../", b"/etc/passwd", b"\n", b"\xff\xfe", b"\xc3\x28", b",", b" "),
)


def damaged(content: bytes, seed: int) -> bytes:
    """The content cut, overwritten, doubled or with other bytes in it, one to three times; or other content at all."""
    chance = random.Random(seed)
    whole = content
    while content == whole:
        if chance.random() < 0.06:
            content = _others(whole, chance)
            continue
        for _ in range(chance.randint(1, 3)):
            content = _once(content, chance)
    return content


def _others(content: bytes, chance: random.Random) -> bytes:
    return chance.choice(
        (b"", chance.randbytes(300), content[::-1], content.decode("latin-1").encode("utf-16"), b"[" * 100_000)
    )


def _once(content: bytes, chance: random.Random) -> bytes:
    at, length = chance.randint(0, len(content)), chance.randint(1, 16)
    kind = chance.choice(("flip", "flip", "cut", "replace", "insert", "truncate", "double", "digit"))
    if kind == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind == "digit":
        digits = [place for place, byte in enumerate(content[:100_000]) if 48 <= byte < 58]
        if digits:
            place = chance.choice(digits)
            return content[:place] + chance.choice((b"-", b"9", b"0", b"9" * 25, b"")) + content[place + 1 :]
    if kind == "cut":
        return content[:at] + content[at + length :]
    if kind == "replace":
        return content[:at] + chance.choice(WORDS) + content[at + length :]
    if kind == "insert":
        return content[:at] + chance.randbytes(length) + content[at:]
    if kind == "truncate":
        return content[:at]
    return content[:at] + content[max(0, at - length) :]
