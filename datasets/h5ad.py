"""AnnData files (.h5ad), ours and others', opened with one line for what may be wrong with them."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def open_h5ad(path: str | Path) -> "AnnData":
    """Return the file's content. InputError where it is missing, or no AnnData file."""
    import anndata

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; a table was expected")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"{path}: not a readable h5ad file ({reason}); download or make it again") from None
