"""Load a `Config` from TOML and the environment, or report every fault at once."""

from __future__ import annotations

import copy
import difflib
import os
import re
import tomllib
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import GenericAlias, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

import attrs
import cattrs
import platformdirs
import tomlkit
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from broker.config import checks, values
from broker.config.sections import Config
from broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from broker.config.checks import Fault

Tables = dict[str, Any]  # section → key → value, as in TOML

PREFIX = "BROKER_"
SEPARATOR = "__"
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # systemd's directory for LoadCredential=, see systemd.exec(5)


def default_data_dir() -> Path:
    """Return the default data directory: the platform's place for the state of a user's programs."""
    with suppress(RuntimeError):  # neither HOME nor the user's passwd entry has one
        path = platformdirs.user_state_path("broker")
        if path.is_absolute():
            return path
    raise ConfigError(
        [f"server.data_dir: user {os.geteuid()} has no home directory; set it, or use --data-dir"]
    )


def unusable(path: Path, error: OSError) -> ConfigError:
    """Return the error for a data directory, or a file in it, that cannot be used, and what to do."""
    reason = f"{error.filename or path}: {error.strerror or error}"
    step = f"set --data-dir or server.data_dir to a directory that user {os.geteuid()} can write to"
    return ConfigError([f"server.data_dir: {reason}; {step}"])


def load(path: Path | None, environ: Mapping[str, str], *, production: bool) -> Config:
    """Return the configuration in the file at `path`, if given, with overrides from `environ`.

    `BROKER_SECTION__KEY` overrides a key; other names that begin with `BROKER_` are ignored, since
    container platforms generate such names for a service called broker. Relative paths in the file are
    relative to the file, those in the environment to the working directory; a path may begin with
    `${CREDENTIALS_DIRECTORY}`, the directory of systemd's `LoadCredential=`. `production` also requires
    what `broker serve` needs. Raises `ConfigError` with every fault.
    """
    return faultless(*examine(path, environ, production=production))


def build(tables: Tables, environ: Mapping[str, str], *, production: bool) -> Config:
    """Return the same from tables instead of a file."""
    return faultless(*compose(tables, environ, base=Path.cwd(), production=production))


def faultless(config: Config, faults: list[str]) -> Config:
    if faults:
        raise ConfigError(faults)
    return config


def examine(path: Path | None, environ: Mapping[str, str], *, production: bool) -> tuple[Config, list[str]]:
    """Return what could be read, and the faults in the rest, so that more can be checked."""
    if path is None:
        return compose({}, environ, base=Path.cwd(), production=production)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return Config(), [f"{path}: cannot be read: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return Config(), [f"{path}: is not TOML: {error}"]
    return compose(tables, environ, base=path.absolute().parent, production=production)


def compose(
    tables: Tables, environ: Mapping[str, str], *, base: Path, production: bool
) -> tuple[Config, list[str]]:
    tables, names, faults = override(tables, environ)
    converter = make_converter(base, environ)
    try:
        config = converter.structure(tables, Config)
    except ClassValidationError as error:
        found = list(read_faults(error, ""))
        faults += found
        # The remaining keys are checked against each other, so that one run shows every fault.
        config = converter.structure(without(tables, {key for key, _ in found}), Config)
    blamed = [key for key, _ in faults]
    faults += [fault for fault in checks.faults(config, production) if not near(fault[0], blamed)]
    return config, [f"{spelled(key, names)}: {sentence}" for key, sentence in faults]


def spelled(key: str, names: Mapping[str, str]) -> str:
    """Return `key` as the operator wrote it: its variable if it came from the environment."""
    whole = key
    while key and key not in names:
        key = key.rpartition(".")[0]
    return names[key] + whole.removeprefix(key) if key else whole


def top(key: str) -> str:
    """Return the section and its key, without deeper parts: `auth.keys` for `auth.keys.0.name`."""
    return ".".join(key.split(".")[:2])


def near(key: str, blamed: list[str]) -> bool:
    """Return whether a fault was already found at or below `key`."""
    return any(other == key or other.startswith(f"{key}.") for other in blamed)


def effective(config: Config) -> str:
    """Return `shown` as TOML."""
    return tomlkit.dumps(shown(config))


def shown(config: Config) -> Tables:
    """Return the configuration for display, without unset keys and without secrets."""
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Path, str)
    tables: Tables = given(converter.unstructure(config))
    for key in tables["auth"]["keys"]:
        if "secret" in key:
            key["secret"] = "(hidden)"
    return tables


def given(value: Any) -> Any:
    """Return tables and lists without unset keys."""
    if isinstance(value, dict):
        return {key: given(each) for key, each in value.items() if each is not None}
    return [given(each) for each in value] if isinstance(value, list | tuple) else value


# --- the environment -------------------------------------------------------------------------------


def override(tables: Tables, environ: Mapping[str, str]) -> tuple[Tables, dict[str, str], list[Fault]]:
    """Return `tables` with the environment's overrides, the variable behind each key, and the faults."""
    known = variables(Config)
    result: Tables = copy.deepcopy(tables)
    names: dict[str, str] = {}
    faults: list[Fault] = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or SEPARATOR not in variable:
            continue
        if variable not in known:
            faults.append((variable, f"unknown key; did you mean {nearest(variable, known)}?"))
            continue
        path, kind = known[variable]
        names[".".join(path)] = variable
        table: Any = result
        for name in path[:-1]:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[path[-1]] = from_text(environ[variable], kind)
    return result, names, faults


def variables(table: type[attrs.AttrsInstance], *above: str) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Map each variable that can set a key to the path and the type of that key."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for field in attrs.fields(table):
        path, kind = (*above, field.name), cast("type[attrs.AttrsInstance]", field.type)
        if attrs.has(kind):
            found |= variables(kind, *path)
        else:
            found[(PREFIX + SEPARATOR.join(path)).upper()] = path, kind
    return found


def from_text(raw: str, kind: Any) -> object:
    """Return the value of an environment variable: as TOML, else as text.

    For a text key everything is text ("007", "true"); a list of texts may also be written "a,b".
    """
    kind = plain(kind)
    try:
        value = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        value = {"value": raw}
    parsed = value["value"] if len(value) == 1 else raw  # after a line break there could be another key
    if kind is Path and isinstance(parsed, str) and not parsed.startswith("${"):
        return str(Path.cwd() / parsed)
    if kind in (str, Path) and not isinstance(parsed, str):
        return raw
    if is_a(tuple, kind) and plain(get_args(kind)[0]) is str and not isinstance(parsed, list):
        return [item.strip() for item in raw.split(",") if item.strip()]
    return parsed


def plain(kind: Any) -> Any:
    """Return a type without `| None` and without annotations."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(option for option in get_args(kind) if option is not type(None))
    return get_args(kind)[0] if is_a(Annotated, kind) else kind


# --- the structure ---------------------------------------------------------------------------------


def make_converter(base: Path, environ: Mapping[str, str]) -> cattrs.Converter:
    """Return a converter that refuses unknown keys and never coerces a value to another type."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    hook = converter.register_structure_hook
    hook(str, lambda value, _: values.text(value))
    hook(bool, lambda value, _: values.boolean(value))
    hook(Path, lambda value, _: file_name(values.text(value), base, environ))
    factory = converter.register_structure_hook_factory
    factory(attrs.has, partial(table_hook, converter))
    factory(partial(is_a, Annotated), lambda kind: partial(annotated, kind.__metadata__[0]))
    factory(partial(is_a, Literal), lambda kind: partial(one_of, get_args(kind)))
    factory(partial(is_a, tuple), partial(list_hook, converter))
    return converter


def file_name(text: str, base: Path, environ: Mapping[str, str]) -> Path:
    """Return a path relative to `base`, or below the credentials directory of the service."""
    if not text.startswith("${"):
        return base / text
    match = re.match(r"\$\{(\w+)\}/", text)
    if match is None or match[1] != CREDENTIALS:
        raise ValueError(
            f"{values.shown(text)}: the only variable in a path is ${{{CREDENTIALS}}}/, at its beginning"
        )
    if not environ.get(CREDENTIALS):
        raise ValueError(
            f"{CREDENTIALS} is not set, as systemd does for a service with LoadCredential=; "
            "to check the file by hand, set it to where the credentials are"
        )
    return Path(environ[CREDENTIALS]) / text[match.end() :]


def is_a(origin: object, kind: Any) -> bool:
    return get_origin(kind) is origin


def table_hook(converter: cattrs.Converter, section: type[attrs.AttrsInstance]) -> Callable[[Any, Any], Any]:
    structure = make_dict_structure_fn(section, converter)

    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{values.shown(value)} is not a table")
        return structure(value, kind)

    return hook


def list_hook(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    items: Any = GenericAlias(list, get_args(kind)[:1])

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"{values.shown(value)} is not a list")
        return tuple(converter.structure(value, items))

    return hook


def annotated(read: Callable[[object], Any], value: Any, _: Any) -> Any:
    return read(value)


def one_of(choices: tuple[str, ...], value: Any, _: Any) -> Any:
    if value not in choices:
        raise ValueError(f"{values.shown(value)} is none of {', '.join(choices)}")
    return value


def read_faults(error: BaseException, key: str) -> Iterator[Fault]:
    """Yield each fault in an exception of cattrs with its key."""
    if isinstance(error, ClassValidationError):
        for inner, note in error.group_exceptions()[0]:
            yield from read_faults(inner, f"{key}.{note.name}".lstrip("."))
        for rest in error.group_exceptions()[1]:
            yield from read_faults(rest, key)
    elif isinstance(error, IterableValidationError):
        for inner, place in error.group_exceptions()[0]:
            yield from read_faults(inner, f"{key}.{place.index}")
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [f"{key}.{field.name}".lstrip(".") for field in attrs.fields(error.cl)]
        for extra in sorted(error.extra_fields):
            name = f"{key}.{extra}".lstrip(".")
            yield name, f"unknown key; did you mean {nearest(name, known)}?"
    else:
        yield key, "is required" if isinstance(error, KeyError) else str(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most similar to `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def without(tables: Tables, keys: set[str]) -> Tables:
    """Return `tables` without the sections, or keys of sections, that contain the faults at `keys`."""
    bad = keys | {top(key) for key in keys}
    return {
        section: {key: value for key, value in table.items() if f"{section}.{key}" not in bad}
        for section, table in tables.items()
        if section not in bad and isinstance(table, dict)
    }
