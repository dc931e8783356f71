"""TCP connections of our own, by the HTTP proxy that gRPC would take to the same place, if there is one."""

import base64
import http.client
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import SplitResult, unquote, urlsplit

# gRPC's own variables, in its order: the first that is set counts, in lower case only.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
DIRECT_VARIABLES = ("no_grpc_proxy", "no_proxy")


def connect(place: tuple[str, int], timeout_s: float) -> socket.socket:
    """To ``place``, a host and a port; through a proxy the name is looked up there, not here. Raises OSError."""
    proxy = proxy_of(place[0])
    if proxy is None:
        return socket.create_connection(place, timeout_s)
    tunnel = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout_s)
    tunnel.set_tunnel(*place, headers=_credentials(proxy))
    try:
        tunnel.connect()
    except http.client.HTTPException as error:
        raise OSError(f"the proxy {proxy.hostname} answers what is no HTTP: {error!r}") from error
    return tunnel.sock


def proxy_of(host: str) -> SplitResult | None:
    """The proxy by which gRPC reaches ``host``, by the environment."""
    proxy = urlsplit(_first_set(PROXY_VARIABLES))
    if proxy.scheme != "http" or not proxy.hostname or _goes_direct(host, _first_set(DIRECT_VARIABLES)):
        return None
    return proxy


def _first_set(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name))), "")


def _goes_direct(host: str, exceptions: str) -> bool:
    """Exceptions are names, ends of names, and networks of addresses, with commas between."""
    parts = [part.strip() for part in exceptions.split(",") if part.strip()]
    if any(f".{host}".endswith(f".{part.removeprefix('.')}") for part in parts):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return any(address in network for network in _networks(parts))
    return False


def _networks(parts: list[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for part in parts:
        with suppress(ValueError):
            yield ipaddress.ip_network(part, strict=False)


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}
