"""What a signature is checked with: algorithms, and which keys are for which of them.

What a key may check is fixed here, by the configuration and by the kind of the key. The `alg` of a token
only chooses among that (RFC 8725 section 3.1). The signatures themselves are PyJWT's.
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
    """What a token has of its signature: which algorithm and key it says, and what was signed with it."""

    algorithm: str
    kid: str | None
    message: bytes
    signature: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class VerifyingKey:
    """One key for one algorithm, and the entry of the configuration that says what it may sign.

    One without a `kid`, as a secret and a PEM are, takes tokens with any.
    """

    entry: config.Key = attrs.field(repr=False)  # may hold a secret, as does `material`
    kid: str | None
    algorithm: str
    material: Any = attrs.field(repr=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """What of it decides whether a token is believed, but for whom it may sign."""
        return self.kid, self.algorithm, self.material, self.entry.issuer, self.entry.audience

    def named(self, kid: str | None) -> bool:
        """Return whether a token means this key."""
        return kid in (self.kid, self.entry.name)

    def signed(self, token: Signed) -> bool:
        return ALGORITHMS[self.algorithm].verify(token.message, self.material, token.signature)


def misfit(algorithm: str, key: object) -> str | None:
    """Return why `algorithm` cannot be checked with the public `key`; None when it can."""
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
