"""The browser client as npm gets it."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from broker.web import site
from broker.web.package import pack, semantic

FILES = {"client.js": b"export {};\n", "client/http.js": b"// @ts-check\n"}


def unpacked(package: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None, member.name
            found[member.name] = file.read()
    return found


def test_a_package_is_the_files() -> None:
    """Under `package/`, as npm expects them, and nothing but them and the manifest."""
    found = unpacked(pack(FILES, name="n", version="1.2.3"))
    manifest = json.loads(found.pop("package/package.json"))
    assert found == {f"package/{path}": data for path, data in FILES.items()}
    assert (manifest["name"], manifest["version"], manifest["type"]) == ("n", "1.2.3", "module")


def test_the_same_files_are_the_same_bytes() -> None:
    """Whatever the time and the order: all brokers of a version have one tag for it."""
    package = pack(FILES, name="n", version="1.2.3")
    assert pack(dict(reversed(FILES.items())), name="n", version="1.2.3") == package
    assert pack(FILES, name="n", version="1.2.4") != package
    assert package[4:8] == bytes(4)  # RFC 1952: no time
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        assert len({(each.mtime, each.uid, each.gid, each.uname, each.mode) for each in archive}) == 1


def test_what_the_manifest_names_is_there() -> None:
    """Each entry of a package of the real files, with its types."""
    found = unpacked(pack(site.library(), name="n", version="1"))
    exports = json.loads(found["package/package.json"])["exports"]
    named = [
        path
        for entry in exports.values()
        for path in (entry.values() if isinstance(entry, dict) else [entry])
    ]
    assert len(named) == 5
    assert all(f"package/{path.removeprefix('./')}" in found for path in named)
    assert not [path for path in found if "demo" in path or not path.endswith((".js", ".d.ts", ".json"))]


@pytest.mark.parametrize(
    ("version", "read"),
    [
        ("0.1.0", "0.1.0"),
        ("2", "2.0.0"),
        ("1.2.3.4", "1.2.3"),
        ("1.2rc1", "1.2.0-rc1"),
        ("1.2.3.dev4+g1a2b", "1.2.3-dev4+g1a2b"),
    ],
)
def test_versions(version: str, read: str) -> None:
    """npm refuses what is not three numbers with what comes before a release, and the build."""
    assert semantic(version) == read
