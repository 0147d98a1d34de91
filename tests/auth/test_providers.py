"""Tokens as identity providers issue them: each is let in by its lines, and no foreign twin of it.

A twin is signed with the same key, which all customers of a provider share (or all clients of a realm), and
is for somebody else by its `iss` or `aud`. The shapes are those of the providers' documentation, the keys are
our own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from broker import config
from broker.auth.keys import Keys
from broker.auth.tokens import Verifier
from broker.errors import ConfigError, TokenInvalid
from tests.auth.forge import NOW, SECRET, forge, jwk, private_key
from tests.auth.issuer import Issuer, key_set

if TYPE_CHECKING:
    from broker.permissions import Principal

GUID = "6e74172b-be56-4843-9ff4-e66a39bb12e3"
OTHER = "9188040d-6c67-4c5b-b112-36a304b66dad"
HOUR = {"iat": NOW - 5, "exp": NOW + 3600}


@attrs.frozen(kw_only=True)
class Provider:
    """`lines` of an entry and of `[auth]`, a token by its head and claims, and whom that lets in.

    `twins` are changes of claims that make it somebody else's.
    """

    lines: dict[str, Any]
    claims: dict[str, Any]
    twins: list[dict[str, Any]]
    user: str
    tenant: str = "main"
    head: dict[str, Any] = attrs.Factory(lambda: {"typ": "JWT"})
    algorithm: str = "RS256"
    auth: dict[str, Any] = attrs.Factory(dict)


PROVIDERS = {
    "Auth0, access token with RBAC": Provider(
        lines={
            "issuer": "https://acme.eu.auth0.com/",
            "audience": "https://api.acme.example",
            "tenants": ("acme",),
        },
        auth={"tenant_claim": "https://acme.example/tenant"},
        claims={
            "iss": "https://acme.eu.auth0.com/",
            "aud": ["https://api.acme.example", "https://acme.eu.auth0.com/userinfo"],
            "sub": "auth0|65a8f1c2",
            "azp": "iXpUa0Yk",
            "scope": "openid profile",
            "permissions": ["read:orders", "write:orders"],
            "https://acme.example/tenant": "acme",
            "org_id": "org_9ybsU1dN",
        },
        twins=[
            {"iss": "https://globex.eu.auth0.com/"},
            {"iss": "https://acme.eu.auth0.com"},
            {"aud": "https://api.globex.example"},
        ],
        user="auth0|65a8f1c2",
        tenant="acme",
    ),
    "Auth0, RFC 9068 profile": Provider(
        lines={
            "issuer": "https://acme.eu.auth0.com/",
            "audience": "https://api.acme.example",
            "tenant": "main",
        },
        head={"typ": "at+jwt"},
        claims={
            "iss": "https://acme.eu.auth0.com/",
            "aud": "https://api.acme.example",
            "sub": "auth0|65a8f1c2",
            "client_id": "iXpUa0Yk",
            "jti": "P2Hx8LtQ",
            "permissions": [],
        },
        twins=[{"iss": "https://globex.eu.auth0.com/"}, {"aud": "https://acme.eu.auth0.com/userinfo"}],
        user="auth0|65a8f1c2",
    ),
    "Okta, custom authorization server": Provider(
        lines={
            "issuer": "https://acme.okta.com/oauth2/default",
            "audience": "api://default",
            "tenant": "main",
        },
        head={},
        claims={
            "ver": 1,
            "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
            "iss": "https://acme.okta.com/oauth2/default",
            "aud": "api://default",
            "cid": "0oa1gjh63g214q0iB0h7",
            "uid": "00uid4BxXw6I6TV4m0g3",
            "scp": ["openid", "orders"],
            "auth_time": NOW - 60,
            "sub": "alice@acme.example",
        },
        twins=[
            {"iss": "https://globex.okta.com/oauth2/default"},
            {"iss": "https://acme.okta.com/oauth2/other"},
            {"aud": "api://other"},
        ],
        user="alice@acme.example",
    ),
    "Microsoft Entra ID, v1": Provider(
        lines={"issuer": f"https://sts.windows.net/{GUID}/", "audience": "api://broker", "tenants": (GUID,)},
        auth={"tenant_claim": "tid"},
        head={"typ": "JWT", "x5t": "nOo3ZDrODXEK1jKWhXslHR_KXEg"},
        claims={
            "aud": "api://broker",
            "iss": f"https://sts.windows.net/{GUID}/",
            "nbf": NOW - 5,
            "acr": "1",
            "appid": "75dbe77f-10a3-4e59-85fd-8c127544f17c",
            "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "roles": ["Orders.Read"],
            "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            "tid": GUID,
            "upn": "alice@acme.example",
            "uti": "fqiBqXLPj0eQa82S-IYFAA",
            "ver": "1.0",
        },
        twins=[
            {"iss": f"https://sts.windows.net/{OTHER}/", "tid": OTHER},
            {"iss": f"https://sts.windows.net/{OTHER}/"},
            {"aud": "00000003-0000-0000-c000-000000000000"},
        ],
        user="AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        tenant=GUID,
    ),
    "Microsoft Entra ID, v2": Provider(
        lines={
            "issuer": f"https://login.microsoftonline.com/{GUID}/v2.0",
            "audience": "6731de76-14a6-49ae-97bc-6eba6914391e",
            "tenant": "main",
        },
        claims={
            "aud": "6731de76-14a6-49ae-97bc-6eba6914391e",
            "iss": f"https://login.microsoftonline.com/{GUID}/v2.0",
            "nbf": NOW - 5,
            "azp": "0a1b",
            "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "scp": "access_as_user",
            "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
            "tid": GUID,
            "ver": "2.0",
        },
        twins=[
            {"iss": f"https://login.microsoftonline.com/{OTHER}/v2.0", "tid": OTHER},
            {"aud": "00000003-0000-0000-c000-000000000000"},
        ],
        user="HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
    ),
    "Amazon Cognito, access token": Provider(
        lines={"issuer": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_aB3dE", "tenant": "main"},
        head={},
        claims={  # it has no `aud`
            "sub": "5a2e1f9c-1111-4b6d-9d0e-0f5c7a8b9c0d",
            "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_aB3dE",
            "client_id": "7lhlkkfbfb4q5kpp90urffao",
            "cognito:groups": ["admins"],
            "token_use": "access",
            "scope": "aws.cognito.signin.user.admin",
            "auth_time": NOW - 60,
            "jti": "d903ef0c-53a3-44ee-b840-174f0d057f8d",
            "username": "alice",
        },
        twins=[{"iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_other"}],
        user="5a2e1f9c-1111-4b6d-9d0e-0f5c7a8b9c0d",
    ),
    "Amazon Cognito, ID token": Provider(
        lines={
            "issuer": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_aB3dE",
            "audience": "7lhlkkfbfb4q5kpp90urffao",
            "tenants": ("acme",),
        },
        auth={"tenant_claim": "custom:tenant"},
        head={},
        claims={
            "sub": "5a2e1f9c-1111-4b6d-9d0e-0f5c7a8b9c0d",
            "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_aB3dE",
            "aud": "7lhlkkfbfb4q5kpp90urffao",
            "token_use": "id",
            "custom:tenant": "acme",
            "email_verified": True,
        },
        twins=[
            {"aud": "another-client-of-the-pool"},
            {"iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_other"},
        ],
        user="5a2e1f9c-1111-4b6d-9d0e-0f5c7a8b9c0d",
        tenant="acme",
    ),
    "Firebase Authentication": Provider(
        lines={
            "issuer": "https://securetoken.google.com/acme-app",
            "audience": "acme-app",
            "tenants": ("acme-x1y2z",),
        },
        auth={"tenant_claim": "firebase.tenant"},
        claims={
            "iss": "https://securetoken.google.com/acme-app",
            "aud": "acme-app",
            "auth_time": NOW - 60,
            "user_id": "Fq3ZpQ",
            "sub": "Fq3ZpQ",
            "firebase": {
                "identities": {"email": ["alice@acme.example"]},
                "sign_in_provider": "password",
                "tenant": "acme-x1y2z",
            },
        },
        twins=[
            # Whoever has a project of Google's can have such a token, and may write what it likes into it.
            {
                "iss": "https://securetoken.google.com/evil-app",
                "aud": "evil-app",
                "permissions": {"subscribe": [">"], "publish": [">"]},
            },
            {"iss": "https://securetoken.google.com/evil-app"},
            {"aud": "evil-app"},
        ],
        user="Fq3ZpQ",
        tenant="acme-x1y2z",
    ),
    "Google, ID token": Provider(
        lines={
            "issuer": "https://accounts.google.com",
            "audience": "407408718192.apps.googleusercontent.com",
            "tenant": "main",
        },
        claims={
            "iss": "https://accounts.google.com",
            "azp": "407408718192.apps.googleusercontent.com",
            "aud": "407408718192.apps.googleusercontent.com",
            "sub": "10769150350006150715113082367",
            "email": "alice@acme.example",
            "hd": "acme.example",
        },
        twins=[{"aud": "1234987819200.apps.googleusercontent.com"}, {"iss": "accounts.google.com"}],
        user="10769150350006150715113082367",
    ),
    "Keycloak": Provider(
        lines={"issuer": "https://sso.acme.example/realms/acme", "audience": "broker", "tenant": "main"},
        claims={
            "jti": "onrtac:5b1f",
            "iss": "https://sso.acme.example/realms/acme",
            "aud": ["broker", "account"],
            "sub": "f:1:alice",
            "typ": "Bearer",  # a claim, and nothing to do with the head's
            "azp": "web",
            "realm_access": {"roles": ["offline_access", "orders"]},
            "resource_access": {"account": {"roles": ["view-profile"]}},
            "scope": "openid email",
        },
        twins=[{"iss": "https://sso.acme.example/realms/globex"}, {"aud": "account"}],
        user="f:1:alice",
    ),
    "Supabase, signing keys": Provider(
        lines={
            "issuer": "https://abcdefgh.supabase.co/auth/v1",
            "audience": "authenticated",
            "tenants": ("acme",),
        },
        auth={"tenant_claim": "app_metadata.tenant"},
        algorithm="ES256",
        claims={
            "iss": "https://abcdefgh.supabase.co/auth/v1",
            "aud": "authenticated",
            "sub": "9c1b2a34-7c36-4a0a-8a1c-2f8b0f6a9d10",
            "role": "authenticated",
            "aal": "aal1",
            "session_id": "c1a7",
            "app_metadata": {"provider": "email", "tenant": "acme"},
            "user_metadata": {"tenant": "globex"},  # which the user may write
            "is_anonymous": False,
        },
        twins=[{"iss": "https://zyxwvuts.supabase.co/auth/v1"}, {"aud": "anon"}],
        user="9c1b2a34-7c36-4a0a-8a1c-2f8b0f6a9d10",
        tenant="acme",
    ),
    "Supabase, shared secret": Provider(
        lines={
            "issuer": "https://abcdefgh.supabase.co/auth/v1",
            "audience": "authenticated",
            "tenant": "main",
        },
        algorithm="HS256",
        head={"typ": "JWT", "kid": "3o1Xb/0R"},
        claims={
            "iss": "https://abcdefgh.supabase.co/auth/v1",
            "aud": "authenticated",
            "sub": "9c1b2a34-7c36-4a0a-8a1c-2f8b0f6a9d10",
            "role": "authenticated",
        },
        twins=[{"iss": "supabase", "aud": ..., "role": "anon"}, {"aud": "anon"}],
        user="9c1b2a34-7c36-4a0a-8a1c-2f8b0f6a9d10",
    ),
    "WorkOS AuthKit": Provider(
        lines={"issuer": "https://api.workos.com/user_management/client_01H", "tenants": ("org_01H93Z",)},
        auth={"tenant_claim": "org_id"},
        head={},
        claims={  # it has no `aud`
            "iss": "https://api.workos.com/user_management/client_01H",
            "sub": "user_01HBEQKA6K4QJAS93VPE39W1JT",
            "act": {"sub": "admin@foo.example"},
            "org_id": "org_01H93Z",
            "role": "member",
            "permissions": ["posts:view", "posts:create"],
            "sid": "session_01HQSXZG",
            "jti": "01HQSXZXPPFPKMDD32RKTFY6PV",
        },
        twins=[{"iss": "https://api.workos.com/user_management/client_other"}],
        user="user_01HBEQKA6K4QJAS93VPE39W1JT",
        tenant="org_01H93Z",
    ),
    "FusionAuth": Provider(
        lines={
            "issuer": "acme.example",
            "audience": "85a03867-dccf-4882-adde-1a79aeec50df",
            "tenant": "main",
        },
        claims={
            "aud": "85a03867-dccf-4882-adde-1a79aeec50df",
            "iss": "acme.example",
            "sub": "ceeb86a0-1ae3-4a7e-9ba6-b1d09aa18b8e",
            "jti": "9f8ee0d8",
            "authenticationType": "PASSWORD",
            "applicationId": "85a03867-dccf-4882-adde-1a79aeec50df",
            "roles": ["admin"],
            "tid": "ad6f7f36-0d0f-4c6f-9f1a-3a1c2e9f0b11",
            "permissions": "read write",
        },
        twins=[{"aud": "another-application"}, {"iss": "globex.example"}],
        user="ceeb86a0-1ae3-4a7e-9ba6-b1d09aa18b8e",
    ),
    "Clerk": Provider(
        lines={"issuer": "https://clerk.acme.example", "tenants": ("org_2x",)},
        auth={"tenant_claim": "o.id"},
        claims={  # a session token has no `aud`, and lives for a minute
            "azp": "https://app.acme.example",
            "exp": NOW + 55,
            "fva": [0, -1],
            "iss": "https://clerk.acme.example",
            "jti": "d4e5",
            "nbf": NOW - 15,
            "o": {"id": "org_2x", "rol": "admin", "slg": "acme"},
            "sid": "sess_2x",
            "sub": "user_2x",
            "v": 2,
        },
        twins=[{"iss": "https://clerk.globex.example"}],
        user="user_2x",
        tenant="org_2x",
    ),
    "Zitadel": Provider(
        lines={
            "issuer": "https://acme.zitadel.cloud",
            "audience": "163840776835432705",
            "tenants": ("1638",),
        },
        auth={"tenant_claim": "urn:zitadel:iam:user:resourceowner:id"},
        claims={
            "iss": "https://acme.zitadel.cloud",
            "aud": ["163840776835432705", "165467338479501569"],
            "sub": "165460784409611265",
            "client_id": "165467338479501569",
            "urn:zitadel:iam:org:project:roles": {"orders": {"1638": "acme.example"}},
            "urn:zitadel:iam:user:resourceowner:id": "1638",
        },
        twins=[{"iss": "https://globex.zitadel.cloud"}, {"aud": ["165467338479501569"]}],
        user="165460784409611265",
        tenant="1638",
    ),
    "Descope": Provider(
        lines={"issuer": "https://api.descope.com/P2acme", "audience": "P2acme", "tenant": "main"},
        claims={
            "amr": ["email"],
            "aud": ["P2acme"],
            "drn": "DS",
            "iss": "https://api.descope.com/P2acme",
            "permissions": ["SSO Admin"],
            "roles": ["Tenant Admin"],
            "sub": "U2alice",
            "tenants": {"T2acme": {"roles": ["Tenant Admin"]}},
        },
        twins=[{"iss": "https://api.descope.com/P2other"}, {"aud": ["P2other"]}],
        user="U2alice",
    ),
    "Ory Hydra": Provider(
        lines={"issuer": "https://auth.acme.example/", "audience": "broker", "tenants": ("acme",)},
        auth={"tenant_claim": "ext.tenant"},
        claims={
            "aud": ["broker"],
            "client_id": "web",
            "ext": {"tenant": "acme"},
            "iss": "https://auth.acme.example/",
            "jti": "1f5b",
            "nbf": NOW - 5,
            "scp": ["orders"],
            "sub": "alice",
        },
        twins=[{"iss": "https://auth.acme.example"}, {"aud": []}],
        user="alice",
        tenant="acme",
    ),
    "Kubernetes, service account": Provider(
        lines={
            "issuer": "https://kubernetes.default.svc.cluster.local",
            "audience": "broker",
            "tenant": "shop",
        },
        head={},
        claims={
            "aud": ["broker"],
            "iss": "https://kubernetes.default.svc.cluster.local",
            "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "orders", "uid": "1"}},
            "nbf": NOW - 5,
            "sub": "system:serviceaccount:shop:orders",
        },
        twins=[{"aud": ["https://kubernetes.default.svc.cluster.local"]}, {"iss": "https://other.cluster"}],
        user="system:serviceaccount:shop:orders",
        tenant="shop",
    ),
    "a backend of one's own, with numbers": Provider(
        lines={"tenants": ("7",)},
        algorithm="HS256",
        head={"typ": "JWT"},
        claims={"sub": 42, "tenant": 7},
        twins=[{"tenant": 8}, {"tenant": True}, {"sub": True}],
        user="42",
        tenant="7",
    ),
}


def entry(provider: Provider, issuer: Issuer) -> config.Key:
    source: dict[str, Any] = {"secret": SECRET}
    if provider.algorithm != "HS256":
        source = {"jwks_url": issuer.url}
    return config.Key(name="idp", algorithms=(provider.algorithm,), **source, **provider.lines)


def issued(provider: Provider, *, which: int = 0, **changes: Any) -> str:
    """A token of the provider: with the claims changed, or signed by another key of the same name."""
    secret = provider.algorithm == "HS256"
    claims = {
        name: value for name, value in {**HOUR, **provider.claims, **changes}.items() if value is not ...
    }
    head = {"alg": provider.algorithm} | ({} if secret else {"kid": "k1"}) | provider.head
    other = b"t" * 64 if which else SECRET.encode()
    key = other if secret else private_key(provider.algorithm, which)
    return forge(claims, head=head, algorithm=provider.algorithm, key=key)


@pytest.fixture
async def issuer(nursery: trio.Nursery) -> Issuer:
    made = Issuer(key_set(jwk("RS256", kid="k1", use="sig"), jwk("ES256", kid="k1", use="sig")))
    (listener,) = await nursery.start(partial(trio.serve_tcp, made.serve, 0, host="127.0.0.1"))
    made.port = listener.socket.getsockname()[1]
    return made


async def believer(provider: Provider, issuer: Issuer, nursery: trio.Nursery) -> Verifier:
    auth = config.Auth(keys=(entry(provider, issuer),), **provider.auth)
    keys = Keys.load(auth)
    await nursery.start(keys.run)
    return Verifier(auth, config.Limits(), config.Permissions(), keys)


def shown(principal: Principal) -> tuple[str, str, tuple[str, ...], tuple[str, ...], bool]:
    found = principal
    return found.tenant, found.user, found.subscribe, found.publish, found.monitoring


@pytest.mark.parametrize("name", PROVIDERS)
async def test_its_lines_let_it_in(issuer: Issuer, nursery: trio.Nursery, name: str) -> None:
    """The right tenant and user, and what the configuration allows: nothing of what others' claims say."""
    provider = PROVIDERS[name]
    verifier = await believer(provider, issuer, nursery)
    found = await verifier.verify(issued(provider), now=NOW)
    assert shown(found) == (provider.tenant, provider.user, (">", "live.>"), (), False)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_no_foreign_twin(issuer: Issuer, nursery: trio.Nursery, name: str) -> None:
    """Who is somebody else's customer is refused, told what was found; so is who has signed it himself."""
    provider = PROVIDERS[name]
    verifier = await believer(provider, issuer, nursery)
    for changes in provider.twins:
        with pytest.raises(TokenInvalid) as caught:
            await verifier.verify(issued(provider, **changes), now=NOW)
        assert caught.value.message.partition(":")[0] in changes
    with pytest.raises(TokenInvalid, match="signature: it does not match"):
        await verifier.verify(issued(provider, which=1), now=NOW)


@pytest.mark.parametrize("name", [name for name, each in PROVIDERS.items() if each.algorithm != "HS256"])
def test_without_its_parties_it_is_refused(name: str) -> None:
    """The configuration is not taken that would let the twins in."""
    provider = PROVIDERS[name]
    lines = {key: value for key, value in provider.lines.items() if key not in ("issuer", "audience")}
    open_to_all = attrs.evolve(provider, lines=lines)
    with pytest.raises(ConfigError, match="required beside jwks_url"):
        Keys.load(config.Auth(keys=(entry(open_to_all, Issuer(key_set())),)))


async def test_all_of_them_at_one_broker(nursery: trio.Nursery, issuer: Issuer) -> None:
    """Entries do not get into each other's way, though all have one key: issuer and audience choose."""
    names = [name for name, each in PROVIDERS.items() if "tenant" in each.lines and not each.auth]
    entries = [attrs.evolve(entry(PROVIDERS[name], issuer), name=name) for name in names]
    auth = config.Auth(keys=tuple(entries))
    keys = Keys.load(auth)
    await nursery.start(keys.run)
    verifier = Verifier(auth, config.Limits(), config.Permissions(), keys)
    for remote in keys.remotes:
        await remote.refresh()
    assert len(names) > 5
    for name in names:
        found: dict[str, str] = {}
        principal = await verifier.verify(issued(PROVIDERS[name]), now=NOW, passed=found.__setitem__)
        assert (principal.user, found["key"]) == (PROVIDERS[name].user, name)
        for changes in PROVIDERS[name].twins:
            with pytest.raises(TokenInvalid):
                await verifier.verify(issued(PROVIDERS[name], **changes), now=NOW)
