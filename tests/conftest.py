"""Options of the test suite, and what each of its processes has to itself (`pytest -n 2`)."""

import os
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each; before torch is imported, and for what tests start
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption(
        "--vectors",
        default=str(REPO.parent / "shared" / "parity"),
        help="folder of parity vectors: manifest.json and one .npz a case",
    )


def pytest_configure(config):
    """What a test writes without saying where goes to a folder of this process, never to the checkout."""
    folder = tempfile.TemporaryDirectory(prefix="runs-")
    os.environ["VTC_RUNS"] = folder.name
    config.add_cleanup(folder.cleanup)
