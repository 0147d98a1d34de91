"""nats-server with the files of config/nats as they are, on free ports, and everybody's logins for it."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import nkeys
import trio

from broker.bus.server import ended, find_binary, spawn
from tests.faults.support.accounts import STORE_LIMITS, UNLIMITED, Operator, Signer, signer
from tests.support.ports import held_ports

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterable

FILES = Path(__file__).parents[2] / "config" / "nats"
USERS = ("broker", "operator", "acme", "globex", "announcer")
TENANTS = ("acme", "globex")  # globex is the copy of acme that accounts.conf describes
START_SECONDS = 60
RESPOND_NANOSECONDS = 120 * 10**9  # what `allow_responses: true` stands for


@attrs.define(eq=False, kw_only=True)
class Passwords:
    """As accounts.conf stands there."""

    directory: Path
    variables: dict[str, str] = attrs.field(factory=dict)

    def prepare(self) -> None:
        for user in USERS:
            self.variables[f"{user.upper()}_PASSWORD"] = f"s-{user}-secret"

    def broker(self) -> dict[str, Any]:
        """The section `nats` of the broker."""
        return {
            "user": "broker",
            "password_file": secret(self.directory / "p", self.variables["BROKER_PASSWORD"]),
        }

    def service(self, user: str) -> dict[str, Any]:
        """What another program gives its NATS client."""
        return {"user": user, "password": self.variables[f"{user.upper()}_PASSWORD"]}


@attrs.define(eq=False, kw_only=True)
class Nkeys(Passwords):
    """As the comment in accounts.conf says."""

    seeds: dict[str, Path] = attrs.field(factory=dict)

    def prepare(self) -> None:
        file = self.directory / "accounts.conf"
        for user in USERS:
            made = signer(nkeys.PREFIX_BYTE_USER)
            self.seeds[user] = secret(self.directory / f"{user}.nk", made.seed.decode())
            self.variables[f"{user.upper()}_NKEY"] = made.public
            words = f"user: {user}, password: ${user.upper()}_PASSWORD"
            replace(file, words, f"nkey: ${user.upper()}_NKEY")

    def broker(self) -> dict[str, Any]:
        return {"nkey_file": self.seeds["broker"]}

    def service(self, user: str) -> dict[str, Any]:
        return {"nkeys_seed": str(self.seeds[user])}


@attrs.define(eq=False, kw_only=True)
class Credentials(Passwords):
    """As operator.conf says, with what `nsc` would have made."""

    operator: Operator = attrs.field(factory=Operator)
    files: dict[str, Path] = attrs.field(factory=dict)

    def prepare(self) -> None:
        replace(self.directory / "nats.conf", '\ninclude "accounts.conf"', '\ninclude "operator.conf"')
        operator, accounts = self.operator, {"broker": self.operator.account}
        accounts |= {user: signer(nkeys.PREFIX_BYTE_ACCOUNT) for user in (*TENANTS, "announcer")}
        tokens: dict[str, Any] = {"broker": {"limits": UNLIMITED, "exports": [], "imports": []}}
        for user in (*TENANTS, "announcer"):
            limits = UNLIMITED | dict.fromkeys(STORE_LIMITS, 0)
            tokens[user] = {"limits": limits, "exports": [], "imports": []}
            tenant = user if user in TENANTS else "_all"
            shared = [("broker", user, f"events.{tenant}.>"), ("broker", user, f"live.{tenant}.>")]
            if user in TENANTS:
                shared.append((user, "broker", f"rpc.{tenant}.>"))
            for exporter, importer, subject in shared:
                service = {"name": subject, "subject": subject, "type": "service"}
                tokens[exporter]["exports"].append(service)
                tokens[importer]["imports"].append(service | {"account": accounts[exporter].public})
        preload = operator.options()["resolver_preload"]
        for user, claims in tokens.items():
            public = accounts[user].public
            preload[public] = operator.key.jwt(public, {"type": "account"} | claims)
        resolver = operator.options() | {"resolver_preload": preload}
        (self.directory / "resolver.conf").write_text(json.dumps(resolver, indent=1)[1:-1])
        accounts["operator"] = operator.account
        for user in USERS:
            self.files[user] = secret(self.directory / f"{user}.creds", self.creds(user, accounts[user]))

    def creds(self, user: str, account: Signer) -> str:
        made = signer(nkeys.PREFIX_BYTE_USER)
        claims: dict[str, Any] = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        if user in (permissions := granted(self.directory / "accounts.conf")):
            publish, subscribe, responds = permissions[user]
            claims |= {"pub": {"allow": publish}, "sub": {"allow": subscribe}}
            if responds:
                claims["resp"] = {"max": 1, "ttl": RESPOND_NANOSECONDS}
        return (
            f"-----BEGIN NATS USER JWT-----\n{account.jwt(made.public, claims)}\n"
            "------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{made.seed.decode()}\n------END USER NKEY SEED------\n"
        )

    def broker(self) -> dict[str, Any]:
        return {"credentials_file": self.files["broker"]}

    def service(self, user: str) -> dict[str, Any]:
        return {"user_credentials": str(self.files[user])}


def granted(file: Path = FILES / "accounts.conf") -> dict[str, tuple[list[str], list[str], bool]]:
    """What an accounts.conf lets each user publish and subscribe to, and whether it may respond.

    Who is not in it may do anything.
    """
    found = {}
    for block in re.split(r"\buser: ", re.sub(r"#.*", "", file.read_text()))[1:]:
        lists = re.findall(r"(?:publish|subscribe): \{ allow: \[(.*?)\]", block, re.DOTALL)
        if lists:
            publish, subscribe = (re.findall(r'"([^"]+)"', each) for each in lists)
            found[block.partition(",")[0]] = (publish, subscribe, "allow_responses: true" in block)
    return found


def copy_files(directory: Path) -> None:
    """A copy of config/nats, with a second tenant, made of the first one as accounts.conf says."""
    shutil.copytree(FILES, directory, dirs_exist_ok=True)
    text = (directory / "accounts.conf").read_text()
    for part in (
        r'^ +\{ service: "\w+\.acme\.>", accounts: \[ACME\] \}\n',
        r"^ +\{ service: \{ account: ACME, .*\n",
        r"^  ACME \{\n[\s\S]*?^  \}\n",
    ):
        text, count = re.subn(part, twice, text, flags=re.MULTILINE)
        assert count, part
    (directory / "accounts.conf").write_text(text)


def twice(found: re.Match[str]) -> str:
    return found[0] + found[0].replace("acme", "globex").replace("ACME", "GLOBEX")


def secret(file: Path, content: str) -> Path:
    file.touch(mode=0o600)
    file.write_text(content)
    return file


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, (file.name, old)
    file.write_text(text.replace(old, new))


@attrs.define(eq=False, kw_only=True)
class Node:
    """One server over a copy of the files. `logins` has prepared them."""

    directory: Path
    file: str
    variables: dict[str, str]
    process: subprocess.Popen[bytes] = attrs.field(init=False)
    address: str = ""

    def adapt(self) -> None:
        """Everything that a machine has once gets a place of this node's own."""
        replace(self.directory / self.file, 'http: "127.0.0.1:8222"', 'http: "127.0.0.1:-1"')
        store = json.dumps(str(self.directory / "store"))
        replace(self.directory / self.file, '"/var/lib/nats"', store)
        text = (self.directory / self.file).read_text()
        (self.directory / self.file).write_text(f"ports_file_dir: {json.dumps(str(self.directory))}\n{text}")

    async def start(self) -> None:
        log = self.directory / "nats.log"
        command = [find_binary(), "-c", str(self.directory / self.file), "-l", str(log)]
        self.process = spawn(command, env=os.environ | self.variables)
        with trio.fail_after(START_SECONDS):
            while not (ports := list(self.directory.glob("*.ports"))) or ports[0].read_text()[-1:] != "}":
                assert self.process.poll() is None, log.read_text()
                await trio.sleep(0.02)
        self.address = json.loads(ports[0].read_text())["nats"][0].removeprefix("nats://")

    async def kill(self) -> None:
        self.process.kill()
        with trio.CancelScope(shield=True):
            await ended(self.process)


@asynccontextmanager
async def single(logins: Passwords) -> AsyncIterator[Node]:
    """nats.conf."""
    copy_files(logins.directory)
    logins.prepare()
    node = Node(directory=logins.directory, file="nats.conf", variables=logins.variables)
    node.adapt()
    replace(node.directory / node.file, '"127.0.0.1:4222"', '"127.0.0.1:-1"')
    try:
        await node.start()
        yield node
    finally:
        await node.kill()


@asynccontextmanager
async def cluster(logins: Passwords) -> AsyncIterator[list[Node]]:
    """cluster.conf on three nodes."""
    logins.prepare()
    shared = {"NATS_CLUSTER_PASSWORD": "c-secret", "NATS_LISTEN": "127.0.0.1:-1"}
    with held_ports(3) as ports:
        for number, port in enumerate(ports, 1):
            shared[f"NATS_ROUTE_{number}"] = f"nats-route://node:c-secret@127.0.0.1:{port}"
        nodes = []
        for number, port in enumerate(ports, 1):
            own = {"NATS_NAME": f"nats-{number}", "NATS_CLUSTER_LISTEN": f"127.0.0.1:{port}"}
            directory = logins.directory / f"node{number}"
            copy_files(directory)
            node = Node(directory=directory, file="cluster.conf", variables=logins.variables | shared | own)
            node.adapt()
            nodes.append(node)
        try:
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(node.start)
            yield nodes
        finally:
            await kill_all(nodes)


async def kill_all(nodes: Iterable[Node]) -> None:
    for node in nodes:
        await node.kill()
