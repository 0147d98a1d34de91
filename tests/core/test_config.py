from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import (
    Allowance,
    Config,
    Documents,
    Key,
    Nats,
    Stream,
    TenantAllowance,
    build,
    checks,
    default_data_dir,
    effective,
    examine,
    host_port,
    load,
    seconds,
    values,
)
from broker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.config.load import Tables

EXAMPLE = Path(__file__).parents[2] / "config" / "broker.toml"


def faults(
    tables: Tables, environ: Mapping[str, str] | None = None, *, production: bool = False
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(tables, environ or {}, production=production)
    return caught.value.faults


def every_key() -> list[tuple[str, attrs.Attribute[Any]]]:
    return [
        (section.name, field)
        for section in attrs.fields(Config)
        for field in attrs.fields(cast("type[attrs.AttrsInstance]", section.type))
    ]


def test_nothing_said_is_the_defaults() -> None:
    """Without a file and an environment every key has its default."""
    assert load(None, {}, production=False) == Config()


@pytest.mark.parametrize(("section", "field"), every_key(), ids=lambda part: getattr(part, "name", part))
def test_the_example_has_every_key_with_its_default(section: str, field: attrs.Attribute[Any]) -> None:
    """config/broker.toml shows each key in its section: set to the default, or as a comment when unset."""
    table = re.split(r"^\[(\w+)\]$", EXAMPLE.read_text(), flags=re.MULTILINE)
    lines = dict(zip(table[1::2], table[2::2], strict=True))[section]
    config, _ = examine(EXAMPLE, {}, production=False)
    assert getattr(getattr(config, section), field.name) == field.default
    entries = {
        ("auth", "keys"): Key,
        ("limits", "tenants"): TenantAllowance,
        ("state", "documents"): Documents,
    }
    if (section, field.name) in entries:
        for key in attrs.fields(entries[section, field.name]):
            # A tenant's keys are those of all tenants, which are shown above it.
            assert re.search(rf"^# {key.name} = ", lines, re.MULTILINE), key.name
    elif isinstance(field.default, Allowance):
        _, shown = re.split(rf"^\[{section}\.{field.name}\]$", lines, flags=re.MULTILINE)
        shown = re.split(r"^(?:# )?\[", shown, flags=re.MULTILINE)[0]
        for key in attrs.fields(Allowance):
            said = (field.name, key.name) not in checks.ELSEWHERE
            assert bool(re.search(rf"^# {key.name} = ", shown, re.MULTILINE)) == said, key.name
    else:
        comment = "# " if field.default is None else ""
        assert re.search(rf"^{comment}{field.name} = ", lines, re.MULTILINE)


def test_the_example_lacks_only_what_no_default_could_be() -> None:
    """As it stands the example is good for production but for the size of the stream and a key."""
    with pytest.raises(ConfigError) as caught:
        load(EXAMPLE, {}, production=True)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["stream.max_bytes", "auth.keys"]


def test_every_fault_is_told_at_once_with_its_key_first() -> None:
    """One run names faults of types, ranges, spelling, lists, tables, the environment and between keys."""
    found = faults(
        {
            "limits": {"connexions": 3, "connections": True, "heartbeat_seconds": 0},
            "stream": {"max_age": "7x", "name": "a.b"},
            "server": {
                "origins": ["*", "https://a.example"],
                "query_token": "yes",
                "tls_key": "/nonexistent",
            },
            "permissions": {"subscribe": ">"},
            "ring": 5,
            "loggs": {},
            "auth": {"keys": [{"nam": "x"}]},
            "log": {"level": "warn"},
        },
        {"BROKER_LIMITS__HEAD_BYTES": "1x"},
        production=True,
    )
    assert sorted(found) == [
        "BROKER_LIMITS__HEAD_BYTES: '1x' is not a size; write bytes or text such as \"64MiB\"",
        "auth.keys.0.nam: unknown key; did you mean auth.keys.0.name?",
        "auth.keys.0.name: is required",
        "limits.connections: true is not a whole number",
        "limits.connexions: unknown key; did you mean limits.connections?",
        "limits.heartbeat_seconds: must be above 0",
        "log.level: 'warn' is none of debug, info, warning, error",
        "loggs: unknown key; did you mean log?",
        "permissions.subscribe: '>' is not a list",
        "ring: 5 is not a table",
        "server.origins.0: '*' is not scheme://host[:port], in lower case and without a path",
        "server.query_token: 'yes' is neither true nor false",
        "server.tls_certificate: is required beside server.tls_key",
        "server.tls_key: /nonexistent cannot be read: No such file or directory",
        'stream.max_age: \'7x\' is not a duration; write seconds or text such as "10m" or "7d"',
        'stream.max_bytes: is required by `broker serve`: the disk space for events, such as "10GiB"',
        "stream.name: 'a.b' is not a stream name: no white space and none of . * > / \\",
    ]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (1, 1.0),
        (0.25, 0.25),
        ("90s", 90),
        ("10m", 600),
        ("7d", 604800),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("250ms", 0.25),
    ],
)
def test_durations(text: object, length: float) -> None:
    """Seconds as a number, or as text with units that add up."""
    assert seconds(text) == length


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-1s", "1 h", "10x", "१०s", True, None, [], 0, "0s", -1, "1e9d", float("nan")]
)
def test_no_durations(text: object) -> None:
    """What is not a duration above 0 is refused, also what would only look like one."""
    with pytest.raises(ValueError, match=r"."):
        seconds(text)


@given(st.integers(1, 2**40), st.sampled_from(["KiB", "MiB"]))
def test_sizes(count: int, unit: str) -> None:
    """A size in units is that many bytes."""
    assert values.size(f"{count}{unit}") == count * {"KiB": 2**10, "MiB": 2**20}[unit]


@pytest.mark.parametrize("size", ["64MB", "1.5MiB", "MiB", "-1KiB", 0, -5, 1.0, True, "9999999TiB"])
def test_no_sizes(size: object) -> None:
    """Ambiguous units, fractions, and what does not fit into 63 bits are refused."""
    with pytest.raises(ValueError, match=r"."):
        values.size(size)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("broker.example:443", ("broker.example", 443)),
    ],
)
def test_addresses_to_listen_on(text: str, address: tuple[str, int]) -> None:
    """HOST:PORT, an IPv6 address in brackets."""
    assert host_port(text) == address


@pytest.mark.parametrize(
    "text", ["8080", ":8080", "::1:80", "a:", "a:65536", "a:b", "http://a:80", "a b:1", "a:٣", 80]
)
def test_no_addresses_to_listen_on(text: object) -> None:
    """Anything else is refused rather than guessed at."""
    with pytest.raises(ValueError, match=r"."):
        host_port(text)


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost"],
)
def test_origins(origin: str) -> None:
    """What browsers and app shells send as Origin."""
    assert build({"server": {"origins": [origin]}}, {}, production=False).server.origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example.com",
        "https://*.example.com",
        "https://a.example/",
        "https://A.example",
        "https://a:443",
    ],
)
def test_origins_that_could_never_match(origin: str) -> None:
    """Wildcards, paths, capitals and a scheme's own port never equal what a browser sends."""
    assert faults({"server": {"origins": [origin]}})[0].startswith("server.origins.0: ")


def test_networks() -> None:
    """Networks of both families and single addresses, from the environment too; each wrong one is named."""
    given = {"trusted_proxies": ["10.0.0.0/8", "fd00::/8", "192.0.2.7"]}
    trusted = build({"server": given}, {}, production=False).server.trusted_proxies
    assert trusted == ("10.0.0.0/8", "fd00::/8", "192.0.2.7/32")
    environ = {"BROKER_SERVER__TRUSTED_PROXIES": "10.0.0.0/8,::1"}
    assert build({}, environ, production=False).server.trusted_proxies == ("10.0.0.0/8", "::1/128")
    wrong = ["10.0.0.1/8", "all", "10.0.0.0/33", 10, "::ffff:10.0.0.0/104", "fe80::1%eth0"]
    found = faults({"server": {"trusted_proxies": wrong}})
    assert [fault.partition(":")[0] for fault in found] == [f"server.trusted_proxies.{n}" for n in range(6)]


def test_tracing() -> None:
    """An address without credentials and a share of one; anything else is named."""
    good = {"endpoint": "https://otel.example/v1/traces", "sample_ratio": 0}
    assert build({"tracing": good}, {}, production=False).tracing.sample_ratio == 0.0
    for url in ("otel:4318", "ftp://a", "http://", "http://a:x", "http://a/#b", "http://u:secret@a"):
        (fault,) = faults({"tracing": {"endpoint": url}})
        assert fault.startswith("tracing.endpoint: ")
        assert "secret" not in fault
    for share in (-0.1, 1.1, True, "1"):
        assert faults({"tracing": {"sample_ratio": share}})[0].startswith("tracing.sample_ratio: ")


def test_proxy_protocol_without_proxies() -> None:
    """A header that nobody is trusted to send is a mistake."""
    assert faults({"server": {"proxy_protocol": True}})[0].startswith("server.trusted_proxies: is required")


@pytest.mark.parametrize(
    "url", ["http://a", "nats://", "a:4222", "nats://a/b", "nats://a:0", "nats://a:x", "ws://a"]
)
def test_addresses_that_are_not_nats(url: str) -> None:
    """Other schemes, and addresses with parts that NATS has no use for."""
    assert faults({"nats": {"urls": [url]}})[0].startswith("nats.urls.0: ")


@pytest.mark.parametrize("host", ["a,b", "a b", "a\0", "a..b", "a" * 64 + ".org"])
def test_a_host_that_no_resolver_can_be_asked_for(host: str) -> None:
    """As a list of addresses in one text: it would be out of reach for ever, and nobody would see why."""
    wrong = {"nats": {"urls": [f"nats://{host}"]}, "tracing": {"endpoint": f"http://{host}/v1"}}
    found = faults(wrong)
    assert [each.partition(":")[0] for each in found] == ["nats.urls.0", "tracing.endpoint"]


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    """A password belongs into a file; the sentence that says so does not print it."""
    (fault,) = faults({"nats": {"urls": ["nats://me:hunter2@nats.example"]}})
    assert "nats.password_file" in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize("prefix", ["a.b", "*", ">", "$JS", "_INBOX", "a b", "ä", ""])
def test_prefixes_are_one_ordinary_token(prefix: str) -> None:
    """A prefix with a dot, a wildcard, white space, or one of NATS's own is refused."""
    assert faults({"subjects": {"events": prefix}})[0].startswith("subjects.events: ")


def test_the_audit_trail_has_names_of_its_own() -> None:
    """Under another kind's prefix, or in another stream, records would mix with events."""
    assert faults({"audit": {"prefix": "live"}})[0].startswith("audit.prefix: ")
    assert faults({"audit": {"name": "DEADLETTER"}})[0].startswith("audit.name: ")


def test_prefixes_are_distinct() -> None:
    """Two kinds of subject under one prefix could not be told apart; both keys are named."""
    found = faults({"subjects": {"events": "e", "live": "e"}})
    assert [fault.partition(":")[0] for fault in found] == ["subjects.events", "subjects.live"]


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"server": {"listen": "127.0.0.1:80", "admin_listen": "127.0.0.1:80"}}, "server.admin_listen"),
        ({"nats": {"urls": ["nats://a"], "user": "u"}}, "nats.password_file"),
        ({"nats": {"jetstream_domain": "hub"}}, "nats.urls"),
        ({"stream": {"replicas": 3}}, "nats.urls"),
        ({"stream": {"deadletter_name": "EVENTS"}}, "stream.deadletter_name"),
        ({"stream": {"max_age": "1m"}}, "stream.duplicate_window"),
        ({"limits": {"message_bytes": 100}}, "limits.publish_bytes"),
        ({"limits": {"event_bytes": 100}}, "limits.publish_bytes"),
        ({"limits": {"head_bytes": 4096}}, "limits.token_bytes"),
        ({"limits": {"snapshot_memory_bytes": "31MiB"}}, "limits.snapshot_memory_bytes"),
        ({"limits": {"connections": 5}}, "limits.connections_per_user"),
        ({"limits": {"connection": {"connections": 1}}}, "limits.connection.connections"),
        ({"limits": {"user": {"connections": 0}}}, "limits.user.connections"),
        ({"limits": {"process": {"connections": 1}}}, "limits.process.connections"),
        ({"limits": {"tenants": [{"name": "a"}, {"name": "a"}]}}, "limits.tenants.1.name"),
        ({"ring": {"total_bytes": 1024}}, "ring.bytes"),
    ],
)
def test_keys_that_contradict_each_other(tables: Tables, key: str) -> None:
    """Each pair of keys that cannot both be meant is one fault, at the key to change."""
    (fault,) = faults(tables)
    assert fault.startswith(f"{key}: ")


@pytest.mark.parametrize("tables", [{"limits": {"a.b": 1}}, {"a.b": {}}, {"limits": {"": 1}}])
def test_keys_that_no_section_could_have(tables: Tables) -> None:
    """Quoted keys with dots or nothing in them are unknown keys like others."""
    (fault,) = faults(tables)
    assert "unknown key" in fault


def test_what_follows_from_a_fault_is_not_told_beside_it() -> None:
    """A key that could not be read is not also reported as missing."""
    found = faults({"stream": {"max_bytes": "much"}, "auth": {"keys": [{"name": 7}]}}, production=True)
    assert [fault.partition(":")[0] for fault in found] == ["stream.max_bytes", "auth.keys.0.name"]


def test_one_way_to_log_in(tmp_path: Path) -> None:
    """NATS credentials of two kinds are refused: nobody could say which holds."""
    for name in ("password", "creds"):
        (tmp_path / name).touch(mode=0o600)
    paths = {"password_file": str(tmp_path / "password"), "credentials_file": str(tmp_path / "creds")}
    (fault,) = faults({"nats": {"urls": ["nats://a"], "user": "u", **paths}})
    assert fault.startswith("nats.credentials_file: is set beside nats.user")


@pytest.mark.parametrize(("mode", "accepted"), [(0o600, True), (0o640, True), (0o604, False), (0o602, False)])
def test_secrets_that_everybody_could_read_are_refused(tmp_path: Path, mode: int, accepted: bool) -> None:
    """A secret file may be open to its owner and group, as Kubernetes leaves it, to nobody else."""
    seed = tmp_path / "seed"
    seed.touch()
    seed.chmod(mode)
    tables: Tables = {"nats": {"urls": ["nats://a"], "nkey_file": str(seed)}}
    if accepted:
        assert build(tables, {}, production=False).nats.nkey_file == seed
    else:
        (fault,) = faults(tables)
        assert fault.startswith("nats.nkey_file: ")
        assert f"mode {mode:03o}" in fault


def test_paths_are_relative_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in the file is relative to the file, one in the environment to the working directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "broker.toml").write_text(
        '[server]\ndata_dir = "state"\n[nats]\ntls_ca = "ca.pem"\nurls = ["tls://a"]'
    )
    (tmp_path / "etc" / "ca.pem").touch()
    monkeypatch.chdir(tmp_path)
    path = Path("etc/broker.toml")
    config = load(path, {}, production=False)
    assert config.server.data_dir == tmp_path / "etc" / "state"
    assert config.nats.tls_ca == tmp_path / "etc" / "ca.pem"
    config = load(path, {"BROKER_SERVER__DATA_DIR": "state"}, production=False)
    assert config.server.data_dir == tmp_path / "state"


def test_the_environment_wins_and_is_read_as_toml_or_text() -> None:
    """Numbers, booleans, durations, text that looks like a number, lists with commas, arrays of tables."""
    config = build(
        {"limits": {"connections": 7}, "server": {"origins": ["https://old.example"]}},
        {
            "BROKER_LIMITS__CONNECTIONS": "20_000",
            "BROKER_LIMITS__STALL_SECONDS": "1h30m",
            "BROKER_STREAM__MAX_BYTES": "10GiB",
            "BROKER_STREAM__NAME": "007",
            "BROKER_SERVER__QUERY_TOKEN": "true",
            "BROKER_SERVER__ORIGINS": "https://a.example, https://b.example",
            "BROKER_NATS__URLS": '["nats://a", "nats://b"]',
            "BROKER_NATS__JETSTREAM_DOMAIN": "true",
            "BROKER_PERMISSIONS__PUBLISH": "",
            "BROKER_LOG__LEVEL": "debug",
            "BROKER_AUTH__KEYS": '[{name = "main", secret = "s3cret", tenants = ["*"]}]',
            "BROKER_SERVICE_HOST": "10.0.0.1",
        },
        production=False,
    )
    assert config.limits.connections == 20_000
    assert config.limits.connections_per_user == 10
    assert config.limits.stall_seconds == 5400
    assert config.stream == Stream(max_bytes=10 * 2**30, name="007")
    assert config.server.query_token is True
    assert config.server.origins == ("https://a.example", "https://b.example")
    assert config.nats == Nats(urls=("nats://a", "nats://b"), jetstream_domain="true")
    assert config.permissions.publish == ()
    assert config.log.level == "debug"
    assert config.auth.keys == (Key(name="main", secret="s3cret", tenants=("*",)),)


@pytest.mark.parametrize("rate", [1e-320, 1e-300, 0.0009])
def test_no_rate_is_slower_than_a_wait_can_be_told(rate: float) -> None:
    """A wait of 10^300 s would fit into no `retry_after_ms`; the slowest rate that there is does."""
    given = {"limits": {"user": {"messages_per_second": rate}}}
    assert faults(given) == [f"limits.user.messages_per_second: {rate} is below 0.001, once in 1000 s"]


def test_the_environment_reaches_tables_within_sections() -> None:
    """A key of a table within a section has a variable too, which wins; its faults name the variable."""
    config = build(
        {"limits": {"tenant": {"connections": 5, "subscriptions": 7}}},
        {
            "BROKER_LIMITS__TENANT__CONNECTIONS": "50",
            "BROKER_LIMITS__USER__BYTES_PER_SECOND": "1KiB",
            "BROKER_LIMITS__TENANTS": '[{name = "acme", connections = 0}]',
        },
        production=False,
    )
    assert config.limits.tenant == Allowance(connections=50, subscriptions=7)
    assert config.limits.user == Allowance(bytes_per_second=1024)
    assert config.limits.tenants == (TenantAllowance(name="acme", connections=0),)
    tables: Tables = {"limits": {"address": 5}}
    environ = {
        "BROKER_LIMITS__ADDRESS__CONNECTIONS": "5",
        "BROKER_LIMITS__USER__CONNECTIONS": "5",
        "BROKER_LIMITS__TENANT__CONNECTIONS": "-1",
        "BROKER_LIMITS__TENANT__CONECTIONS": "1",
    }
    assert [fault.partition(":")[0] for fault in faults(tables, environ)] == [
        "BROKER_LIMITS__TENANT__CONECTIONS",
        "BROKER_LIMITS__TENANT__CONNECTIONS",
        "limits.address",
        "BROKER_LIMITS__USER__CONNECTIONS",
    ]


def test_a_line_break_in_a_variable_begins_no_other_key() -> None:
    """A value that would be several lines of TOML is text, and refused where text is no value."""
    (fault,) = faults({}, {"BROKER_LIMITS__CONNECTIONS": "5\nother = 6"})
    assert fault.startswith("BROKER_LIMITS__CONNECTIONS: ")


def test_unknown_variables_name_the_nearest() -> None:
    """A misspelt variable is an error, not a setting that silently does nothing."""
    assert faults({}, {"BROKER_LIMIT__CONECTIONS": "5"}) == [
        "BROKER_LIMIT__CONECTIONS: unknown key; did you mean BROKER_LIMITS__CONNECTIONS?"
    ]


def test_a_fault_inside_a_list_from_the_environment_names_the_variable() -> None:
    """The operator looks where the value stands: in the environment, not in the file."""
    assert faults({}, {"BROKER_SERVER__ORIGINS": "*"})[0].startswith("BROKER_SERVER__ORIGINS.0: ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), (b"[limits\n", "is not TOML"), (b"a = '\xff'", "is not TOML")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """A missing file, broken TOML and broken UTF-8 are faults that name the file."""
    path = tmp_path / "broker.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, production=False)
    assert caught.value.faults[0].startswith(f"{path}: {sentence}")


def test_the_effective_configuration_can_be_loaded_again_and_tells_no_secret(tmp_path: Path) -> None:
    """What `effective` prints is the same configuration in TOML, but for secrets."""
    config = build(
        {
            "stream": {"max_bytes": "1GiB"},
            "server": {"data_dir": "/var/lib/broker"},
            "limits": {"user": {"subscriptions": 3}, "tenants": [{"name": "acme", "connections": 0}]},
        },
        {"BROKER_AUTH__KEYS": '[{name = "main", secret = "s3cret"}, {name = "pem", pem_file = "/k.pem"}]'},
        production=True,
    )
    printed = effective(config)
    assert "s3cret" not in printed
    assert "s3cret" not in repr(config)
    (tmp_path / "again.toml").write_text(printed.replace("(hidden)", "s3cret"))
    assert load(tmp_path / "again.toml", {}, production=True) == config
    assert tomllib.loads(printed)["limits"]["connections"] == 10000


def test_credentials_of_systemd(tmp_path: Path) -> None:
    """A path below ${CREDENTIALS_DIRECTORY} is one there, from a file and from the environment."""
    (tmp_path / "signing").touch(mode=0o400)
    name = "${CREDENTIALS_DIRECTORY}/signing"
    nats = {"user": "broker", "urls": ["nats://h"]}
    tables: Tables = {"auth": {"keys": [{"name": "main", "secret_file": name}]}, "nats": nats}
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_NATS__PASSWORD_FILE": name}
    found = build(tables, environ, production=False)
    assert (found.auth.keys[0].secret_file, found.nats.password_file) == (tmp_path / "signing",) * 2


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("${CREDENTIALS_DIRECTORY}/a", "CREDENTIALS_DIRECTORY is not set"),
        ("${HOME}/a", "the only variable in a path is ${CREDENTIALS_DIRECTORY}/"),
        ("${CREDENTIALS_DIRECTORY}a", "the only variable in a path is ${CREDENTIALS_DIRECTORY}/"),
    ],
)
def test_no_credentials(path: str, sentence: str) -> None:
    """Without them, and for other variables, it is said what is missing."""
    [found] = faults({"server": {"data_dir": path}})
    assert found.startswith("server.data_dir: ")
    assert sentence in found


def test_client_certificates_belong_to_tls(tmp_path: Path) -> None:
    """They are asked for over TLS, and verified against somebody."""
    (tmp_path / "ca.pem").touch()
    (fault,) = faults({"server": {"tls_client_ca": str(tmp_path / "ca.pem")}})
    assert fault.startswith("server.tls_certificate: is required")
    (fault,) = faults({"server": {"tls_client_required": True}})
    assert fault.startswith("server.tls_client_ca: is required")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made in a directory called "~": it is said what is missing."""

    def unknown(user: int) -> NoReturn:
        raise KeyError(user)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(ConfigError, match=r"server\.data_dir: user \d+ has no home directory; .*--data-dir"):
        default_data_dir()
