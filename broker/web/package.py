"""The browser client as a package that npm installs from the broker's address.

It holds exactly the files that the broker serves, under the broker's version, so that the two always fit.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MTIME = 499_162_500  # as npm pack writes it: the same bytes, and tag, on every broker
REACT = ">=18"


def pack(files: Mapping[str, bytes], *, name: str, version: str) -> bytes:
    """Return the tarball of these files, by path (`npm help pack`), with a `package.json` for them."""
    manifest = json.dumps(describe(name, semantic(version)), indent=2).encode() + b"\n"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in sorted({"package.json": manifest, **files}.items()):
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, MTIME
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


def describe(name: str, version: str) -> dict[str, Any]:
    """Return `package.json`: two entries with their types; React is needed for the second one only."""
    return {
        "name": name,
        "version": version,
        "description": "The browser client of the broker, as this broker serves it.",
        "type": "module",
        "main": "./client.js",
        "types": "./client.d.ts",
        "exports": {
            ".": {"types": "./client.d.ts", "default": "./client.js"},
            "./react": {"types": "./react.d.ts", "default": "./react.js"},
            "./package.json": "./package.json",
        },
        "sideEffects": False,
        "peerDependencies": {"react": REACT},
        "peerDependenciesMeta": {"react": {"optional": True}},
    }


def semantic(version: str) -> str:
    """Return a version of Python's (PEP 440) as npm reads it (semver.org): `1.2.dev3` is `1.2.0-dev3`."""
    release, rest = re.fullmatch(r"([\d.]*\d)(.*)", version, re.DOTALL).groups()  # type: ignore[union-attr]
    before, plus, build = rest.lstrip(".").partition("+")
    numbers = ".".join([*release.split("."), "0", "0"][:3])
    return f"{numbers}{before and f'-{before}'}{plus}{build}"
