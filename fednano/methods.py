"""What a run's method asks of its clients: in one place, for both ends of the contract go by it."""

from fednano.v1 import run_pb2 as pb
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ARTIFACT_KIND_GRAM, ArtifactKind

FISHER_METHODS = (pb.METHOD_FEDNANO, pb.METHOD_FEDNANO_EF)
# What each weighs in inference where nobody says otherwise.
GLOBAL_WEIGHT = 0.5


def merges_by_fisher(config: pb.RunConfig) -> bool:
    """Whether clients send Fisher information: not where F = 1 is all there is to say."""
    return config.method in FISHER_METHODS and config.fisher.kind != pb.FisherConfig.KIND_ONES


def fisher_point(config: pb.RunConfig) -> "pb.FisherConfig.Point.ValueType":
    """When in local training the information is estimated."""
    if config.fisher.at != pb.FisherConfig.POINT_UNSPECIFIED:
        return config.fisher.at
    is_along = config.method == pb.METHOD_FEDNANO_EF
    return pb.FisherConfig.POINT_PATH if is_along else pb.FisherConfig.POINT_END


def artifact_kinds(config: pb.RunConfig, *, has_gram: bool = False) -> "tuple[ArtifactKind.ValueType, ...]":
    """What an update holds, in order. ``has_gram``: the client has given its Gram matrices, which never change."""
    if merges_by_fisher(config):
        return ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER
    if config.method == pb.METHOD_FEDNANO_GRAM and not has_gram:
        return ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_GRAM
    return (ARTIFACT_KIND_ADAPTER,)


def proximal_mu(config: pb.RunConfig) -> float:
    """The weight of FedProx's term; 0 in every other method."""
    return config.train.proximal_mu if config.method == pb.METHOD_FEDPROX else 0.0


def is_personal(config: pb.RunConfig, round_number: int) -> bool:
    """Whether evaluating the round's adapter begins with a client's own: FedDPA-F's second stage, after the last."""
    return config.method == pb.METHOD_FEDDPA_F and round_number == config.round_count


def global_weight(config: pb.RunConfig) -> float:
    """What the global adapter weighs beside a client's own in FedDPA-F."""
    personal = config.personal
    return personal.global_weight if personal.HasField("global_weight") else GLOBAL_WEIGHT
