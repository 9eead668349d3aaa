"""Damage to a file's content, as disks, networks and attackers do it."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = (
    b"",
    b"\0",
    b"\xff",
    b"null",
    b"1e400",
    b"-1",
    b"9" * 40,
    b"NaN",
    b'"',
    b"[" * 2000,
    b"{",
    b"../",
    b"\n",
    b"\xff\xfe",
)


@st.composite
def mutated(draw: st.DrawFn, example: bytes) -> bytes:
    """The example, cut, overwritten, doubled or with other bytes in it, one to four times; or other bytes at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    content = example
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 16))
        kind = draw(st.sampled_from(("flip", "cut", "replace", "insert", "truncate", "double")))
        if kind == "flip" and at < len(content):
            flipped = bytes([content[at] ^ draw(st.integers(1, 255))])
            content = content[:at] + flipped + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[at + length :]
        elif kind == "replace":
            content = content[:at] + draw(st.sampled_from(WORDS)) + content[at + length :]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
        elif kind == "truncate":
            content = content[:at]
        else:
            content = content[:at] + content[max(0, at - length) :]
    return content
