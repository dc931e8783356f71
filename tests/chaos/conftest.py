"""What the chaos tests compare with."""

import asyncio

import pytest
from chaos_run import assert_undisturbed, run_federation


@pytest.fixture(scope="session")
def undisturbed_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final adapter's digest of a run of paced clients that nothing has happened to."""
    found = asyncio.run(run_federation(tmp_path_factory.mktemp("undisturbed")))
    assert_undisturbed(found, found.digest)
    return found.digest
