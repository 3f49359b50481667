"""AnnData files (.h5ad): ours and others' opened, with one line for what may be wrong with them, and ours written."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.archives import refuse_false_hdf5
from common.errors import InputError
from common.files import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData


def open_h5ad(path: str | Path) -> "AnnData":
    """Return the file's content. InputError where it is missing, or no AnnData file."""
    import anndata

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; a table was expected")
    try:
        refuse_false_hdf5(path)
        return anndata.read_h5ad(path)
    except InputError:
        raise
    except Exception as error:  # anndata says each kind of a file that is HDF5 and no AnnData
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable h5ad file ({reason}); download or make it again") from None


def write_h5ad(path: str | Path, values: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, str]) -> None:
    """Write `values` (len(obs), len(var)) as an AnnData file, whole or not at all; OSError where the disk is full.

    The file is made in memory, so that HDF5, which may crash after a failed write, never meets one. Peak: the file's
    size, 4 bytes per value, beside `values`: 1.3 GB for all of GTEx, 17,382 x 19,198.
    """
    import anndata
    import h5py
    from anndata.io import write_elem

    data = anndata.AnnData(values, obs=obs, var=var, uns=uns)
    data.strings_to_categoricals()  # as its own write_h5ad does
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_elem(file, "/", data)
    with atomic_path(path) as partial:
        partial.write_bytes(content.getbuffer())
