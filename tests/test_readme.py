"""The README and the shipped configs are true: every printed line is a tested one, every key is a setting."""

import importlib
import re
import shlex

import pytest
from conftest import ROOT
from test_pipeline import COMMANDS

from common.config import BetaVAESettings, GANSettings, load_config
from models.gan_settings import check_gan_settings, resolve_gan_settings

README = (ROOT / "README.md").read_text()
CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_shipped_config_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cls = BetaVAESettings if "betavae" in path.name else GANSettings
    cfg = load_config(cls, path)
    assert cfg.rna_features == (0 if path.parent.name in ("spots", "ablation") else 19198)
    assert cfg.split_seed == 99 and cfg.save_dir.removeprefix("demo/").startswith("checkpoints/")
    if cls is GANSettings:
        resolve_gan_settings(cfg)
        check_gan_settings(cfg, str(path))


def test_there_are_corrected_and_published_configs():
    names = {p.name for p in CONFIGS if p.parent.name == "configs"}
    published = {p.name for p in CONFIGS if p.parent.name == "reference"}
    assert published < names and len(published) == 4
    assert {name.split("_")[0] for name in names - published} == {"residual"}  # there is no published one


def test_the_readme_prints_the_28_lines_that_are_tested():
    printed = re.findall(r"^python3 (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(COMMANDS) == 28 and [line for line in printed if line in COMMANDS] == [*COMMANDS]


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^python3 (\S+\.py .*)$", README, re.MULTILINE))))
def test_every_printed_line_is_understood_by_its_command(line):
    script, *words = shlex.split(line)
    importlib.import_module(script.removesuffix(".py")).build_parser().parse_args(words)


def test_the_readme_names_every_command_and_every_picture_is_there():
    text = (ROOT / "README.md").read_text()
    assert all(p.name in text for p in ROOT.glob("*.py"))
    assert all((ROOT / picture).is_file() for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    assert "@@" not in text
