"""EnrollmentService: how a client comes by its certificate. Translates, and leaves deciding to ``enrollment``."""

import asyncio

from google.protobuf.timestamp_pb2 import Timestamp

from fednano.errors import Unsupported
from fednano.rpc.interceptor import Context
from fednano.security.join_token import token_id
from fednano.v1 import enrollment_service_pb2 as pb
from fednano.v1 import enrollment_service_pb2_grpc as pb_grpc
from services.aggregator.enrollment import Enrollment
from services.aggregator.pages import page


class EnrollmentServicer(pb_grpc.EnrollmentServiceServicer):
    """Holds no state of its own. ``aggregator`` is where clients call, as in EnrollResponse."""

    def __init__(self, enrollment: Enrollment | None, aggregator: str) -> None:
        self._enrollment = enrollment
        self._aggregator = aggregator

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.CreateJoinTokenResponse:
        enrollment, ttl_s = self._open(), request.ttl.ToMilliseconds() / 1000
        token, expire_time_s = await asyncio.to_thread(enrollment.create_token, request.run, request.client_id, ttl_s)
        stamp = Timestamp()
        stamp.FromMilliseconds(int(1000 * expire_time_s))
        return pb.CreateJoinTokenResponse(token=str(token), expire_time=stamp, token_id=token_id(token.sha256))

    async def ListJoinTokens(self, request: pb.ListJoinTokensRequest, context: Context) -> pb.ListJoinTokensResponse:
        wanted = page(request.page_size, request.page_token)
        shown, token = await asyncio.to_thread(self._open().tokens, wanted)
        return pb.ListJoinTokensResponse(join_tokens=shown, next_page_token=token)

    async def RevokeJoinToken(self, request: pb.RevokeJoinTokenRequest, context: Context) -> pb.RevokeJoinTokenResponse:
        return pb.RevokeJoinTokenResponse(
            join_token=await asyncio.to_thread(self._open().revoke_token, request.token_id)
        )

    async def GetAuthority(self, request: pb.GetAuthorityRequest, context: Context) -> pb.GetAuthorityResponse:
        return pb.GetAuthorityResponse(ca_certificates=self._open().ca_certificates.decode())

    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.EnrollResponse:
        enrollment = self._open()
        enrolled = await asyncio.to_thread(
            enrollment.enroll, request.token, request.client_id, request.certificate_request
        )
        return pb.EnrollResponse(
            certificate_chain=enrolled.certificate_chain.decode(),
            ca_certificates=enrollment.ca_certificates.decode(),
            client_id=enrolled.client,
            run=enrolled.run,
            aggregator=self._aggregator,
        )

    def _open(self) -> Enrollment:
        if self._enrollment is None:
            raise Unsupported("this aggregator enrols nobody: start it with --enroll-authority, or issue certificates")
        return self._enrollment
