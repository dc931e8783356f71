"""A server's credentials, read anew for each connection whose files have changed."""

import grpc

from fednano.config import Security
from fednano.security.pem_files import Credentials, PemFiles
from fednano.security.revocation import RevocationList


def server_credentials(files: PemFiles, *, asks_certificate: bool = True) -> grpc.ServerCredentials:
    """Callers must show a certificate of the CA, or, where it is not asked for, cannot: gRPC's Python knows no third
    way."""
    shown = files.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        # In one of gRPC's threads, before each handshake; None lets it go on with what it has.
        nonlocal shown
        files.refresh()
        if files.current is shown:
            return None
        shown = files.current
        return _configuration(shown)

    return grpc.dynamic_ssl_server_credentials(_configuration(shown), renewed, asks_certificate)  # type: ignore[arg-type]


def own_files(security: Security) -> PemFiles | None:
    """None for plaintext. Raises SettingsInvalid where the files are wrong at the start."""
    return None if security.insecure else PemFiles(security)


def revocation_list(security: Security) -> RevocationList | None:
    """None where none was given. Raises SettingsInvalid where it is wrong at the start."""
    if security.insecure or security.tls_crl is None or security.tls_ca is None:
        return None
    return RevocationList(security.tls_crl, security.tls_ca)


def _configuration(found: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(found.key_pem, found.chain_pem)], root_certificates=found.authority_pem
    )
