"""A channel to a service's second address, where the caller has no certificate: a bearer token, or nothing yet."""

import grpc
import grpc.aio

from fednano.rpc.channels import CHANNEL_OPTIONS


def open_ops_channel(address: str, authority_pem: bytes, token: str = "") -> grpc.aio.Channel:
    """The service must prove itself by a certificate of that authority; only then it is shown the token."""
    credentials = grpc.ssl_channel_credentials(root_certificates=authority_pem)
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
