"""One DCGAN training step at the paper's size against torchgan 0.1.0's: 256 px, batch 8, wgan with gradient penalty.

    python benchmarks/gan_step.py --n 5

Both sides have torchgan's networks and weights, one noise batch, one epsilon, one penalty norm per batch (torchgan's
own) and one Adam step each for critic and generator: the same sums, so that the losses must follow each other. The peer
is a plain loop over torchgan's networks and loss functions, as its train_ops have it: a generator pass for each of its
three losses, the penalty's not detached, the critic not frozen, torch's default Adam. Each side has its own process;
steps alternate, the first of each is not counted. `ratio_train_ops`: against torchgan's train_ops themselves, which
also take two critic steps. Ours is in bf16 (autocast) where the CPU has it, AVX512-BF16 or AMX, and keeps freed memory
for the next step, as training does on a CPU (--plain_memory: it does not).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import cpu, has_bf16, serve, take_turns
from common.memory import keep_freed_memory
from models.conditioning import ConditionedCritic
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.gan_losses import LOSSES, wasserstein_critic, wasserstein_generator
from models.gan_steps import critic_step, generator_step

SIDES = ("ours", "peer", "train_ops")
DIMS, CHANNELS, PENALTY = 2048, 64, 10.0
BETAS, RATE_G, RATE_C = (0.5, 0.999), 1e-4, 4e-4
Step = Callable[[torch.Tensor, torch.Tensor, float], list[float]]


def peer_networks(side: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return torchgan's generator and critic, the critic without batch norm and with a linear score."""
    from torchgan.models import DCGANDiscriminator as Critic
    from torchgan.models import DCGANGenerator as Generator

    torch.manual_seed(0)
    critic = Critic(side, step_channels=CHANNELS, batchnorm=False, last_nonlinearity=torch.nn.Identity())
    return Generator(DIMS, side, step_channels=CHANNELS), critic


def loss_functions() -> tuple[tuple[Callable, Callable, Callable], str]:
    """Return torchgan's functions of critic, generator and penalty, or the same formulas; and which of the two."""
    try:
        from torchgan.losses import functional
    except ImportError:

        def penalty(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            slope = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)[0]
            return (slope.norm() - 1).square()  # one norm for the whole batch

        return (wasserstein_critic, wasserstein_generator, penalty), "its formulas (it is not installed)"
    names = ("discriminator_loss", "generator_loss", "gradient_penalty")
    return tuple(getattr(functional, f"wasserstein_{name}") for name in names), "its own loss functions"


def plain_forward(network: torch.nn.Module) -> torch.nn.Module:
    """Return one of our DCGAN networks, whose module tree is torchgan's, run layer by layer as torchgan runs it."""
    if hasattr(network, "disc"):
        network.forward = lambda images: network.disc(network.model(images)).flatten()
    else:
        network.forward = lambda noise: network.model(noise[:, :, None, None])
    return network


def peer_step(generator: torch.nn.Module, critic: torch.nn.Module, losses: tuple[Callable, ...]) -> Step:
    """Return a step of torchgan's networks and loss functions (critic, generator, penalty) in a plain loop."""
    critic_loss, generator_loss, gradient_penalty = losses
    adam_g = torch.optim.Adam(generator.parameters(), lr=RATE_G, betas=BETAS)
    adam_c = torch.optim.Adam(critic.parameters(), lr=RATE_C, betas=BETAS)

    def step(real: torch.Tensor, noise: torch.Tensor, epsilon: float) -> list[float]:
        adam_c.zero_grad()
        loss_c = critic_loss(critic(real), critic(generator(noise).detach()))
        loss_c.backward()
        x = epsilon * real + (1 - epsilon) * generator(noise)
        penalty = gradient_penalty(x, critic(x))
        (PENALTY * penalty).backward()
        adam_c.step()
        adam_g.zero_grad()
        loss_g = generator_loss(critic(generator(noise)))
        loss_g.backward()
        adam_g.step()
        return [loss_c.item(), penalty.item(), loss_g.item()]

    return step


def train_ops_step(generator: torch.nn.Module, critic: torch.nn.Module) -> Step:
    """Return a step of torchgan's three train_ops, as its Trainer calls them; noise and epsilon are its own."""
    from torchgan.losses import (
        WassersteinDiscriminatorLoss,
        WassersteinGeneratorLoss,
        WassersteinGradientPenalty,
    )

    adam_g = torch.optim.Adam(generator.parameters(), lr=RATE_G, betas=BETAS)
    adam_c = torch.optim.Adam(critic.parameters(), lr=RATE_C, betas=BETAS)
    losses = WassersteinDiscriminatorLoss(), WassersteinGradientPenalty(lambd=PENALTY)
    loss_g, cpu = WassersteinGeneratorLoss(), torch.device("cpu")

    def step(real: torch.Tensor, noise: torch.Tensor, epsilon: float) -> list[float]:
        values = [loss.train_ops(generator, critic, adam_c, real, cpu) for loss in losses]
        return [*values, loss_g.train_ops(generator, critic, adam_g, cpu, len(real))]

    return step


def our_step(side: int, weights: tuple[dict, dict], bf16: bool) -> Step:
    """Return the step of histopathology_gan.py, on a copy of torchgan's weights."""
    generator, critic = DCGANGenerator(DIMS, side, CHANNELS), ConditionedCritic(DCGANDiscriminator(side, CHANNELS))
    generator.load_state_dict(weights[0])
    critic.network.load_state_dict(weights[1])
    adam_g = torch.optim.Adam(generator.parameters(), lr=RATE_G, betas=BETAS, fused=True)
    adam_c = torch.optim.Adam(critic.parameters(), lr=RATE_C, betas=BETAS, fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    loss = LOSSES["wgangp"]

    def step(real: torch.Tensor, noise: torch.Tensor, epsilon: float) -> list[float]:
        with autocast:
            fake = generator(noise).float()
        place = torch.full((len(real),), epsilon)
        options = {"penalty_weight": PENALTY, "penalty_per": "batch", "autocast": autocast}
        parts = critic_step(critic, adam_c, loss, real, fake, place, **options)
        parts |= generator_step(critic, adam_g, loss, fake, autocast=autocast)
        return [parts[name].item() for name in ("critic", "penalty", "generator")]

    return step


def serve_side(name: str, side: int, batch_size: int, bf16: bool, plain_memory: bool) -> None:
    """Do one side's steps on the inputs that the others have too."""
    generator, critic = peer_networks(side)
    if name == "ours":
        step = our_step(side, (generator.state_dict(), critic.state_dict()), bf16)
        del generator, critic
        if not plain_memory:
            keep_freed_memory()
    elif name == "peer":
        step = peer_step(generator, critic, loss_functions()[0])
    else:
        step = train_ops_step(generator, critic)
    source = torch.Generator().manual_seed(1)

    def turn() -> dict[str, Any]:
        real = torch.rand(batch_size, 3, side, side, generator=source) * 2 - 1
        noise = torch.randn(batch_size, DIMS, generator=source)
        return {"losses": step(real, noise, torch.rand(1, generator=source).item())}

    serve(turn)


def main() -> None:
    """Interleave the steps, compare the losses, print the medians and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="timed steps of each side (default 5)")
    parser.add_argument("--side", type=int, default=256, help="pixels (default 256)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--plain_memory", action="store_true", help="ours without keeping freed memory")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    bf16 = args.precision == "bf16" or (args.precision == "auto" and has_bf16())
    if args.only:
        torch.set_num_threads(args.threads)
        serve_side(args.only, args.side, args.batch_size, bf16, args.plain_memory)
        return

    answers = take_turns(list(SIDES), args.n)
    medians = {name: statistics.median(turn["seconds"] for turn in turns[1:]) for name, turns in answers.items()}
    ours, peer = (torch.tensor([turn["losses"] for turn in answers[name]]) for name in ("ours", "peer"))
    drift = ((ours - peer).abs() / peer.abs().clamp(min=1)).max(1).values
    print("seconds a step: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))
    result = {
        "benchmark": "gan_step",
        "peer": f"torchgan 0.1.0, plain loop: {'same sums, ours in bf16' if bf16 else 'equal maths'}",
        "ratio": round(medians["peer"] / medians["ours"], 3),
        "ratio_train_ops": round(medians["train_ops"] / medians["ours"], 3),
        "n": args.n,
        **{f"peak_rss_gb_{name}": turns[-1]["peak_rss_gb"] for name, turns in answers.items()},
        "precision": "bf16" if bf16 else "fp32",
        "kept_memory": not args.plain_memory,
        "loss_difference_first_step": float(f"{drift[0]:.2g}"),
        "loss_difference_max": float(f"{drift.max():.2g}"),
        "side": args.side,
        "threads": args.threads,
        **cpu(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
