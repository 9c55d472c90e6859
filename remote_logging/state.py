"""A spool file's name, which is its state (I2). Pure."""

from __future__ import annotations

import os
import re

_NAME = re.compile(
    r"(?P<generation>\d{8})-(?P<boot>[0-9a-z]+)\."
    r"(?:(?P<unplaced>unplaced(?P<w>-w)?)|replace-(?P<token>[\w%.~-]+)|(?P<remote>\d+)-(?P<file>\d+))"
    r"(?:-in-(?P<label>[\w.-]+))?\.spool"
)


class State:
    """What a spool file's name says; see the docstring of spool.py. Immutable by convention, compared by its text."""

    __slots__ = ("file", "kind", "label", "remote", "token")

    def __init__(self, kind: str, remote: int = 0, file: int = 0, token: str | None = None, label: str | None = None) -> None:
        self.kind, self.remote, self.file, self.token, self.label = kind, remote, file, token, label

    @classmethod
    def unplaced(cls, *, replace: bool = False, label: str | None = None) -> State:
        return cls("unplaced-w" if replace else "unplaced", label=label)

    @classmethod
    def replacing(cls, token: str | None) -> State:
        return cls("replace", token=token)

    @classmethod
    def anchor(cls, remote: int, file: int, label: str | None = None) -> State:
        return cls("anchor", remote, file, label=label)

    def __str__(self) -> str:
        text = self.kind
        if self.kind == "anchor":
            text = f"{self.remote}-{self.file}"
        elif self.kind == "replace":
            from urllib.parse import quote  # only mode "w" comes here, on the shipper's thread

            text = "replace-" + ("none" if self.token is None else "." + quote(self.token, safe=""))
        return text + (f"-in-{self.label}" if self.label else "")

    @classmethod
    def parse(cls, found: re.Match[str]) -> State:
        if found["unplaced"]:
            return cls.unplaced(replace=bool(found["w"]), label=found["label"])
        if found["token"]:
            from urllib.parse import unquote

            return cls.replacing(unquote(found["token"][1:]) if found["token"].startswith(".") else None)
        return cls.anchor(int(found["remote"]), int(found["file"]), found["label"])


class SpoolFile:
    """One generation: its number, the boot it was created in, its state and its path."""

    __slots__ = ("boot", "generation", "path", "state")

    def __init__(self, directory: str, generation: int, boot: str, state: State) -> None:
        self.generation, self.boot, self.state = generation, boot, state
        self.path = os.path.join(directory, f"{generation:08d}-{boot}.{state}.spool")

    @classmethod
    def parse(cls, directory: str, name: str) -> SpoolFile | None:
        """The file of that name; ``None`` if it is none of ours."""
        found = _NAME.fullmatch(name)
        return cls(directory, int(found["generation"]), found["boot"], State.parse(found)) if found else None
