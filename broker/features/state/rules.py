"""Which channels are documents, and who decides on their changes: section `state` of the configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from broker import subjects
from broker.documents import schemas
from broker.errors import ConfigError, InvalidChannel

if TYPE_CHECKING:
    from pathlib import Path

    from broker import config
    from broker.documents.schemas import Schema


@attrs.frozen(kw_only=True)
class Rule:
    """The documents under a pattern. A service decides on their changes, or else the broker by a schema."""

    pattern: str
    service: bool = False
    schema: Schema | None = None


@attrs.frozen
class Rules:
    """The rules in their order: of two that cover a channel the first counts."""

    rules: tuple[Rule, ...] = ()

    def find(self, channel: str) -> Rule | None:
        """Return the rule of a channel; None where it is no document."""
        return next((rule for rule in self.rules if subjects.covers(rule.pattern, channel)), None)


def read(section: config.State) -> Rules:
    """Return the rules of a configuration, with their schemas. Raise `ConfigError`."""
    rules, faults = [], []
    for index, each in enumerate(section.documents):
        key = f"state.documents.{index}"
        try:
            pattern = subjects.parse_pattern(each.channel)
            if subjects.is_live(pattern):
                raise InvalidChannel(f"{pattern}: live channels are not stored")
        except InvalidChannel as error:
            faults.append(f"{key}.channel: {error.message}")
            continue
        try:
            schema = None if each.schema is None else schemas.parse(load(each.schema))
        except ValueError as error:
            faults.append(f"{key}.schema: {each.schema}: {error}")
            continue
        rules.append(Rule(pattern=pattern, service=each.owner == "service", schema=schema))
    if faults:
        raise ConfigError(faults)
    return Rules(tuple(rules))


def load(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
