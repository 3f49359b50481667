"""What the networks are made of: shape, parameters and FLOPs of each stage, read off the modules as they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.betavae import BetaVAE
from models.conditioning import ConditionedCritic, ConditionedGenerator
from models.dcgan import DCGANDiscriminator, DCGANGenerator


@dataclass
class Stage:
    """One stage of a network: what it is, its output for one profile or tile, its weights, its FLOPs.

    FLOPs: of matrix products and convolutions, two for each multiplication and addition, as torch.utils.flop_counter
    counts them; norms and activations are not counted. beside: it does not take the output of the stage before it.
    twin: it takes what the stage before it takes, and both go into the next one.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    beside: bool = False
    twin: bool = False


@dataclass
class _Part:
    """A stage before it has run: it has run when `ends` has; its weights are those of `of`."""

    name: str
    ends: nn.Module
    of: list[nn.Module]
    beside: bool = False
    twin: bool = False


def trace_vae(vae: BetaVAE) -> list[Stage]:
    """Return the stages of a beta-VAE: encoder, mean and log variance (a Linear each), the latent of them, decoder."""
    parts = _linear_parts(vae.encoder)
    parts += [
        _Part("mean", vae.z_mu, [vae.z_mu]),
        _Part("log variance", vae.z_logvar, [vae.z_logvar], twin=True),
    ]
    before = len(parts)
    parts += _linear_parts(vae.decoder)
    x = torch.zeros(1, vae.encoder[1].in_features, device=vae.z_mu.weight.device)
    stages = _run(parts, lambda: vae.eval()(x))
    drawn = Stage("latent: mean + sd x noise", stages[before - 1].shape, 0, 0)  # no module: a sum in BetaVAE.forward
    return [*stages[:before], drawn, *stages[before:]]


def trace_generator(generator: ConditionedGenerator, latent_dim: int) -> list[Stage]:
    """Return the stages of a generator, with what brings the expression in."""
    network, parts = generator.network, []
    if hasattr(generator, "project"):
        parts.append(_Part("expression: Linear", generator.project, [generator.project]))
    if isinstance(network, DCGANGenerator):
        parts += [_Part(_words(block), block[-1], [block]) for block in network.model]
    else:
        parts.append(_Part("mapping: 2 Linear, LeakyReLU", network.mapping, [network.mapping]))
        parts.append(_Part("start: Linear", network.start, [network.start]))
        parts += [_Part(_block_words(block.grow, "doubled"), block, [block]) for block in network.blocks]
        parts += [_Part(f"to RGB at {s} px: Conv 1 x 1", m, [m]) for s, m in network.early_to_rgb.items()]
        parts.append(_Part("to RGB: Conv 1 x 1", network.to_rgb, [network.to_rgb]))
    device = next(network.parameters()).device
    noise = torch.zeros(1, generator.noise_dims, device=device)
    c = torch.zeros(1, latent_dim, device=device) if generator.conditional else None
    return _run(parts, lambda: generator.eval()(noise, c))


def trace_critic(critic: ConditionedCritic, img_size: int, latent_dim: int) -> list[Stage]:
    """Return the stages of a critic, with what compares tile and expression."""
    network = critic.network
    if isinstance(network, DCGANDiscriminator):
        parts = [_Part(_words(block), block[-1], [block]) for block in network.model]
        parts.append(_Part("score: Conv 4 x 4", network.disc[-1], [network.disc]))
    else:
        parts = [_Part("from RGB: Conv 1 x 1", network.from_rgb, [network.from_rgb])]
        parts += [_Part(_block_words(block.shrink, "halved"), block, [block]) for block in network.blocks]
        for side, layer in network.early_from_rgb.items():  # run after what halving takes away, where that is seen
            apart = [network.apart_from_rgb[side]] if side in network.apart_from_rgb else []
            parts.append(_Part(f"from RGB at {side} px: Conv 1 x 1", layer, [layer, *apart]))
        parts.append(_Part("Conv 3 x 3, with the batch's spread", network.last, [network.last]))
        parts.append(_Part("Linear, LeakyReLU", network.flatten, [network.flatten]))
        parts.append(_Part("score: Linear", network.out, [network.out]))
    if critic.conditional:
        parts.append(_Part("tile to compare: Linear", critic.of_tile, [critic.of_tile], True))
        parts.append(_Part("expression to compare: Linear", critic.of_profile, [critic.of_profile], True))
    device = next(network.parameters()).device
    tile = torch.zeros(1, 3, img_size, img_size, device=device)
    c = torch.zeros(1, latent_dim, device=device) if critic.conditional else None
    return _run(parts, lambda: critic.eval()(tile, c))


def _run(parts: list[_Part], forward: Callable[[], object]) -> list[Stage]:
    """Run once; the FLOPs of a part are those between the end of the one before and its own."""
    stages, before, hooks = [], 0, []
    with FlopCounterMode(display=False) as counter, torch.no_grad():

        def note(part: _Part) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
                nonlocal before
                now = counter.get_total_flops()
                weights = sum(p.numel() for module in part.of for p in module.parameters())
                stages.append(Stage(part.name, tuple(output.shape[1:]), weights, now - before, part.beside, part.twin))
                before = now

            return hook

        hooks = [part.ends.register_forward_hook(note(part)) for part in parts]
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()
    return stages


def totals(stages: Mapping[str, list[Stage]]) -> dict[str, tuple[int, int]]:
    """Return network -> (parameters, FLOPs)."""
    return {name: (sum(s.parameters for s in some), sum(s.flops for s in some)) for name, some in stages.items()}


def _linear_parts(layers: nn.Sequential) -> list[_Part]:
    """Return a part for each Linear of a Sequential with the norm and activation after it."""
    groups: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            groups.append([layer])
        elif groups and not isinstance(layer, nn.Identity):
            groups[-1].append(layer)
    return [_Part(_words(group), group[-1], group) for group in groups]


def _words(layers: object) -> str:
    names = {"Up": "ConvT 4 x 4", "Down": "Conv 4 x 4", "ConvTranspose2d": "ConvT 4 x 4"}
    kinds = [type(layer).__name__ for layer in layers]
    kinds = ["BatchNorm" if "BatchNorm" in kind else kind for kind in kinds]  # over one process or several
    return ", ".join(names.get(kind, kind) for kind in kinds if kind != "Identity")


def _block_words(changes: bool, how: str) -> str:
    return "residual block, side " + how if changes else "residual block"
