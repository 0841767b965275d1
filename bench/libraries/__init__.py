"""The libraries that are compared: one adapter a file, each answering a protocol of `base`."""

from bench.libraries.base import FitLibrary, PassLibrary, SweepLibrary
from bench.libraries.cuda import Cuml, ScikitLearnOnCupy
from bench.libraries.floors import ReadOnce, TwoGemms
from bench.libraries.jax_jit import Jax
from bench.libraries.linear_cross_entropy import KERNELS, LinearCrossEntropy
from bench.libraries.naive import Naive
from bench.libraries.ours import Ours
from bench.libraries.ours_sweep import OursOneByOne, OursTogether
from bench.libraries.ours_to_targets import OursToTargets
from bench.libraries.pytorch import PyTorch
from bench.libraries.pytorch_lbfgs import PyTorchLBFGS
from bench.libraries.scikit_learn import ScikitLearn
from bench.libraries.scikit_learn_sweep import ScikitLearnCV, ScikitLearnLoop

OURS, SCIKIT_LEARN, PYTORCH, GEMMS, READ = Ours(), ScikitLearn(), PyTorch(), TwoGemms(), ReadOnce()
ONE_THREAD = ScikitLearn("scikit-learn, 1 thread", limit=1)
COMPILED = PyTorch("PyTorch compiled", is_compiled=True)
TOGETHER, TO_TARGETS, LOOP = OursTogether(), OursToTargets(), ScikitLearnLoop()
LOOP_ON_ONE_THREAD = ScikitLearnLoop("scikit-learn, 1 thread", limit=1)

PASS: tuple[PassLibrary, ...] = (
    OURS,
    SCIKIT_LEARN,
    ONE_THREAD,
    PYTORCH,
    COMPILED,
    LinearCrossEntropy("PyTorch linear_cross_entropy", "cpu"),
    Jax(),
    Naive(),
    GEMMS,
    READ,
    Ours("gpusoftmax CUDA", "cuda"),
    PyTorch("PyTorch CUDA", "cuda"),
    *(LinearCrossEntropy(kernel) for kernel in KERNELS),
)
FIT: tuple[FitLibrary, ...] = (
    OURS,
    SCIKIT_LEARN,
    ONE_THREAD,
    ScikitLearn("scikit-learn newton-cg", "newton-cg"),
    ScikitLearn("scikit-learn newton-cholesky", "newton-cholesky"),
    PyTorchLBFGS(),
    Ours("gpusoftmax CUDA", "cuda"),
    ScikitLearnOnCupy(),
    Cuml(),
    PyTorchLBFGS("PyTorch LBFGS CUDA", "cuda"),
)
SWEEP: tuple[SweepLibrary, ...] = (
    TOGETHER,
    OursOneByOne(),
    LOOP,
    TO_TARGETS,
    LOOP_ON_ONE_THREAD,
    ScikitLearnLoop("scikit-learn, 1 thread, tol=1e-6", limit=1, tol=1e-6),
    ScikitLearnCV(),
    OursTogether("gpusoftmax CUDA", "cuda"),
    OursOneByOne("SoftmaxRegression CUDA, one by one", "cuda"),
)
