"""A test of the tests: each seeded bug of `host_mutants` is seen, and by the detector that should see it."""

import sys

import pytest
from cuda_emulation import NO_NVRTC
from host_mutants import CONTROL, MUTANTS, SCENARIOS, detector

pytestmark = pytest.mark.skipif(NO_NVRTC is not None, reason=str(NO_NVRTC))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_seen(mutant):
    assert detector(mutant) == mutant.detector


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_unchanged_source_is_not_accused(scenario):
    assert detector(CONTROL, scenario) is None


def test_a_mutant_leaves_the_package_as_it_was():
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "gpusoftmax"}
    detector(MUTANTS[0])
    after = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "gpusoftmax"}
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items())


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
