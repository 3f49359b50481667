"""What the tests share: where the real data lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real slides, tiles and tables; without it the test is skipped, with the reason."""
    folder = Path(os.environ.get("RNAGAN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set RNAGAN_TEST_DATA to its folder")
    return folder
