"""What the authorization server says about itself (RFC 8414), and whether it takes registrations."""

from __future__ import annotations

from typing import Any

from broker.authserver.protocol import House
from broker.authserver.safety import is_exposed


def may_register(house: House) -> bool:
    """Dynamic registration is for one machine: nobody else can reach us, and the settings allow it."""
    return house.settings.auth.embedded.registration == "loopback" and not is_exposed(house.settings)


def authorization_server(house: House) -> dict[str, Any]:
    """The metadata document. No `offline_access`: refresh tokens come with the grant."""
    base = house.base_url()
    methods = ["client_secret_basic", "client_secret_post", "none"]
    document: dict[str, Any] = {
        "issuer": base,
        "authorization_endpoint": f"{base}/oauth/authorize",
        "token_endpoint": f"{base}/oauth/token",
        "jwks_uri": f"{base}/oauth/jwks",
        "revocation_endpoint": f"{base}/oauth/revoke",
        "scopes_supported": sorted(house.scopes()),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "token_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_methods_supported": methods,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }
    return {**document, "registration_endpoint": f"{base}/oauth/register"} if may_register(house) else document
