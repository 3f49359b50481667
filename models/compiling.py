"""Networks compiled by torch.compile for training, and left as they are, with the reason, where that fails."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from models.conditioning import ConditionedCritic, ConditionedGenerator
from models.played_step import unchanged

FORMS = 8  # in which a step has a network run, at most: with gradients, frozen, without; for one batch or two
MODES = ("default", "reduce-overhead")  # torch.compile's; reduce-overhead: CUDA graphs on a GPU


def compile_networks(
    generator: ConditionedGenerator,
    critic: ConditionedCritic,
    mode: str,
    sides: Sequence[int],
    batch_size: int,
    autocast: torch.autocast | nullcontext,
) -> str | None:
    """Compile the drawing network and the critic's features in place; return None, or why they stay as they were.

    What a penalty differentiates twice (features with `alone`) is left out: torch.compile cannot. All is tried, forward
    and back, on `batch_size` tiles of each of `sides` (pixels), so that what fails does so before the first step.
    """
    network, judge = generator.network, critic.network
    limit = torch._dynamo.config.recompile_limit  # per function; beyond it, silently, nothing is compiled
    torch._dynamo.config.recompile_limit = max(limit, FORMS * len(sides))
    try:
        network.compile(mode=mode, dynamic=False)
        judge.features = _unless_alone(judge.features, torch.compile(judge.features, mode=mode, dynamic=False))
        with unchanged(generator, critic):
            for side in sides:
                _try_out(generator, critic, side, batch_size, autocast)
    except Exception as error:  # no C++ compiler, an operation it does not know, a GPU too old: many kinds
        network._compiled_call_impl = None
        judge.__dict__.pop("features", None)  # the method is there again
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return None


def _unless_alone(plain: Callable[..., torch.Tensor], fast: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def features(images: torch.Tensor, alone: bool = False) -> torch.Tensor:
        return plain(images, alone) if alone else fast(images)

    return features


def _try_out(
    generator: ConditionedGenerator,
    critic: ConditionedCritic,
    side: int,
    batch_size: int,
    autocast: torch.autocast | nullcontext,
) -> None:
    generator.network.side = side
    noise = torch.zeros(batch_size, generator.noise_dims, device=next(generator.parameters()).device)
    with autocast:
        tiles = generator(noise).float()
        real = tiles.detach()
        shown = [torch.cat([real, real])] if critic.norm == "none" else [real, real]  # as critic_step shows them
        scores = [critic.score(critic.network.features(images)).float() for images in shown]
    sum(x.sum() for x in scores).backward()
    critic.requires_grad_(False)  # as in generator_step
    with autocast:
        scores = critic(tiles).float()
        with torch.no_grad():
            critic(real)
    scores.sum().backward()
    critic.requires_grad_(True)
