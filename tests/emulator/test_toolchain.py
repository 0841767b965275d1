"""NVRTC and ptxas work without a driver."""

import sys

import pytest

from emulator import toolchain

SOURCE = """
template <typename T> __global__ void __launch_bounds__(64) k(T* out)
{
    __shared__ T s[64]; s[threadIdx.x] = out[threadIdx.x]; __syncthreads(); out[threadIdx.x] = s[63 - threadIdx.x];
}
"""


@pytest.fixture
def ptxas():
    """Skip, with the reason, where ptxas is not installed."""
    try:
        return toolchain.find_ptxas()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_name_expressions_are_lowered(nvrtc):
    code = toolchain.compile_ptx(SOURCE, ("k<float>", "k<double>"), "compute_80")
    assert ".target sm_80" in code.ptx
    assert len(set(code.symbols.values())) == 2
    assert all(f".entry {symbol}(" in code.ptx for symbol in code.symbols.values())


def test_nvrtc_has_no_headers(nvrtc):
    with pytest.raises(toolchain.CompileError, match="INFINITY"):
        toolchain.compile_ptx('extern "C" __global__ void k(float* out) { out[0] = INFINITY; }', ("k",))


def test_ptxas_reports(nvrtc, ptxas):
    code = toolchain.compile_ptx(SOURCE, ("k<double>",))
    facts = toolchain.ptxas_facts(code.ptx, "sm_90")[code.symbols["k<double>"]]
    assert facts.shared_bytes == 512
    assert facts.spill_bytes == facts.stack_bytes == 0
    assert 4 < facts.registers < 64


def test_ptxas_sees_spills(nvrtc, ptxas):
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) k(const float* x, float* out)
    {
        float v[96];
        #pragma unroll
        for (int j = 0; j < 96; ++j) v[j] = x[j * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int j = 0; j < 96; ++j) out[j * 1024 + threadIdx.x] = v[95 - j] * v[j];
    }"""
    code = toolchain.compile_ptx(source, ("k",))
    assert toolchain.ptxas_facts(code.ptx, "sm_90")["k"].spill_bytes > 0


def test_ptx_that_does_not_assemble(ptxas):
    with pytest.raises(toolchain.CompileError):
        toolchain.ptxas_facts(".version 8.0\n.target sm_90\n.address_size 64\nnonsense", "sm_90")


def test_why_missing_says_why(monkeypatch):
    toolchain._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    assert toolchain.why_missing().startswith("NVRTC cannot be loaded: ")
    monkeypatch.undo()
