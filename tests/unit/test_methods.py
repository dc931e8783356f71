"""What a run's method asks of its clients."""

import pytest

from fednano.methods import artifact_kinds, fisher_point, is_personal, merges_by_fisher, proximal_mu
from fednano.v1 import run_pb2 as pb
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_FISHER, ARTIFACT_KIND_GRAM

Fisher = pb.FisherConfig
METHODS = [method for method in pb.Method.values() if method != pb.METHOD_UNSPECIFIED]


@pytest.mark.parametrize("method", METHODS)
def test_only_fedprox_has_a_proximal_term_whatever_mu_a_run_names(method: "pb.Method.ValueType") -> None:
    config = pb.RunConfig(method=method, train=pb.TrainConfig(proximal_mu=0.5))
    assert proximal_mu(config) == (0.5 if method == pb.METHOD_FEDPROX else 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_fisher_merges_send_fisher_information_and_none_where_it_is_one(method: "pb.Method.ValueType") -> None:
    config = pb.RunConfig(method=method)
    assert merges_by_fisher(config) == (method in (pb.METHOD_FEDNANO, pb.METHOD_FEDNANO_EF))
    assert (ARTIFACT_KIND_FISHER in artifact_kinds(config)) == merges_by_fisher(config)
    config.fisher.kind = Fisher.KIND_ONES
    assert ARTIFACT_KIND_FISHER not in artifact_kinds(config)


def test_gram_matrices_are_sent_once() -> None:
    config = pb.RunConfig(method=pb.METHOD_FEDNANO_GRAM)
    assert artifact_kinds(config) == (ARTIFACT_KIND_ADAPTER, ARTIFACT_KIND_GRAM)
    assert artifact_kinds(config, has_gram=True) == (ARTIFACT_KIND_ADAPTER,)


def test_fisher_information_is_of_the_end_and_with_fednano_ef_of_the_path_unless_said_otherwise() -> None:
    config = pb.RunConfig(method=pb.METHOD_FEDNANO)
    assert fisher_point(config) == Fisher.POINT_END
    assert fisher_point(pb.RunConfig(method=pb.METHOD_FEDNANO_EF)) == Fisher.POINT_PATH
    for point in (Fisher.POINT_START, Fisher.POINT_PATH):
        config.fisher.at = point
        assert fisher_point(config) == point


def test_the_second_stage_of_feddpa_f_comes_after_the_last_round_alone() -> None:
    config = pb.RunConfig(method=pb.METHOD_FEDDPA_F, round_count=3)
    assert [is_personal(config, number) for number in range(4)] == [False, False, False, True]
    config.method = pb.METHOD_FEDAVG
    assert not is_personal(config, 3)
