"""Join tokens after they were made: listed without their secret, withdrawn before they are used."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fednano.errors import AlreadyExists, FieldInvalid, JoinTokenRefused, ResourceNotFound
from fednano.security.authority import create_authority
from fednano.security.certificates import new_key, new_request
from fednano.security.join_token import token_id
from fednano.v1 import enrollment_service_pb2 as pb
from services.aggregator.enrollment import Enrollment
from services.aggregator.pages import page
from services.aggregator.store.database import Store
from services.aggregator.store.join_tokens import list_tokens


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'fednano.sqlite3'}")
    yield opened
    opened.close()


@pytest.fixture
def enrollment(store: Store, tmp_path: Path) -> Enrollment:
    authority, _ = create_authority(tmp_path / "ca")
    return Enrollment(store, authority, [authority.certificate], days=1.0)


def enroll(enrollment: Enrollment, token: str, client: str = "") -> str:
    return enrollment.enroll(token, client, new_request(new_key()).decode()).client


def new_token(enrollment: Enrollment, client: str = "", ttl_s: float = 60.0) -> tuple[str, str]:
    """A token, and what it is called by."""
    token, _ = enrollment.create_token("", client, ttl_s)
    return str(token), token_id(token.sha256)


def states(enrollment: Enrollment) -> dict[str, str]:
    shown, _ = enrollment.tokens(page(0, ""))
    return {token.client_id: pb.JoinToken.State.Name(token.state) for token in shown}


def test_the_list_tells_what_became_of_each_token_and_no_secret(enrollment: Enrollment) -> None:
    used, _ = new_token(enrollment, "used")
    enroll(enrollment, used)
    _, withdrawn = new_token(enrollment, "withdrawn")
    enrollment.revoke_token(withdrawn)
    new_token(enrollment, "late", ttl_s=1e-6)
    new_token(enrollment, "waiting")
    assert states(enrollment) == {
        "used": "STATE_USED",
        "withdrawn": "STATE_REVOKED",
        "late": "STATE_EXPIRED",
        "waiting": "STATE_UNUSED",
    }
    assert used.encode() not in b"".join(token.SerializeToString() for token in enrollment.tokens(page(0, ""))[0])


def test_pages_have_every_token_once_and_oldest_first(enrollment: Enrollment) -> None:
    made = [new_token(enrollment)[1] for _ in range(5)]
    found, after = [], ""
    while True:
        shown, after = enrollment.tokens(page(2, after))
        found += [token.id for token in shown]
        if not after:
            break
    assert found == made
    with pytest.raises(FieldInvalid, match="page_token"):
        enrollment.tokens(page(2, "0" * 16))


def test_a_withdrawn_token_enrols_nobody(enrollment: Enrollment) -> None:
    token, name = new_token(enrollment)
    revoked = enrollment.revoke_token(name)
    assert (revoked.state, revoked.HasField("revoke_time")) == (pb.JoinToken.STATE_REVOKED, True)
    assert enrollment.revoke_token(name) == revoked
    with pytest.raises(JoinTokenRefused, match="withdrawn") as raised:
        enroll(enrollment, token, "box")
    assert raised.value.facts["fault"] == "revoked"


def test_a_used_token_is_not_withdrawn_and_whose_it_is_is_said(enrollment: Enrollment) -> None:
    token, name = new_token(enrollment)
    enroll(enrollment, token, "box")
    with pytest.raises(JoinTokenRefused, match="used already, for box: `fednano certs revoke DIR client box`"):
        enrollment.revoke_token(name)


def test_only_an_id_names_a_token_and_a_secret_is_not_repeated(enrollment: Enrollment) -> None:
    token, name = new_token(enrollment)
    with pytest.raises(ResourceNotFound, match="token list"):
        enrollment.revoke_token("0" * 16)
    for wrong in ("", name[:15], token):
        with pytest.raises(FieldInvalid) as raised:
            enrollment.revoke_token(wrong)
        assert not wrong or wrong not in raised.value.message


@pytest.mark.parametrize("is_withdrawn", [True, False])
def test_a_name_is_free_again_once_its_token_is_good_for_nothing(enrollment: Enrollment, is_withdrawn: bool) -> None:
    promised, name = new_token(enrollment, "box", ttl_s=60.0 if is_withdrawn else 1e-6)
    if is_withdrawn:
        with pytest.raises(AlreadyExists):
            enroll(enrollment, new_token(enrollment)[0], "box")
        enrollment.revoke_token(name)
    assert enroll(enrollment, new_token(enrollment)[0], "box") == "box"
    with pytest.raises(JoinTokenRefused):
        enroll(enrollment, promised)


def test_the_database_keeps_the_digest_alone(enrollment: Enrollment, store: Store) -> None:
    token, name = new_token(enrollment)
    with store.transaction() as connection:
        (row,) = list_tokens(connection, limit=2)
    assert row.sha256.startswith(name)
    assert token not in repr(row)
