"""The report's section on shifts in the latent space, from the files of betaVAE_interpolation.py."""

from pathlib import Path

from common.errors import InputError
from figures.page import Section


def shift_section(folder: Path) -> Section:
    """Return the shifts found in `folder`; InputError where there are none."""
    raise InputError(f"{folder}: no shift in it")
