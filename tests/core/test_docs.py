"""The pages of the documentation: they are whole, and the tables of the protocol are the broker's."""

from __future__ import annotations

import re
from typing import Any, get_args

import attrs
import msgspec
import pytest
from msgspec import UNSET

from broker import config, docs, errors
from broker.http.refusals import STATUS
from broker.links.poll.messages import Polled
from broker.web.asyncapi import SERVER_MESSAGES, error_codes
from broker.wire import messages as m
from tests.support.requests import TABLE

CODE = re.compile(r"`([^`]+)`")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table of the protocol page after a heading."""
    _, found, rest = docs.page("protocol").text.partition(f"# {heading}\n")
    assert found, heading
    lines = re.search(r"^\|.*\n\|---.*\n((?:\|.*\n)+)", rest, re.MULTILINE)
    assert lines, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1].splitlines()]


def by_code(heading: str) -> dict[str, list[str]]:
    """The rows of a table by the code in their first cell."""
    return {name.strip("`"): cells for name, *cells in table(heading)}


def payload(kind: type[Any]) -> set[str]:
    """The fields of a message as the page writes them: a `?` follows one that may be absent."""
    return {
        each.encode_name + ("" if each.required else "?")
        for each in msgspec.structs.fields(kind)
        if each.required or each.default in (None, UNSET)
    }


def written(cell: str) -> set[str]:
    return set(filter(None, cell.strip("`{}").split(", ")))


def test_the_pages_are_the_files() -> None:
    """Each file is listed, and each listed page has a title and a sentence that fits on a line."""
    assert sorted(docs.NAMES) == sorted(path.stem for path in docs.DIRECTORY.glob("*.md"))
    for page in docs.pages():
        assert page.text.startswith(f"# {page.title}\n\n{page.summary}\n")
        assert re.fullmatch(r"[^\n]{20,110}\.", page.summary), page.name
        assert "```mermaid" not in page.text


@pytest.mark.parametrize(
    ("given", "near"),
    [("oper", ["operate"]), ("Tokens", ["tokens"]), ("protokol", ["protocol"]), ("", []), ("zzz", [])],
)
def test_nearest(given: str, near: list[str]) -> None:
    assert docs.nearest(given) == near


def test_messages_of_clients() -> None:
    """Each with its fields, and what may answer it."""
    rows = by_code("Messages of clients")
    assert rows.keys() == m.CLIENT_MESSAGES.keys()
    for name, (fields, reply) in rows.items():
        assert written(fields) == payload(m.CLIENT_MESSAGES[name]), name
        mentioned = set(CODE.findall(reply)) & SERVER_MESSAGES.keys()
        assert mentioned >= {each.type for each in TABLE[name].replies}, name


def test_messages_of_the_broker() -> None:
    """Each with its fields."""
    rows = by_code("Messages of the broker")
    assert rows.keys() == SERVER_MESSAGES.keys()
    for name, (fields, _) in rows.items():
        assert written(fields) == payload(SERVER_MESSAGES[name]), name


def test_forms_over_http() -> None:
    """The answer to a poll, and what is answered to a single request, in the same words."""
    text = " ".join(docs.page("protocol").text.split())
    (polled,) = re.findall(r"The answer is `\{([^}]*)\}`", text)
    fields = attrs.fields(Polled)
    assert written(polled) == {each.name + ("?" if each.default is UNSET else "") for each in fields}
    for request in TABLE.values():
        if (page := request.page) and page.query is not None:
            pattern = (
                rf"`GET {page.path}\?channel=[^`]*`(?: with ([^:]*))?: {page.status} with `\{{([^}}]*)\}}`"
            )
            ((asked, answered),) = re.findall(pattern, text)
            assert tuple(CODE.findall(asked)) == page.query
            assert written(answered) == payload(page.reply or request.replies[0])
        elif page:
            pattern = rf"`POST {page.path}` with `\{{([^}}]*)\}}`: {page.status} with `\{{([^}}]*)\}}`"
            ((asked, answered),) = re.findall(pattern, text)
            assert written(asked) == payload(request.message) - {f"{name}?" for name in page.without}
            assert {each.strip("?") for each in written(answered)} <= set(
                request.replies[0].__struct_fields__
            )


def test_statuses() -> None:
    """Each HTTP status of an error."""
    text = " ".join(docs.page("protocol").text.split())
    _, _, rest = text.partition("with the protocol's `code` and `retry_after_ms`: ")
    assert set(re.findall(r"\b[45]\d\d\b", rest.partition(". ")[0])) == set(map(str, STATUS.values()))


def test_words() -> None:
    """The reasons of a gap, the lag policies, the starts."""
    _, _, rest = docs.page("protocol").text.partition("| `gap.reason` | meaning |\n|---|---|\n")
    reasons = re.findall(r"^\| `(\w+)` \|", rest.partition("\n\n")[0], re.MULTILINE)
    assert sorted(reasons) == sorted(get_args(m.GapReason))
    assert by_code("Slow clients").keys() == set(get_args(m.Lag))
    assert by_code("Starts").keys() == set(m.Subscribe.__struct_fields__) - {
        "channel",
        "lag",
        "filter",
        "every_ms",
    }


def test_close_codes() -> None:
    assert {int(code): meaning for code, meaning in table("Close codes")} == {
        int(each): each.meaning for each in errors.CloseCode
    }


def test_error_codes() -> None:
    """Each with its meaning, whether a retry may succeed, and the close code."""
    kinds = errors.by_code()
    assert by_code("Error codes") == {
        code: [
            meaning,
            "yes" if kinds[code].retryable else "no",
            "" if (close := kinds[code].close_code) is None else str(int(close)),
        ]
        for code, meaning in error_codes().items()
    }


def test_limits() -> None:
    """Each key of the section that is not a table, with its default; and what is said of the stream."""
    shown = {name: float(default) for name, (default, _) in by_code("Limits").items()}
    assert shown == {
        each.name: each.default
        for each in attrs.fields(config.Limits)
        if isinstance(each.default, int | float)
    }
    _, _, rest = docs.page("protocol").text.partition("Events are kept as section `stream` says:")
    stream = re.findall(r"^\| `(\w+)` \| (\S+) \|", rest.partition("\n## ")[0], re.MULTILINE)
    assert {"max_age", "max_bytes", "duplicate_window"} <= {name for name, _ in stream}
    defaults = attrs.fields_dict(config.Stream)
    for name, default in stream:
        expected = defaults[name].default
        assert default == ("none" if expected is None else f"{expected:.0f}"), name
