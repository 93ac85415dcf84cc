"""The example of a plug-in: it is built, installed and used, and its own test passes and can fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import seqbatch

SOURCE = Path(__file__).parents[2] / "docs" / "examples" / "plugin"
USE = """
import torch
from torch import nn
from delta_layer import Delta
from seqbatch import encode

model = nn.Sequential(nn.Linear(5, 3), Delta(3), nn.GRU(6, 4, bidirectional=True))
outputs = encode(model, [torch.randn(10, 5), torch.randn(0, 5), torch.randn(7, 5)])
print([tuple(output.shape) for output in outputs])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package and install it into a folder, and give the folder."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--no-input"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, SOURCE], check=True)
    return target


def start(folder: Path, installed: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start Python in a folder, where the package and seqbatch are installed."""
    path = [str(installed), str(Path(seqbatch.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True
    )


def test_it_is_used_by_installing_it(installed: Path, tmp_path: Path) -> None:
    output, errors = start(tmp_path, installed, "-c", USE).communicate()
    assert output == "[(10, 8), (0, 8), (7, 8)]\n", errors


def test_its_own_test_passes_and_fails_where_the_encoder_is_wrong(installed: Path, tmp_path: Path) -> None:
    right = (SOURCE / "tests" / "test_delta.py").read_text()
    wrong = "from seqbatch import register_encoder\nregister_encoder(Delta)(lambda layer, batch: batch.map(layer))\n"
    (tmp_path / "test_wrong.py").write_text(f"{right}\n\n{wrong}")
    # In its folder, where pytest must not load what the tests of seqbatch need.
    program = "import sys; sys.modules['sybil'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    runs = [  # at one time
        start(SOURCE, installed, "-B", "-c", program, "-q", "-p", "no:cacheprovider"),
        start(tmp_path, installed, "-m", "pytest", "-q", "test_wrong.py"),
    ]
    passed, failed = (run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 1], passed
    assert "Delta() breaks the law Alone on sequences of [1, 1] steps: Tensor-likes are not close" in failed
