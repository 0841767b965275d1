"""Registers, spills and shared memory of the kernels, against the committed table."""

import pytest
from emulator.toolchain import find_ptxas, why_missing
from static_facts import ARCHITECTURES, COMMAND, all_launches, collect, header, occupancy, read


def why_no_ptxas():
    try:
        find_ptxas()
    except FileNotFoundError as error:
        return str(error)
    return why_missing()


def test_the_table_has_every_kernel_and_architecture():
    table = read()
    assert set(table) == set(all_launches()), f"to renew the table: {COMMAND}"
    assert all(["kernel", *row] == header() for row in table.values())


def test_no_kernel_spills_or_has_a_stack():
    assert {name: row for name, row in read().items() if row["spill_bytes"] or row["stack_bytes"]} == {}


@pytest.mark.skipif(why_no_ptxas() is not None, reason=str(why_no_ptxas()))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_is_what_ptxas_says(architecture):
    # Every third kernel, others on every architecture: each is assembled for two or three, in a third of the time.
    found, table = all_launches(), read()
    names = list(found)[list(ARCHITECTURES).index(architecture) % 3 :: 3]
    for name, facts in collect(names, architecture).items():
        row = table[name]
        assert (facts.spill_bytes, facts.stack_bytes) == (0, 0), name
        actual = facts.registers, facts.shared_bytes, occupancy(found[name], facts, ARCHITECTURES[architecture])
        columns = f"registers_sm_{architecture}", "static_shared_bytes", f"occupancy_percent_sm_{architecture}"
        assert actual == tuple(row[column] for column in columns), f"{name} changed; to renew the table: {COMMAND}"
