"""Options of the test suite."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption(
        "--vectors",
        default=str(REPO.parent / "shared" / "parity"),
        help="folder of parity vectors: manifest.json and one .npz a case",
    )
