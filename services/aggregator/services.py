"""The aggregator's gRPC services, each by its full name."""

from collections.abc import Mapping

from fednano.rpc.server import AddServicer
from fednano.v1.aggregator_service_pb2_grpc import add_AggregatorServiceServicer_to_server
from fednano.v1.enrollment_service_pb2_grpc import add_EnrollmentServiceServicer_to_server
from fednano.v1.run_service_pb2_grpc import add_RunServiceServicer_to_server
from services.aggregator.aggregator_servicer import AggregatorServicer
from services.aggregator.enrollment import open_enrollment
from services.aggregator.enrollment_servicer import EnrollmentServicer
from services.aggregator.federation import Federation
from services.aggregator.run_servicer import RunServicer


def aggregator_services(federation: Federation) -> Mapping[str, AddServicer]:
    """What adds each servicer to a server. Raises SettingsInvalid."""
    settings = federation.settings
    clients, operators = AggregatorServicer(federation), RunServicer(federation)
    enrollment = EnrollmentServicer(open_enrollment(federation.store, settings), settings.called_address)
    return {
        "fednano.v1.AggregatorService": lambda server: add_AggregatorServiceServicer_to_server(clients, server),
        "fednano.v1.RunService": lambda server: add_RunServiceServicer_to_server(operators, server),
        "fednano.v1.EnrollmentService": lambda server: add_EnrollmentServiceServicer_to_server(enrollment, server),
    }
