"""A disk that forgets: which files and names are left after a power cut, by the rules of POSIX and no kinder ones.

What a program wrote is safe once it called ``fsync`` on the file; the name of a file is safe once it called ``fsync``
on the folder that holds it. Whatever else it did may have reached the disk or not: a crash keeps none of it, or, drawn
by chance, some of it: any of the writes to a file, in any order, and of what was done to names, folder by folder, the
first so many. A rename is done or not, in both folders at once.

The model follows T. Pillai et al., All File Systems Are Not Created Equal, OSDI 2014.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class _Patch:
    """Bytes put into a file; no bytes set its length."""

    offset: int
    content: bytes | None

    def onto(self, content: bytearray) -> None:
        end = self.offset + len(self.content or b"")
        if self.content is None:
            del content[end:]
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        if self.content is not None:
            content[self.offset : end] = self.content


@dataclass(eq=False)
class _File:
    safe: bytearray = field(default_factory=bytearray)
    loose: list[_Patch] = field(default_factory=list)
    size: int = 0
    """As the program sees it."""

    def sync(self) -> None:
        for patch in self.loose:
            patch.onto(self.safe)
        self.loose.clear()


@dataclass(eq=False)
class _Folder:
    safe: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)
    """As the program sees it."""
    loose: list[_Change] = field(default_factory=list)


_Node: TypeAlias = "_File | _Folder"


@dataclass(eq=False)
class _Change:
    """What was done to names, all of it or none: (folder, name, what bears it then)."""

    names: tuple[tuple[_Folder, str, _Node | None], ...]


Tree: TypeAlias = "dict[str, bytes | None]"
"""Content by path; None for a folder."""


class Disk:
    """What a program does to the files below a folder, and what a power cut leaves of it. Paths are relative to it.

    Args:
        tree: what is there, and safe, when the program starts.
    """

    def __init__(self, tree: Mapping[str, bytes | None] | None = None) -> None:
        self._root = _Folder()
        for path, content in sorted((tree or {}).items()):
            self.make_folder(path) if content is None else self.write(path, 0, content)
        self._settle(self._root)

    def write(self, path: str, offset: int | None, content: bytes) -> None:
        """Put bytes into a file, which is made if it is missing; at its end where no offset is given."""
        file = self._file(path)
        at = file.size if offset is None else offset
        file.loose.append(_Patch(offset=at, content=content))
        file.size = max(file.size, at + len(content))

    def truncate(self, path: str, size: int) -> None:
        """Set a file's length; it is made if it is missing."""
        file = self._file(path)
        file.loose.append(_Patch(offset=size, content=None))
        file.size = size

    def reserve(self, path: str, size: int) -> None:
        """Make a file at least so long."""
        if self._file(path).size < size:
            self.truncate(path, size)

    def read(self, path: str, offset: int, count: int) -> bytes:
        """What the program would read."""
        file = self._file(path)
        content = bytearray(file.safe)
        for patch in file.loose:
            patch.onto(content)
        return bytes(content[offset : offset + count])

    def copy(self, path: str, offset: int, source: str, source_offset: int, count: int) -> None:
        """Put bytes of another file into a file."""
        self.write(path, offset, self.read(source, source_offset, count))

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it."""
        self._folder(path)

    def remove(self, path: str) -> None:
        """Delete a file or a folder."""
        folder, name = self._place(path)
        self._change((folder, name, None))

    def rename(self, old: str, new: str) -> None:
        """Give a file or a folder another name; what bore it is gone."""
        (folder, name), (target, other) = self._place(old), self._place(new)
        node = folder.now[name]
        self._change((folder, name, None), (target, other, node))

    def sync(self, path: str) -> None:
        """``fsync``: of a file its content, of a folder its names."""
        node = self._find(path)
        if isinstance(node, _File):
            node.sync()
        elif node is not None:
            for change in list(node.loose):
                _commit(change)

    def now(self) -> Tree:
        """Everything that was done."""
        copies: dict[_Folder, dict[str, _Node]] = {}

        def names(folder: _Folder) -> dict[str, _Node]:
            return copies.setdefault(folder, dict(folder.now))

        return _tree(self._root, names, lambda file: file.loose)

    def crashed(self, chance: random.Random | None = None) -> Tree:
        """What a power cut leaves: of what was not synced nothing, or what ``chance`` takes."""
        kept: dict[_Folder, dict[str, _Node]] = {}
        done: set[_Change] = set()

        def names(folder: _Folder) -> dict[str, _Node]:
            return kept.setdefault(folder, dict(folder.safe))

        def happened(change: _Change) -> None:
            if change in done:
                return
            done.add(change)
            for folder, _, _ in change.names:
                for earlier in folder.loose[: folder.loose.index(change)]:
                    happened(earlier)
            for folder, name, node in change.names:
                _set(names(folder), name, node)

        if chance is not None:
            for folder in self._all_folders():
                for change in folder.loose[: chance.randint(0, len(folder.loose))]:
                    happened(change)

        def survivors(file: _File) -> Iterable[_Patch]:
            return [] if chance is None else [patch for patch in file.loose if chance.random() < 0.5]

        return _tree(self._root, names, survivors)

    def _change(self, *names: tuple[_Folder, str, _Node | None]) -> None:
        change = _Change(names)
        for folder, name, node in names:
            _set(folder.now, name, node)
            if change not in folder.loose[-1:]:
                folder.loose.append(change)

    def _find(self, path: str) -> _Node | None:
        node: _Node | None = self._root
        for name in Path(path).parts:
            node = node.now.get(name) if isinstance(node, _Folder) else None
        return node

    def _folder(self, path: str) -> _Folder:
        folder = self._root
        for name in Path(path).parts:
            if name not in folder.now:
                self._change((folder, name, _Folder()))
            found = folder.now[name]
            assert isinstance(found, _Folder), f"{path} is a file"
            folder = found
        return folder

    def _place(self, path: str) -> tuple[_Folder, str]:
        return self._folder(str(Path(path).parent)), Path(path).name

    def _file(self, path: str) -> _File:
        folder, name = self._place(path)
        if name not in folder.now:
            self._change((folder, name, _File()))
        found = folder.now[name]
        assert isinstance(found, _File), f"{path} is a folder"
        return found

    def _all_folders(self) -> list[_Folder]:
        found, todo = {self._root: None}, [self._root]
        while todo:
            folder = todo.pop()
            for node in (*folder.now.values(), *folder.safe.values(), *_named(folder.loose)):
                if isinstance(node, _Folder) and node not in found:
                    found[node] = None
                    todo.append(node)
        return list(found)

    def _settle(self, folder: _Folder) -> None:
        folder.safe, folder.loose = dict(folder.now), []
        for node in folder.now.values():
            if isinstance(node, _File):
                node.sync()
            else:
                self._settle(node)


def _named(changes: Iterable[_Change]) -> list[_Node]:
    return [node for change in changes for _, _, node in change.names if node is not None]


def _set(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    names.pop(name, None)
    if node is not None:
        names[name] = node


def _commit(change: _Change) -> None:
    """It is on the disk, and with it whatever was done to the names of its folders before."""
    for folder, _, _ in change.names:
        while change in folder.loose and folder.loose[0] is not change:
            _commit(folder.loose[0])
    for folder, name, node in change.names:
        if change in folder.loose:
            folder.loose.remove(change)
        _set(folder.safe, name, node)


def _tree(
    root: _Folder, names: Callable[[_Folder], dict[str, _Node]], patches: Callable[[_File], Iterable[_Patch]]
) -> Tree:
    found: Tree = {}
    contents: dict[_File, bytes] = {}

    def walk(folder: _Folder, above: str) -> None:
        for name, node in names(folder).items():
            path = f"{above}{name}"
            if isinstance(node, _Folder):
                found[path] = None
                walk(node, f"{path}/")
                continue
            if node not in contents:
                content = bytearray(node.safe)
                for patch in patches(node):
                    patch.onto(content)
                contents[node] = bytes(content)
            found[path] = contents[node]

    walk(root, "")
    return found
