"""The kernels under the sanitizers of the compiler: the C++ programs of this folder are built and run."""

from pathlib import Path

from compiler import build, needs_compiler, run


@needs_compiler
def test_kernels_equal_plain_loops_without_an_error_of_memory(tmp_path: Path) -> None:
    programs = ("attention_test", "recurrent_test", "rows_test")
    # Little optimization, because sanitizers make the compiler slow.
    build(tmp_path, *programs, SEQBATCH_TEST="ON", CMAKE_BUILD_TYPE="Test", CMAKE_CXX_FLAGS="-O1 -g1")
    for program in programs:
        # The memory of OpenMP threads that are left is not a leak. The program asks for more memory than there is.
        options = "detect_leaks=0:allocator_may_return_null=1"
        run(str(tmp_path / program), OMP_WAIT_POLICY="passive", ASAN_OPTIONS=options)
