"""Builds the sdist and the wheels into `dist/`, checks them, and tries each in an empty environment.

`tox run -e packages -- 2.10.0 2.15.0` takes versions of torch. The steps are:

1. Build the sdist, a wheel with the kernels and, as on a machine without a C++ compiler, a wheel without them.
2. Check them by `twine` and `check-wheel-contents`, and by `abi3audit` that the library uses the limited API alone.
3. For each torch, install each into an environment that has only torch and attrs, and run `smoke.py` there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
HIDDEN = {"CXX": str(ROOT / "no-compiler")}  # CMake then finds no compiler, because this file does not exist
IN_USE, MISSING = "in use", "not built, because there was no C++ compiler"


def run(*command: str | Path, **environment: str) -> None:
    """Print a command, and run it in a folder without a checkout of seqbatch."""
    print("$", *command, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, **environment})


def build() -> tuple[Path, Path, Path]:
    """Build the sdist, the wheel with kernels and the wheel without; return their paths."""
    shutil.rmtree(DIST, ignore_errors=True)
    command = (sys.executable, "-m", "build", "--outdir", DIST)
    run(*command, ROOT)
    run(*command, "--wheel", ROOT, **HIDDEN)
    (sdist,), (pure,) = DIST.glob("*.tar.gz"), DIST.glob("*-py3-none-any.whl")
    compiled = [wheel for wheel in DIST.glob("*.whl") if wheel != pure]
    if not compiled:
        sys.exit("The wheel has no kernels, because there is no C++ compiler with OpenMP, or no headers of Python.")
    return sdist, compiled[0], pure


def smoke(python: Path, kernels: str, **environment: str) -> None:
    """Run the smoke test; `kernels` is what `python -m seqbatch` must say about them."""
    # torch itself warns if there is no numpy.
    warnings = ("-W", "error", "-W", "ignore:Failed to initialize NumPy")
    run(python, "-I", *warnings, ROOT / "packages" / "smoke.py", kernels, **environment)


def install_and_try(torch: str, sdist: Path, compiled: Path, pure: Path) -> None:
    """Install each package beside a version of torch, and run the smoke test."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        constraints = ROOT / "constraints.txt"
        install = (python, "-I", ROOT / "packages" / "install.py", "--quiet", "--constraint", constraints)
        build_constraint = {"PIP_CONSTRAINT": str(constraints)}  # for what the sdist needs to be built
        run(*install, f"torch=={torch}", compiled)
        smoke(python, IN_USE)
        smoke(python, "switched off", SEQBATCH_KERNELS="0")
        again = (*install, "--no-deps", "--force-reinstall", "--no-cache-dir")
        run(*again, sdist, **build_constraint)
        smoke(python, IN_USE)
        run(*again, sdist, **build_constraint, **HIDDEN)
        smoke(python, MISSING)
        run(*again, pure)
        smoke(python, MISSING)
        run(python, "-I", "-m", "pip", "check")


def main() -> None:
    """Run all steps for the versions of torch on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="+", help="a version of torch, such as 2.13.0")
    versions = parser.parse_args().torch
    packages = build()
    run(sys.executable, "-m", "twine", "check", "--strict", *packages)
    run(sys.executable, "-m", "check_wheel_contents", *packages[1:])
    run(sys.executable, "-m", "abi3audit", "--strict", "--verbose", packages[1])
    for version in versions:
        install_and_try(version, *packages)


if __name__ == "__main__":
    main()
