"""What the tests share: where real data lies, and one thread per process so that results do not depend on the machine."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real slides, tiles and tables; a test that needs it is skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("RNAGAN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set RNAGAN_TEST_DATA to its folder")
    return folder
