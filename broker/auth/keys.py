"""All keys of a configuration, and which of them has signed a token."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from broker import config, subjects
from broker.auth.jwks import Remote, Timing
from broker.auth.signatures import Signed, VerifyingKey
from broker.auth.sources import entry_faults, read_keys, read_set
from broker.errors import ConfigError, TokenInvalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from broker.metrics.statistics import KeySet

# Called for each step of a verification that passed: its name and what it found.
Passed: TypeAlias = "Callable[[str, str], None]"
# Why a token with a valid signature does not match an entry; None when it does.
Unfit: TypeAlias = "Callable[[config.Key], str | None]"
MAX_TRIES = 16  # keys that are tried for one token


@attrs.frozen
class Local:
    """The keys of an entry that come from the configuration and its files."""

    keys: tuple[VerifyingKey, ...]


@attrs.define(eq=False)
class Keys:
    """All keys of a configuration, in its order.

    The keys of a JWK Set belong to its entry alone, so the same `kid` at two issuers is two keys.
    """

    sources: tuple[Local | Remote, ...]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # of `run`

    @classmethod
    def load(cls, auth: config.Auth, *, timing: Timing | None = None, before: Iterable[Remote] = ()) -> Keys:
        """Read and parse secrets and files. Addresses are fetched later, by `run`.

        Sources in `before` whose entries are unchanged are kept, with the keys that they have. Raises
        `ConfigError` with one sentence for each fault.
        """
        faults: list[str] = []
        sources: list[Local | Remote] = []
        if not auth.keys:
            faults.append("auth.keys: at least one is needed, since otherwise every token is refused")
        for index, entry in enumerate(auth.keys):
            told = list(entry_faults(entry))
            if entry.name in [other.name for other in auth.keys[:index]]:
                told.append(f"name: {entry.name!r} is the name of an earlier key too")
            try:
                if entry.jwks_url is not None:
                    parse = partial(read_set, entry=entry)
                    known = (source for source in before if source.entry == entry)
                    remote = Remote(entry, entry.jwks_url, parse, timing or Timing())
                    sources.append(next(known, remote))
                elif not told:
                    sources.append(Local(read_keys(entry)))
            except ConfigError as error:
                told += error.faults
            faults += [f"auth.keys.{index}.{fault}" for fault in told]
        if faults:
            raise ConfigError(faults)
        return cls(tuple(sources))

    @property
    def remotes(self) -> tuple[Remote, ...]:
        return tuple(source for source in self.sources if isinstance(source, Remote))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the keys from addresses fresh, until `scope` is cancelled. Reports started at once."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                for source in self.remotes:
                    nursery.start_soon(source.run)
                task_status.started()

    def statistics(self) -> dict[str, KeySet]:
        """Return the state of each address that keys come from, by the name of its entry."""
        return {source.entry.name: source.statistics() for source in self.remotes}

    def remarks(self) -> list[str]:
        """Return a line on each address that cannot be fetched.

        Known keys stay valid, so readiness is unaffected.
        """
        return [
            f"key set {name}: cannot be fetched, see jwks_failed in the log; {kept(each)}"
            for name, each in self.statistics().items()
            if each.fault
        ]

    async def signer(self, token: Signed, unfit: Unfit, passed: Passed) -> VerifyingKey:
        """Return the first key that has signed the token and whose entry matches; that entry decides all
        else.

        Waits only for addresses that may have an unknown key. `passed` is called with "key" once a key may
        have signed, and with "signature" when one has. Raises `TokenInvalid`, or `Unavailable` while it is
        unknown whether such an address has the key.
        """
        signers, fresh = self.signers(token), list[Remote]()
        key = fitting(signers, unfit)
        if not key and (lacking := self.lacking(token, signers, unfit)):
            fresh = await asked(lacking)
            signers = self.signers(token)
            key = fitting(signers, unfit)
        if candidates := signers or self.candidates(token):
            passed("key", " or ".join(dict.fromkeys(each.entry.name for each in candidates)))
        if signers:
            passed("signature", "matches")
        if key:
            passed("key", key.entry.name)
            return key
        still = self.lacking(token, signers, unfit)
        waits = [wait for each in still if (wait := each.wait(token.kid, fresh=each in fresh)) is not None]
        if waits:
            raise Unavailable(missing(still, token.kid), retry_after=min(waits))
        unread = [] if candidates else [each for each in self.remotes if lacks(each, token)]
        reasons = dict.fromkeys(unfit(each.entry) or "" for each in signers or unread)
        if reasons and "" not in reasons:
            raise TokenInvalid("; ".join(reasons))
        raise TokenInvalid(self.unsigned(token, candidates))

    def unsigned(self, token: Signed, candidates: list[VerifyingKey]) -> str:
        """Return why no key has signed the token."""
        if len(candidates) > MAX_TRIES:
            return f"kid: {len(candidates)} keys may have signed, and no more than {MAX_TRIES} are tried"
        if candidates:
            return "signature: it does not match"
        algorithm = subjects.shown(token.algorithm)
        if token.algorithm not in self.algorithms():
            return f"alg: no configured key is for {algorithm}"
        return f"kid: no configured key for {algorithm} is called {subjects.shown(token.kid or '')}"

    def algorithms(self) -> set[str]:
        remote = {name for source in self.remotes for name in source.entry.algorithms}
        return remote | {key.algorithm for key in self.known()}

    def lacking(self, token: Signed, signers: list[VerifyingKey], unfit: Unfit) -> list[Remote]:
        """Return the addresses that may meanwhile have a key for the token which they lack here.

        Only those whose entry matches; where the signer is known, only other entries of the same address,
        which may have been fetched at another time.
        """
        urls = {each.entry.jwks_url for each in signers}
        may = [each for each in self.remotes if lacks(each, token) and unfit(each.entry) is None]
        return [each for each in may if not signers or each.url in urls]

    def signers(self, token: Signed) -> list[VerifyingKey]:
        """Return the keys that have signed it, in order."""
        return [key for key in self.candidates(token)[:MAX_TRIES] if key.signed(token)]

    def candidates(self, token: Signed) -> list[VerifyingKey]:
        """Return the keys that may have signed it, those that it names first."""
        may = [
            key
            for key in self.known()
            if key.algorithm == token.algorithm and (None in (token.kid, key.kid) or key.kid == token.kid)
        ]
        return sorted(may, key=lambda key: not key.named(token.kid))

    def known(self) -> Iterator[VerifyingKey]:
        """Yield all present keys."""
        for source in self.sources:
            yield from source.keys

    def sets(self) -> tuple[tuple[VerifyingKey, ...], ...]:
        """Return the present keys of each source. A fetch replaces those of its source as a whole."""
        return tuple(source.keys for source in self.sources)

    def successor(self, signer: object) -> VerifyingKey | None:
        """Return the key here that accepts the same tokens as a key of other `Keys`; None when there is
        none.
        """
        if not isinstance(signer, VerifyingKey):
            return None
        return next((key for key in self.known() if key.identity == signer.identity), None)


def kept(of: KeySet) -> str:
    if of.age is None:
        return "it has no keys, so all tokens of its issuer are refused"
    return f"{of.keys} keys are kept, {of.age:.0f} s old"


def fitting(signers: Iterable[VerifyingKey], unfit: Unfit) -> VerifyingKey | None:
    return next((key for key in signers if unfit(key.entry) is None), None)


def lacks(source: Remote, token: Signed) -> bool:
    """Return whether a fetch from `source` may bring a key for the token that it lacks now."""
    if token.algorithm not in source.entry.algorithms:
        return False
    if token.kid is None:  # issuers that name all their keys name them in tokens
        return not source.keys or any(key.kid is None for key in source.keys)
    return all(key.kid != token.kid for key in source.keys)


def missing(sources: list[Remote], kid: str | None) -> str:
    """Return why it is not known yet whether a token is valid."""
    if down := [each.entry.name for each in sources if each.fault or each.fetching]:
        return f"kid: the keys of {' and '.join(down)} cannot be fetched at the moment"
    names = " and ".join(each.entry.name for each in sources)
    return f"kid: no key of {names} is called {subjects.shown(kid or '')} yet"


async def asked(lacking: list[Remote]) -> list[Remote]:
    """Fetch all of these, and return those that were fetched in time."""
    fresh: list[Remote] = []

    async def ask(source: Remote) -> None:
        if await source.refresh():
            fresh.append(source)

    with trio.move_on_after(max(source.timing.fetch_seconds for source in lacking)):
        async with trio.open_nursery() as nursery:
            for source in lacking:
                nursery.start_soon(ask, source)
    return fresh
