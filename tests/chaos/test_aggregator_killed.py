"""SIGKILL of the aggregator at each phase of a run: it goes on where it was, to the bits of an undisturbed run."""

from pathlib import Path

import pytest
from chaos_run import assert_undisturbed, run_federation
from sight import Phase

# In the order in which a run comes by them. A short phase that was missed is met in a later round.
SHORT_FORM = (
    Phase.WAITING,
    Phase.UPLOADING,
    Phase.BEFORE_MERGE,
    Phase.MERGING,
    Phase.BETWEEN_ROUNDS,
    Phase.AFTER_LAST,
)
pytestmark = pytest.mark.timeout(300)


async def test_a_run_killed_phase_after_phase_ends_with_the_same_adapter(
    tmp_path: Path, undisturbed_digest: str
) -> None:
    outcome = await run_federation(tmp_path, SHORT_FORM)
    assert_undisturbed(outcome, undisturbed_digest)
    assert "resumed" in {what for what, _ in outcome.journal}, "no upload went on where the kill had broken it"


@pytest.mark.chaos
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
async def test_a_run_killed_twice_at_one_phase_ends_with_the_same_adapter(
    tmp_path: Path, undisturbed_digest: str, phase: Phase
) -> None:
    assert_undisturbed(await run_federation(tmp_path, (phase, phase)), undisturbed_digest)
