"""Checkpoints of the published code, as our networks take them.

beta-VAE   torch.save of a state_dict: encoder.encoder.<i>.0 and .1 (linear, batch norm; i from 1, 0 is the dropout),
           z_mu, z_logvar, decoder.<i>.0 and .1 (the last without norm). RNA-GAN src/betaVAE.py at 75dc998: blocks
           Linear-BatchNorm-LeakyReLU(0.01), tanh at the end of the decoder, z as wide as the encoder's last layer.
           Weights only: the genes' order, the scaler and the unit are not in it.
GAN        torchgan 0.1.0's trainer, save_model: a dict of epoch, loss_information, loss_objects, metric_objects,
           loss_logs, and a state_dict each of generator, discriminator and their optimisers. Of the loss objects, which
           are whole objects with a whole beta-VAE each in an RNA-GAN, it is only looked up that they have one, and its
           vectors (biases, batch norm) for a mark. It is read where no other beta-VAE is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import content_digest
from common.errors import InputError
from common.torch_files import OURS, TorchFile, open_torch_file
from common.torch_pickle import Opaque, Stored
from models.betavae import BetaVAE
from models.dcgan import DCGANGenerator

VAE_START, GENERATOR_START = "encoder.encoder.1.0.", "model.0.0."
MAX_BLOCKS = 16  # of a network: 4 px doubled so often is 262,144 px
MAX_WIDTH = 1 << 17  # rows or columns of a layer
MAX_WALK = 200_000  # values looked at among the loss objects
MAX_PARTS = 10_000  # modules and tensors of a beta-VAE in them, which has some dozens
MAX_PREFIX = 1000  # characters of where a module is
NAMES = {"betavae": "a beta-VAE", "gan": "a GAN"}


@dataclass
class Published:
    """A file of the published code; kind: betavae or gan."""

    file: TorchFile
    kind: str

    def of_kind(self, kind: str, remedy: str) -> "Published":
        """Return itself. InputError where it is of another kind."""
        if self.kind != kind:
            raise InputError(
                f"{self.file.path}: holds {NAMES[self.kind]} of the published code, {NAMES[kind]} was expected; "
                f"{remedy}"
            )
        return self

    def betavae(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        """Return model_args and what `weights` reads for models.betavae.BetaVAE: the file's, or what an RNA-GAN's has.

        InputError where they do not fit, or a GAN's file holds none.
        """
        described, path = self.file.value, str(self.file.path)
        if self.kind == "gan" and (described := vae_inside(described.get("loss_objects"), path)[0]) is None:
            self.of_kind("betavae", "name it with --checkpoint, and the beta-VAE with --vae_checkpoint")
        return betavae_names(described, path)

    def weights(self, names: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
        """Return name -> tensor, fp32. InputError where the file cannot hold it, or one is NaN or infinite."""
        return _finite(self.file.tensors(names), self.file.path)

    def gan(self, expression: bool = False) -> dict[str, Any]:
        """Return the state of a checkpoint of kind "gan", as far as the file tells: None or empty where it does not.

        Conditional where the loss objects hold a beta-VAE; `expression` says so where there are no loss objects at all.
        Its rule is the published one: noise + z, standardised over the tiles drawn together (models/conditioning.py).
        vae_mark: `weights_mark` of that beta-VAE. InputError where the generator is none of torchgan's DCGANGenerator
        with batch norm and three colours.
        """
        value, path = self.file.value, self.file.path
        args, names = generator_names(_without_prefix(value.get("generator", value)), str(path))
        losses = value.get("loss_objects")
        vae, classes = vae_inside(losses, str(path))
        conditional = bool(classes and any("VAE" in name for name in classes)) or (not losses and expression)
        args |= {"gan_type": "dcgan", "depth": 1, "cond_dim": 128, "condition_share": 0.5, "condition": "add"}
        args |= {"latent_dim": args["encoding_dims"] if conditional else 0, "first_side": 0}
        args |= {"noise": "uniform" if conditional else "normal", "standardise": "batch" if conditional else "train"}
        weights = {f"network.{k}": v for k, v in self.weights(names).items()}
        if conditional:
            weights["null"] = torch.zeros(args["latent_dim"])
        epoch = value.get("epoch")
        return {
            "generator_args": args,
            "generator": weights,
            "settings": {"loss_type": ", ".join(classes) or "unknown", "gan_type": "dcgan", "vae_checkpoint": ""},
            "conditional": conditional,
            "vae_digest": None,
            "vae_mark": self._mark(vae) if vae else None,
            "latent": None,
            "gene_coverage": None,
            "tissues": [],
            "img_size": args["out_size"],
            "mpp": None,
            "epoch": epoch if isinstance(epoch, int) else None,
            "split_seed": None,
            "published": {"form": "torchgan trainer", "loss_objects": classes},
        }

    def _mark(self, vae: dict[str, Any]) -> str | None:
        try:
            _, names = betavae_names(vae, str(self.file.path))
        except InputError:
            return None  # a beta-VAE of another form: nothing to compare with
        return weights_mark(self.weights({k: v for k, v in names.items() if len(v.size) == 1}))


def open_published(path: str | Path) -> Published | None:
    """Return the file if it is one of the published code; None where it is ours, or nothing of the kind.

    InputError where torch.save wrote it, but what it describes cannot be (common/torch_files.py).
    """
    if Path(path).suffix == ".safetensors" or (file := open_torch_file(path)) is None:
        return None
    value = file.value
    if not isinstance(value, dict) or set(value) == OURS:
        return None
    if isinstance(value.get("generator"), dict) or any(k.startswith(GENERATOR_START) for k in _without_prefix(value)):
        return Published(file, "gan")
    return Published(file, "betavae") if any(isinstance(k, str) and k.startswith(VAE_START) for k in value) else None


def betavae_names(described: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return model_args and our name -> tensor of a published state_dict. InputError where it is none."""
    encoder, decoder = (
        _blocks(described, prefix, first) for prefix, first in (("encoder.encoder.", 1), ("decoder.", 0))
    )
    if not encoder or len(decoder) < 2:
        raise InputError(f"{where}: no encoder.encoder.1.0.weight or decoder.0.0.weight: not the published beta-VAE")
    args = {
        "n_genes": encoder[0][1],
        "encoder_sizes": [rows for rows, _ in encoder],
        "decoder_sizes": [rows for rows, _ in decoder[:-1]],
        "latent_dim": decoder[0][1],
        "input_dropout": 0.5,
        "decoder_output": "tanh",
    }
    renamed = {}
    for key, value in described.items():
        words = str(key).split(".")
        if words[:2] == ["encoder", "encoder"] and len(words) == 5:
            words = ["encoder", _place(words[2], words[3], -2), words[4]]
        elif words[0] == "decoder" and len(words) == 4:
            words = ["decoder", _place(words[1], words[2], 0), words[3]]
        renamed[".".join(words)] = value
    with torch.device("meta"):
        network = BetaVAE(**args)
    _refuse_other_shapes(renamed, network, where, "the published beta-VAE")
    return args, renamed


def generator_names(described: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Return encoding_dims, out_size, step_channels and name -> tensor of torchgan's DCGANGenerator, by its shapes."""
    weights = [described.get(f"model.{block}.0.weight") for block in range(MAX_BLOCKS)]
    weights = weights[: weights.index(None)] if None in weights else weights
    known = [w for w in weights if isinstance(w, Stored) and len(w.size) == 4 and max(w.size) <= MAX_WIDTH]
    if len(known) < 3 or known != weights:
        raise InputError(f"{where}: its generator is none of torchgan's DCGANGenerator, the only one that is known")
    dims, step = weights[0].size[0], weights[-1].size[0]
    args = {"encoding_dims": dims, "out_size": 4 * 2 ** (len(weights) - 1), "step_channels": step}
    with torch.device("meta"):
        network = DCGANGenerator(**args)
    _refuse_other_shapes(described, network, where, "torchgan's DCGANGenerator with batch norm and three colours")
    return args, dict(described)


def weights_mark(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of the vectors among a beta-VAE's weights: tells one training from another without the rest."""
    return content_digest({name: value for name, value in weights.items() if value.ndim == 1})


def vae_inside(losses: Any, where: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the first beta-VAE among described loss objects as name -> tensor, None without one; and their classes.

    InputError, with the file's name `where`, for one of more than MAX_PARTS parts.
    """
    objects = losses.values() if isinstance(losses, dict) else ()
    classes = sorted({o.name.rsplit(".", 1)[-1][:80] for o in objects if isinstance(o, Opaque)})
    for module in _walk(losses):
        parts = module.state.get("_modules") if isinstance(module.state, dict) else None
        inside = parts.get("betavae") if isinstance(parts, dict) else None
        if isinstance(inside, Opaque):
            return _flat(inside, where), classes or ["betaVAE"]
    return None, classes


def _walk(value: Any) -> Iterator[Opaque]:
    """Yield the objects in a described value, each once, the containers among them only once."""
    waiting, seen = [value], set()
    while waiting and len(seen) < MAX_WALK:
        value = waiting.pop()
        if id(value) in seen or not isinstance(value, dict | list | tuple | Opaque):
            continue
        seen.add(id(value))
        if isinstance(value, Opaque):
            yield value
            waiting.append(value.state)
        else:
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _flat(module: Opaque, where: str) -> dict[str, Any]:
    """Return name -> tensor, as state_dict names them, of a module that was not made; each part counts once."""
    found: dict[str, Any] = {}
    waiting, seen, most = [("", module)], set(), MAX_PARTS
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen or not isinstance(module, Opaque) or not isinstance(module.state, dict):
            continue
        seen.add(id(module))
        own, buffers, parts = (module.state.get(key) for key in ("_parameters", "_buffers", "_modules"))
        most -= sum(len(part) for part in (own, buffers, parts) if isinstance(part, dict))
        if most < 0:  # many modules may share one dict of names
            raise InputError(f"{where}: its beta-VAE has more than {MAX_PARTS:,} parts; get the file again")
        for tensors in (own, buffers):
            if isinstance(tensors, dict):
                found |= {f"{prefix}{name}": value for name, value in tensors.items() if value is not None}
        if isinstance(parts, dict) and prefix.count(".") < MAX_BLOCKS and len(prefix) < MAX_PREFIX:
            waiting += [(f"{prefix}{name}.", part) for name, part in parts.items()]
    return found


def _blocks(described: Mapping[str, Any], prefix: str, first: int) -> list[tuple[int, int]]:
    """Return (rows, columns) of the linear layers `prefix`<i>.0, i from `first`."""
    found = []
    while len(found) < MAX_BLOCKS:
        weight = described.get(f"{prefix}{first + len(found)}.0.weight")
        if not isinstance(weight, Stored) or len(weight.size) != 2 or max(weight.size) > MAX_WIDTH:
            break
        found.append(weight.size)
    return found


def _place(block: str, layer: str, shift: int) -> str:
    """Return the place of layer <block>.<layer> among ours, which lie in one row: three to a block."""
    known = len(block) <= 2 and block.isdecimal() and layer in ("0", "1")
    return str(3 * int(block) + int(layer) + shift) if known else f"{block}.{layer}"


def _without_prefix(described: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the state_dict's names, without the "module." that torch's DataParallel puts before each one."""
    return {key.removeprefix("module."): value for key, value in described.items() if isinstance(key, str)}


def _refuse_other_shapes(described: Mapping[str, Any], network: torch.nn.Module, where: str, what: str) -> None:
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name in [*wanted, *described]:
        value = described.get(name)
        found = value.size if isinstance(value, Stored) else None
        if found != wanted.get(name) or name not in wanted:
            raise InputError(
                f"{where}: not {what}: {str(name)[:60]} has shape {found}, {wanted.get(name)} was expected; other "
                "networks are not known"
            )


def _finite(weights: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in fp32, counts as they are. InputError where one is NaN or infinite."""
    found = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    if bad := [k for k, v in found.items() if not bool(torch.stack(torch.aminmax(v)).isfinite().all())]:
        raise InputError(f"{path}: {bad[0]} holds NaN or infinity; use an earlier checkpoint of that run")
    return found
