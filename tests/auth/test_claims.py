"""What a believed token says: its user, its tenant and what it may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import config, subjects
from broker.auth.tokens import fill
from broker.errors import BrokerError, ConfigError, Forbidden, InvalidChannel, TenantForbidden, TokenInvalid
from tests.auth.forge import KEY, NOW, claims, forge, verifier

if TYPE_CHECKING:
    from broker.permissions import Principal

ALL = attrs.evolve(KEY, tenants=("*",), monitoring=True)


async def principal(
    *keys: config.Key, wanted: str | None = None, how: dict[str, Any] | None = None, **changes: Any
) -> Principal:
    """The principal of good claims with `changes`, `wanted` being the tenant that the client asks for."""
    return await verifier(*keys, **(how or {})).verify(forge(claims(**changes)), now=NOW, tenant=wanted)


async def refusal(error: type[BrokerError], *keys: config.Key, **changes: Any) -> str:
    with pytest.raises(error) as caught:
        await principal(*keys, **changes)
    assert type(caught.value) is error
    return caught.value.message


async def test_user() -> None:
    """The user is `sub` as it stands, its room the encoded one; `jti` is the token's id."""
    found = await principal(sub="a.b@x", jti="t1")
    assert (found.user, found.encoded_user, found.token_id) == ("a.b@x", "a%2Eb@x", "t1")


@pytest.mark.parametrize(
    "user", [..., None, True, False, 7.5, 1e3, -7, "", [], [7], {"a": 7}, "x" * 129, 10**128, "." * 43]
)
async def test_bad_user(user: object) -> None:
    """A user that is missing, no name, empty or too long once encoded is refused."""
    assert (await refusal(TokenInvalid, sub=user)).startswith("sub")


async def test_bad_token_id() -> None:
    """A `jti` is text: revocation compares it."""
    assert await refusal(TokenInvalid, jti=7) == "jti: must be text"


@pytest.mark.parametrize(
    "tenant",
    [
        ...,
        None,
        True,
        7.0,
        -1,
        10**64,
        "",
        "a.b",
        "_all",
        "_broker",
        "*",
        ">",
        "x" * 65,
        "acmé",
        "acme\n",
        ["acme"],
        [7],
        {"id": "acme"},
    ],
)
async def test_bad_tenant(tenant: object) -> None:
    """A tenant that is missing, no name or reserved is refused, even by a key that may sign for all."""
    assert (await refusal(TokenInvalid, ALL, tenant=tenant)).startswith("tenant: must be the name")


async def test_tenant_of_the_key() -> None:
    """A key signs for the tenants it lists and no other; `*` stands for all only where it is said."""
    assert (await principal(ALL, tenant="globex")).tenant == "globex"
    assert (
        await refusal(TokenInvalid, KEY, tenant="globex") == "tenant: 'globex' may not be signed by this key"
    )


async def test_tenant_asked_for() -> None:
    """An ordinary token serves its own tenant, named or not, and no other."""
    assert (await principal(ALL, wanted="acme")).tenant == "acme"
    for wanted in ("globex", "", "_all", "*", "ACME"):
        assert await refusal(TenantForbidden, ALL, wanted=wanted) == "tenant: the token is for 'acme' alone"


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("app.tenant", {"app": {"tenant": "acme"}}),
        ("a.b.c", {"a": {"b": {"c": "acme"}}}),
        ("https://broker.example/tenant", {"https://broker.example/tenant": "acme"}),
    ],
)
async def test_tenant_claim(path: str, changes: dict[str, Any]) -> None:
    """The tenant may stand within another claim, or in one that is named by a URI, and only there."""
    how = {"tenant_claim": path}
    assert (await principal(how=how, tenant=..., **changes)).tenant == "acme"
    assert (await refusal(TokenInvalid, how=how)).startswith(f"{path}: must be the name of a tenant")
    assert (await refusal(TokenInvalid, how=how, app="acme", a=["b"])).startswith(f"{path}: must be")


@pytest.mark.parametrize("path", ["", ".", "app.", "a..b", "tenants"])
def test_bad_tenant_claim(path: str) -> None:
    """A path of a claim that could never hold a tenant is a fault of the configuration."""
    with pytest.raises(ConfigError, match=r"^auth\.tenant_claim: "):
        verifier(tenant_claim=path)


async def test_monitoring() -> None:
    """A monitoring token looks at the tenant that is asked for and publishes nothing."""
    permissions = {"subscribe": ["orders.>"], "publish": ["orders.>"]}
    found = await principal(
        ALL, wanted="globex", tenant=..., tenants=["*"], permissions=permissions, sub="ops"
    )
    assert (found.tenant, found.monitoring) == ("globex", True)
    assert (found.subscribe, found.publish) == (("orders.>",), ())
    with pytest.raises(Forbidden, match="may only subscribe"):
        found.check_publish("orders.1")


@pytest.mark.parametrize("tenants", [["acme"], ["*", "acme"], [], "*", None, {"*": 1}, [["*"]], True])
async def test_tenants_of_others(tenants: object) -> None:
    """`tenants` is the list with `*` and nothing else; anything else is not ours, and opens nothing."""
    found = await principal(ALL, wanted="acme", tenants=tenants)
    assert (found.tenant, found.monitoring) == ("acme", False)
    await refusal(TenantForbidden, ALL, wanted="globex", tenants=tenants)
    message = await refusal(TokenInvalid, ALL, wanted="acme", tenant=..., tenants=tenants)
    assert message.startswith("tenant: must be the name of a tenant")


async def test_monitoring_refused() -> None:
    """Monitoring takes a key that may sign for it, no `tenant` in the token, and one asked for."""
    both = await refusal(TokenInvalid, ALL, wanted="acme", tenants=["*"])
    assert both == "tenants: ['*'] replaces tenant; a token has one of the two"
    plain = attrs.evolve(ALL, monitoring=False)
    message = await refusal(TokenInvalid, plain, wanted="acme", tenant=..., tenants=["*"])
    assert message == "tenants: this key may not sign monitoring tokens"
    message = await refusal(TokenInvalid, ALL, tenant=..., tenants=["*"])
    assert "needs `tenant` beside it" in message
    for wanted in ("_all", "_broker", "*", "", "a.b"):
        await refusal(TenantForbidden, ALL, wanted=wanted, tenant=..., tenants=["*"])


async def test_monitoring_stays_within_the_keys_tenants() -> None:
    """A key that lists its tenants cannot look into others by a monitoring token."""
    key = attrs.evolve(KEY, monitoring=True)
    assert (await principal(key, wanted="acme", tenant=..., tenants=["*"])).tenant == "acme"
    await refusal(TenantForbidden, key, wanted="globex", tenant=..., tenants=["*"])


async def test_defaults() -> None:
    """Without the claim the configured defaults hold, filled in for this user and tenant."""
    defaults = config.Permissions(subscribe=("t.{tenant}.>",), publish=("me.out",), deny=("x.{user}",))
    found = await principal(how={"permissions": defaults}, sub="a.b")
    assert found.subscribe == ("t.acme.>",)
    assert found.publish == ("users.a%2Eb.out",)
    assert found.deny == ("x.a%2Eb",)


async def test_claim_replaces_defaults() -> None:
    """A claim replaces the defaults as a whole: a list that it leaves out is empty."""
    defaults = config.Permissions(subscribe=(">",), publish=(">",), deny=("x",))
    found = await principal(how={"permissions": defaults}, permissions={"subscribe": ["a", "live.me.b"]})
    assert (found.subscribe, found.publish, found.deny) == (("a", "live.users.alice.b"), (), ())
    found = await principal(how={"permissions": defaults}, permissions={})
    assert (found.subscribe, found.publish, found.deny) == ((), (), ())


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        (None, "permissions: must be an object"),
        (True, "permissions: must be an object"),
        (7, "permissions: must be an object"),
        ({"subscribe": [], "read": []}, "permissions: must be an object with nothing but"),
        ({"subscribe": "a"}, "permissions.subscribe: must be a list"),
        ({"publish": None}, "permissions.publish: must be a list"),
        ({"deny": ["a", 7]}, "permissions.deny: must be a list"),
        ({"deny": {"a": 1}}, "permissions.deny: must be a list"),
        ({"deny": ["a"] * 257}, "permissions.deny: 257 patterns; at most 256"),
        ({"subscribe": ["a..b"]}, "permissions.subscribe: 'a..b': token 2 is empty"),
        ({"subscribe": ["a.>.b"]}, "permissions.subscribe: 'a.>.b'"),
        ({"publish": ["_x"]}, "permissions.publish: '_x'"),
        ({"publish": ["$JS.API.>"]}, "permissions.publish: '$JS.API.>'"),
        ({"publish": ["a b"]}, "permissions.publish: 'a b'"),
        ({"publish": [""]}, "permissions.publish: ''"),
        ({"subscribe": ["x{user}"]}, "permissions.subscribe: 'x{user}': only {user} and {tenant}"),
        ({"deny": ["x.{usr}"]}, "permissions.deny: 'x.{usr}': only {user} and {tenant}"),
        ({"deny": ["{USER}.x"]}, "permissions.deny: '{USER}.x': only"),
    ],
)
async def test_bad_permissions(claim: object, told: str) -> None:
    """A claim that is not understood wholly is refused, and the message names the pattern at fault."""
    assert (await refusal(TokenInvalid, permissions=claim)).startswith(told)


@pytest.mark.parametrize(
    "claim", [[], ["read:orders"], [">"], "", "*", "read:orders publish", [{"a": 1}], [7]]
)
async def test_permissions_of_others(claim: object) -> None:
    """A list or text under `permissions` is not ours (Auth0's RBAC): the defaults hold, and nothing more."""
    how = {"permissions": config.Permissions(subscribe=("a",), deny=("b",))}
    found = await principal(how=how, permissions=claim)
    assert (found.subscribe, found.publish, found.deny, found.standard) == (("a",), (), ("b",), True)


async def test_claims_of_others_are_said_once() -> None:
    """The log names key and claim, once for each."""
    believer = verifier(KEY, attrs.evolve(KEY, name="l", secret="t" * 64))
    with capture_logs() as logs:
        for key in ("s" * 64, "t" * 64):
            for _ in range(3):
                token = forge(claims(permissions=["read"], tenants=["x"]), key=key.encode())
                await believer.verify(token, now=NOW)
    assert [(each["event"], each["key"], each["claim"]) for each in logs] == [
        ("claim_ignored", key, claim) for key in ("k", "l") for claim in ("permissions", "tenants")
    ]


@pytest.mark.parametrize("number", [0, 7, 42, 2**53 + 1, 10**40])
async def test_a_number_is_its_digits(number: int) -> None:
    """An integer as the user is its digits, all of them, and so is one as the tenant."""
    found = await principal(attrs.evolve(KEY, tenants=(str(number),)), sub=number, tenant=number)
    assert (found.user, found.encoded_user, found.tenant) == (str(number),) * 3


FIXED = attrs.evolve(KEY, tenants=(), tenant="main")


@pytest.mark.parametrize("named", [..., None, "main"])
async def test_a_fixed_tenant(named: object) -> None:
    """Where the entry fixes the tenant, tokens that name none are for it, and those that name it."""
    assert (await principal(FIXED, tenant=named)).tenant == "main"
    assert (await principal(FIXED, tenant=named, wanted="main")).tenant == "main"


@pytest.mark.parametrize("named", ["acme", "", "*", 7, ["main"], {"main": 1}, "_all", True])
async def test_a_fixed_tenant_is_nobody_elses(named: object) -> None:
    """A token that names another tenant, or anything that is none, is not let into the fixed one."""
    assert (await refusal(TokenInvalid, FIXED, tenant=named)).startswith("tenant: ")
    for wanted in ("acme", "_all", ""):
        assert await refusal(TenantForbidden, FIXED, wanted=wanted, tenant=...)


async def test_a_fixed_tenant_and_monitoring() -> None:
    """A monitoring token of such a key looks at that tenant alone."""
    key = attrs.evolve(FIXED, monitoring=True)
    found = await principal(key, wanted="main", tenant=..., tenants=["*"])
    assert (found.tenant, found.monitoring) == ("main", True)
    await refusal(TenantForbidden, key, wanted="acme", tenant=..., tenants=["*"])


async def test_256_patterns() -> None:
    """The limit on patterns is exact."""
    found = await principal(permissions={"subscribe": ["a"] * 256})
    assert len(found.subscribe) == 256


@pytest.mark.parametrize("user", ["users", "live"])
async def test_a_name_opens_no_room(user: str) -> None:
    """Who is called "users" does not get everybody's private channels from `{user}.>`."""
    message = await refusal(TokenInvalid, sub=user, permissions={"subscribe": ["{user}.>"]})
    assert message == f"permissions.subscribe: '{{user}}.>': {{user}} would be the reserved name '{user}'"
    assert (await principal(sub=user, permissions={"subscribe": ["x.{user}.>"]})).user == user
    message = await refusal(TokenInvalid, sub="users", permissions={"subscribe": ["live.{user}.>"]})
    assert "would be the reserved name 'users'" in message


@pytest.mark.parametrize("user", ["{tenant}", "{user}", "*", ">", "a.>", "me", "%2E", "a b"])
async def test_placeholders_are_filled_once(user: str) -> None:
    """Whatever a user is called, it fills one token and is not itself filled in or a wildcard."""
    room = subjects.encode_user(user)
    found = await principal(sub=user, permissions={"subscribe": ["x.{user}.y", "me.>", "x.{tenant}"]})
    assert found.subscribe == (f"x.{room}.y", f"users.{room}.>", "x.acme")


def test_bad_default_permissions() -> None:
    """Bad default patterns are found at the start, all of them."""
    defaults = config.Permissions(subscribe=("a", "b..c"), publish=("x{user}",), deny=("_x",))
    with pytest.raises(ConfigError) as caught:
        verifier(permissions=defaults)
    keys = [fault.partition(": ")[0] for fault in caught.value.faults]
    assert keys == ["permissions.subscribe.1", "permissions.publish.0", "permissions.deny.0"]


TOKENS = st.sampled_from(["a", "users", "live", "me", "{user}", "{tenant}", "*", ">", "", "x{user}", "_a"])


@settings(deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=4), st.sampled_from(["u", "users", "live", "me", "a.b", "{x}"]))
def test_fill_gives_patterns_within_bounds(tokens: list[str], user: str) -> None:
    """What is filled in is a valid pattern, and grants a private room only if it says so in letters."""
    room = subjects.encode_user(user)
    try:
        filled = fill(".".join(tokens), user=room, tenant="t")
    except InvalidChannel:
        return
    assert subjects.parse_pattern(filled) == filled
    if subjects.overlaps(filled, "users.somebody.inbox"):
        assert tokens[0] == "users"
    if subjects.overlaps(filled, "live.users.somebody.inbox"):
        assert tokens[:2] == ["live", "users"]
