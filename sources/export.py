"""A trained model for others: safetensors, its settings, and a model card that says what is known of it.

The card names no donor: counts, digests and settings only, paths without their folders. config.json beside it keeps the
state as the checkpoint has it, with the SHA-256 of each training donor's name, so that held-out donors stay checked: it
has no salt, and whoever has a list of names can try them.
"""

import json
from pathlib import Path
from typing import Any

from common.checkpoint import content_digest, load_checkpoint, resolve_checkpoint
from common.errors import InputError, warn
from common.exported import write_exported
from common.files import read_json
from models.published import open_published
from sources.gan import EXPORTED_VAE, GAN, open_gan
from sources.vae import NOTHING, Fit, open_vae

PATHS = ("path_csv", "patch_data_path", "phenotypes", "save_dir", "image_dir", "vae_checkpoint", "fit_scaler")
FOUND_IN = ("conditioning/*/metrics.json", "fid/*/metrics.json", "metrics.json")
LICENCE = "not stated; whoever publishes this model states it here, after the terms of the data it was trained on"


def export_model(
    path: str | Path, out: str | Path, vae_path: str | Path | None = None, fit: Fit = NOTHING
) -> list[Path]:
    """Write the GAN or beta-VAE at `path` into the folder `out`; return the weights' files, read back and compared.

    An RNA-GAN's beta-VAE (`vae_path`, else the one that its run names) goes to <out>/betavae where it is found: without
    it an RNA-GAN draws tiles of no profile. `fit`: what a published beta-VAE gets its scaler from. InputError where the
    file is another kind of checkpoint, or the beta-VAE not the one that the GAN was trained with.
    """
    file = resolve_checkpoint(path)
    published = open_published(file)
    kind = published.kind if published else _kind_of(file)
    if kind == "betavae":
        vae, digest = open_vae(file, "cpu", fit)
        return [_write(Path(out), kind, vae.state, digest, file)]
    gan = open_gan(file)
    vae = _vae_of(gan, out, vae_path, fit) if gan.conditional else None
    written = [_write(Path(out), kind, gan.state, gan.digest, file)]
    if vae is not None:
        written.append(_write(Path(out, EXPORTED_VAE), "betavae", *vae))
    return written


def _vae_of(
    gan: GAN, out: str | Path, vae_path: str | Path | None, fit: Fit
) -> tuple[dict[str, Any], str, Path] | None:
    """Return state, digest and file of the GAN's beta-VAE; None, with a warning, where it is not found."""
    try:
        beside = vae_path or gan.own_vae()
        vae, digest = open_vae(beside, "cpu", fit)
    except InputError as error:
        if vae_path:
            raise
        warn(f"{out}: without the beta-VAE, name it with --vae_checkpoint: {error}")
        return None
    gan.refuse_other_vae(vae, digest, beside)
    return vae.state, digest, resolve_checkpoint(beside)


def _kind_of(file: Path) -> str:
    state, _ = load_checkpoint(file)
    for key, kind in (("generator_args", "gan"), ("model_args", "betavae")):
        if key in state:
            return kind
    raise InputError(f"{file}: a GAN's <run>.model or a beta-VAE's best.pt was expected; name one, or its run folder")


def _write(out: Path, kind: str, state: dict[str, Any], known_as: str, file: Path) -> Path:
    """Write the folder and read it back. InputError where the two differ."""
    digest = content_digest(state)
    path = write_exported(out, kind, digest, state, model_card(out.resolve().name, kind, state, known_as, file))
    load_checkpoint(path, kind)
    return path


def model_card(name: str, kind: str, state: dict[str, Any], digest: str, file: Path) -> str:
    """Return README.md of the exported model: what it is, of which data, its settings, what was measured, how to load.

    `digest` is the one by which metrics know the model; they are looked for beside the run of `file` and in the working
    folder, and taken where they name that digest.
    """
    settings = {k: _last_names(v) if k in PATHS else v for k, v in state["settings"].items() if v not in ("", [], None)}
    found = _in_training(state) + measured(digest, file)
    parts = [
        "---\nlicense: other\nlicense_name: to-be-stated\ntags: [histology, gene-expression, synthetic-data]\n---",
        f"# {name}",
        _what(kind, state),
        "Synthetic tiles and profiles are for research. They are no patient's, and nothing may be diagnosed from them.",
        "## Data",
        "\n".join(f"- {line}" for line in _data(state, digest, file)),
        "## Measured",
        "\n".join(f"- {line}" for line in found) or "Nothing was found beside the run.",
        "## Settings",
        f"```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```",
        "## Use",
        _use(kind, state),
        f"## Licence\n\n{LICENCE[0].upper()}{LICENCE[1:]}.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(kind: str, state: dict[str, Any]) -> str:
    origin = " Its weights are those of a file of the published code (RNA-GAN)." if "published" in state else ""
    if kind == "betavae":
        args, scaler = state["model_args"], state["scaler"]
        return (
            f"A beta-VAE of bulk gene expression: {args['n_genes']} genes in {state['unit']}, {scaler['transform']}, "
            f"z-score; encoder {'-'.join(map(str, args['encoder_sizes']))}, latent {args['latent_dim']}, decoder "
            f"{'-'.join(map(str, args['decoder_sizes']))}. Genes' order, scaler and latent statistics included.{origin}"
        )
    args, mpp = state["generator_args"], state["mpp"]
    kinds = "An RNA-GAN: noise and a bulk RNA-seq profile to" if state["conditional"] else "A GAN: noise to"
    size = f"tiles of {state['img_size']} px" + (f" at {mpp:g} um per pixel" if mpp else "")
    rule = f"noise {args['noise']}, standardise {args['standardise']}, condition {args['condition'] or 'add'}"
    epoch = "" if state["epoch"] is None else f" after {state['epoch']:.4g} epochs"
    cancels = "\n\nIts published rule cancels the profile: of one profile tiles cannot depend on it."
    loss = state["settings"].get("loss_type")
    text = f"{kinds} {size}. Network {args['gan_type']}, loss {loss}{epoch}; {rule}.{origin}"
    return text + (cancels if state["conditional"] and args["standardise"] == "batch" else "")


def _data(state: dict[str, Any], digest: str, file: Path) -> list[str]:
    """Return what is known of the data, without a donor's name."""
    donors, rows = state.get("trained_donors"), state.get("trained_on")
    lines = [f"this model: {digest}"]
    if state.get("vae_digest"):
        lines.append(f"its beta-VAE: {state['vae_digest']}")
    run = file.with_name("config.json")
    config = read_json(run) if run.is_file() else {}
    if isinstance(config, dict) and config.get("cohort_digest"):
        lines.append(f"slides, tiles and profiles that it was trained on: {config['cohort_digest']}")
    if "genes" in state:
        lines.append(f"{len(state['genes'])} genes and their order: {content_digest(state['genes'])}")
        tissues = ", ".join(f"{name} (n = {part['n']})" for name, part in state["by_tissue"].items())
        lines.append(f"profiles of training donors, by tissue: {tissues}")
    elif state["tissues"]:
        lines.append(
            f"tissues: {', '.join(state['tissues'])}; {state.get('tiles')} tiles of {state.get('donors')} donors"
        )
    if donors is None:
        lines.append("who trained it: not known, so no donor can be called held out")
    else:
        lines.append(
            f"{len(donors)} training donors (with those of its beta-VAE), {len(rows or [])} rows: "
            f"{content_digest(donors)}. config.json holds the SHA-256 of each name, no name; it has no salt, so "
            "whoever has a list of donors (GTEX's and TCGA's are public) can try them and learn who is among these"
        )
    if state.get("split_seed") is not None:
        share = "64 % train, 16 % val, 20 % test"
        lines.append(f"split by donor: {share}, by a hash of split_seed {state['split_seed']} and the donor's name")
    if "published" in state:
        lines.append(f"published file: {json.dumps(state['published'])}")
    return lines


def measured(digest: str, file: Path) -> list[str]:
    """Return a line for each metrics.json that names the model's digest, in the run, beside it or in this folder.

    A warning where one cannot be read, or names the model and does not have what this version writes.
    """
    found: dict[Path, list[str]] = {}
    for folder in (file.parent, file.parent.parent.parent, Path()):
        for path in sorted(p.resolve() for pattern in FOUND_IN for p in folder.glob(pattern)):
            if path not in found:
                found[path] = []
                try:
                    found[path] = _lines(read_json(path), digest)
                except InputError as error:
                    warn(f"not in the model card: {error}")
                except KeyError as error:
                    warn(f"not in the model card: {path}: names this model, but has no {error}; measure it again")
    return [line for lines in found.values() for line in lines]


def _lines(metrics: Any, digest: str) -> list[str]:
    """Return what a metrics.json says of the model, nothing where it is of others. KeyError where a key is missing."""
    if not isinstance(metrics, dict):
        return []
    if metrics.get("vae_digest") == digest and "test" in metrics:
        return [
            f"reconstruction of held-out donors, {group} (n = {methods['profiles']} of {methods['donors']} donors), "
            f"mean squared error in {metrics['unit']}: "
            + "; ".join(f"{m} {v['mse']:.3f}" for m, v in methods.items() if isinstance(v, dict))
            for group, methods in metrics["test"].items()
        ]
    if _digest_of(metrics.get("gan")) == digest:
        return [f"does it follow the expression? Split {metrics['split']}: {metrics['summary']}"]
    sources = metrics.get("sources")
    if not isinstance(sources, dict) or not (own := {k for k, v in sources.items() if _digest_of(v) == digest}):
        return []
    extractor = metrics["extractor"]
    return [
        f"{_side(sources[pair['a']])} against {_side(sources[pair['b']])}, n = "
        f"{pair['n_a']} and {pair['n_b']}, {len(pair['draws'])} draws, {extractor['name']} "
        f"({extractor['weights_digest'][:8]}): "
        + ", ".join(f"{m.upper()} {pair[m]['mean']:.4g} (sd {pair[m]['sd']:.2g})" for m in ("fid", "kid") if pair[m])
        for pair in metrics["pairs"]
        if own & {pair["a"], pair["b"]}
    ]


def _digest_of(described: Any) -> Any:
    return described.get("digest") if isinstance(described, dict) else None


def _in_training(state: dict[str, Any]) -> list[str]:
    """Return a line with what a GAN's best.model was chosen by."""
    found = state.get("validation") or {}
    if "kid" not in found:
        return []
    return [
        f"in training, tiles of validation donors, n = {found['kid_n']} drawn and {found['kid_n_real']} real, "
        f"{found['kid_extractor']} ({found['kid_weights'][:8]}): KID {found['kid']:.4g}, by which it was chosen, the "
        "least of the run's: it flatters the model"
    ]


def _side(source: dict[str, Any]) -> str:
    """Return what a side of a distance is; its label may name a patient."""
    one = source.get("patient") or len(source.get("profiles") or []) == 1
    return f"{source['kind']} {source.get('run') or ''}".strip() + (" (of one patient)" if one else "")


def _use(kind: str, state: dict[str, Any]) -> str:
    if kind == "gan":
        command = "generate_tissue_images.py --checkpoint THIS_FOLDER --config configs/gan_run_lung.json"
        command += " --patient1 SAMPLE" if state["conditional"] else ""
    else:
        command = "betaVAE_sample.py --vae_checkpoint THIS_FOLDER --config configs/betavae_tissues.json"
    return (
        "With the RNA-GAN toolkit, wherever it takes a checkpoint:\n\n"
        f"```bash\npython3 {command}\n```\n\n"
        "Without it: `safetensors.torch.load_file('model.safetensors')` gives the tensors, named by their place in the "
        "state; config.json holds the rest (for the network's arguments see "
        f"`{'model_args' if kind == 'betavae' else 'generator_args'}`)."
    )


def _last_names(value: Any) -> Any:
    return [_last_names(item) for item in value] if isinstance(value, list) else Path(str(value)).name
