"""Whether a service could listen where its settings say: asked before work that takes minutes, and when it listens."""

import socket

from fednano.config import Security
from fednano.errors import PeerUnavailable, SettingsInvalid
from fednano.rpc.server_files import own_files, revocation_list


def parse_listen(listen: str, flag: str = "--listen") -> tuple[str, int]:
    """Host and port. Raises SettingsInvalid, naming ``flag``."""
    host, _, number = listen.rpartition(":")
    # Of a larger one gRPC takes what is left over 65536, and serves there.
    if not number.isdecimal() or int(number) > 65535:
        raise SettingsInvalid(f"{flag}: {listen!r} is no host:port")
    return host, int(number)


def check_can_serve(listen: str, security: Security) -> None:
    """Raises what starting to serve would raise, as far as that can be known now."""
    revocation_list(security)
    own_files(security)
    host, port = parse_listen(listen)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as trial:
            # As gRPC does: a port that was served on a moment ago is free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise PeerUnavailable(f"cannot listen on {listen}: {error.strerror}", peer=listen) from None
