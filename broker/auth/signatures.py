"""The algorithms of signatures, and which keys fit which of them.

The configuration and the type of a key determine what it may verify. The `alg` of a token only selects
among that (RFC 8725 section 3.1). The signatures themselves are PyJWT's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, get_default_algorithms

if TYPE_CHECKING:
    from broker import config

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 section 3.2: at least the hash's size
CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}  # section 3.4
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS: dict[str, Algorithm] = {
    name: algorithm
    for name, algorithm in get_default_algorithms().items()
    if name in (*SECRET_BYTES, *RSA, *CURVES, "EdDSA")
}
RSA_BITS = (2048, 8192)  # RFC 7518 section 3.3; above, one signature costs a millisecond


@attrs.frozen(kw_only=True)
class Signed:
    """The signature of a token: its algorithm, the name of its key, and the message that was signed."""

    algorithm: str
    kid: str | None
    message: bytes
    signature: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class VerifyingKey:
    """One key for one algorithm, and its entry in the configuration, which says what it may sign.

    A key without a `kid` (a secret, a PEM) verifies tokens with any.
    """

    entry: config.Key = attrs.field(repr=False)  # may contain a secret, as `material` may
    kid: str | None
    algorithm: str
    material: Any = attrs.field(repr=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """What determines which tokens it verifies, apart from the tenants."""
        return self.kid, self.algorithm, self.material, self.entry.issuer, self.entry.audience

    def named(self, kid: str | None) -> bool:
        """Return whether a token's `kid` names this key."""
        return kid in (self.kid, self.entry.name)

    def signed(self, token: Signed) -> bool:
        return ALGORITHMS[self.algorithm].verify(token.message, self.material, token.signature)


def misfit(algorithm: str, key: object) -> str | None:
    """Return why a public key does not fit an algorithm; None when it does."""
    low, high = RSA_BITS
    match key:
        case RSAPublicKey():
            fits, kind = algorithm in RSA, "an RSA key"
            if not low <= key.key_size <= high:
                return f"an RSA key has {low} to {high} bits here, not {key.key_size}"
        case EllipticCurvePublicKey():
            fits, kind = CURVES.get(algorithm) == key.curve.name, f"a key on {key.curve.name}"
        case Ed25519PublicKey():
            fits, kind = algorithm == "EdDSA", "an Ed25519 key"
        case _:
            fits, kind = False, "a key of this kind"
    return None if fits else f"{algorithm} cannot be checked with {kind}"
