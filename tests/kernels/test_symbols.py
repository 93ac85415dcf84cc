"""The symbols of the objects that are linked into the library of the kernels."""

import re
from pathlib import Path

from compiler import build, needs_compiler, run


@needs_compiler
def test_no_function_is_shared_by_instruction_sets(tmp_path: Path) -> None:
    """The linker keeps one of several weak functions, and that for AVX-512 would crash on an older processor."""
    build(tmp_path, "seqbatch_kernels")
    objects = [*tmp_path.rglob("recurrent.cpp.o")]
    assert "baseline" in {path.relative_to(tmp_path).parts[1].removesuffix(".dir") for path in objects}
    nm = run("c++", "-print-prog-name=nm").strip()
    for path in objects:
        symbols = run(nm, "--demangle", str(path))
        assert " T seqbatch::" in symbols
        assert re.findall(r" W (.*)", symbols) == []
