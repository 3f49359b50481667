"""What the tests share: where the real data lies, and a small demo cohort cut into tables and tiles."""

import importlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks: a second thread waits more than it works
threadpool_limits(int(os.environ["OMP_NUM_THREADS"]), "blas")  # a plugin of pytest may have loaded numpy before us
os.environ["RNAGAN_FEATURE_CACHE"] = "none"  # tests compute what they check, and leave nothing in the user's home

from common.errors import run_command  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real slides, tiles and tables; without it the test is skipped, with the reason."""
    folder = Path(os.environ.get("RNAGAN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set RNAGAN_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[[str], int]:
    """Run one command line, as a user would type it, through main() in this process; returns the exit status."""

    def run(line: str) -> int:
        name, *words = shlex.split(line)
        module = importlib.import_module(name.removesuffix(".py"))
        return run_command(module.main, module.build_parser(), words)

    return run


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory, command: Callable[[str], int]) -> Path:
    """A folder with a demo cohort of 24 donors (512 px slides), its tables in data/ and its stores in tiles/."""
    root = tmp_path_factory.mktemp("cohort")
    here = Path.cwd()
    os.chdir(root)
    try:
        from datasets.demo import make_demo

        make_demo("demo", seed=99, n_donors=24, slide_px=512, progress=False)
        rna = "--input demo/rna/gene_tpm.gct.gz --attributes demo/rna/SampleAttributesDS.txt"
        rna += " --phenotypes demo/rna/SubjectPhenotypesDS.txt --genes demo/rna/protein_coding_genes.csv"
        for tissue, name in (("lung", "Lung"), ("brain", "Brain - Cortex")):
            line = f"prepare_data.py expression {rna} --tissue '{name}' --slides demo/slides/{tissue}"
            assert command(f"{line} --out data/{tissue}.csv") == 0
            line = f"prepare_data.py tiles --slides demo/slides/{tissue} --out tiles/{tissue} --workers 0"
            line += " --mpp_table demo/mpp_table.csv --mpp 0.5 --tile_size 128 --max_tiles 12"
            planted = {"lung": 0, "brain": 3}  # one brain slide is cut short on purpose
            assert command(line) == planted[tissue]
    finally:
        os.chdir(here)
    return root
