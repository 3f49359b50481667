"""The report's last section: every setting of every run, as the run folders hold them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import read_json
from figures.page import Section, heading, note, table


def settings_section(folder: Path, digests: Mapping[str, str]) -> Section:
    """Return one table for the beta-VAE and one for the GANs, a column per run; `digests`: run name -> digest.

    InputError where `folder`/checkpoints holds no run.
    """
    paths = sorted((folder / "checkpoints").glob("*/config.json"))
    if not paths:
        raise InputError(f"{folder / 'checkpoints'}: no run with a config.json in it")
    runs = {path.parent.name: read_json(path) for path in paths}
    blocks, silent = [], {name: digest for name, digest in digests.items() if name not in runs}
    for title, chosen in (
        ("beta-VAE", {k: v for k, v in runs.items() if "encoder_sizes" in v}),
        ("GANs", {k: v for k, v in runs.items() if "encoder_sizes" not in v}),
    ):
        if not chosen:
            continue
        keys = list(dict.fromkeys(k for settings in chosen.values() for k in settings))
        rows = [["digest of the checkpoint", *(digests.get(name, "not finished") for name in chosen)]]
        rows += [[key, *(_text(settings.get(key)) for settings in chosen.values())] for key in keys]
        caption = "As written to each run's config.json; sources of the defaults: common/config.py."
        blocks += [heading(title), table(["setting", *chosen], rows, caption, settings=True)]
    if silent:
        names = ", ".join(f"{name} (digest {digest})" for name, digest in silent.items())
        blocks.append(note(f"Settings not known, as no config.json stands beside the checkpoint: {names}."))
    return Section("settings", "Every setting, n and digest", "", blocks)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value in ("", None) else str(value)
