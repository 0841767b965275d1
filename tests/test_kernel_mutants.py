"""A test of the tests: each seeded bug of `cuda_mutants` is seen, and by the detector that should see it."""

import pytest
from cuda_emulation import NO_NVRTC
from cuda_mutants import CONTROL, MUTANTS, RUNS, detector

pytestmark = pytest.mark.skipif(NO_NVRTC is not None, reason=str(NO_NVRTC))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_seen(mutant):
    assert detector(mutant) == mutant.detector


@pytest.mark.parametrize("run", RUNS)
def test_the_unchanged_source_is_not_accused(run):
    assert detector(CONTROL, (run,)) is None


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
