"""What a training will take of its device's memory, told before it starts.

Two steps are played through with tensors that have a shape and no content (torch's "meta" device): that takes a second
and next to no memory. Counted is what is alive at the worst moment of the second step, and two copies of a GAN's
largest tensor, as convolutions lay out anew what they read and write. Not counted: what else the libraries take for
themselves (a CUDA context, compiled kernels), and memory that lies between blocks. Measured: benchmarks/memory.py.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.config import BetaVAESettings, GANSettings
from common.distributed import alone, current, on_this_machine
from common.errors import warn
from common.memory import free_on
from common.words import bytes_in_words
from models.betavae import BetaVAE
from models.gan_settings import least_rows
from models.networks import build_critic, build_generator, generator_args
from models.passes import Passes
from models.played_step import gan_step, vae_step

COPIES = 2  # of the largest tensor
MOMENTS = 2  # numbers that Adam and AdamW keep of each weight
META = torch.device("meta")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training takes, each a part.

    average: of the generator (a beta-VAE's best epoch is copied when there are no gradients). activations: of a step
    with `batch` items. workspace: copies of the largest tensor. data: what is kept on the device. evaluation: what one
    takes, at another time than the activations.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int
    activations: int
    workspace: int
    batch: int
    data: int = 0
    evaluation: int = 0

    @property
    def total(self) -> int:
        """All of it, at the worst moment."""
        kept = self.weights + self.gradients + self.optimiser + self.average + self.workspace + self.data
        return kept + max(self.activations, self.evaluation)

    def line(self, device: torch.device, free: float) -> str:
        """Return it in words, against `free` bytes on the device."""
        parts = ("weights", "gradients", "optimiser", "average", "activations", "workspace", "data", "evaluation")
        words = [f"{name} {bytes_in_words(size)}" for name in parts if (size := getattr(self, name))]
        return (
            f"memory: about {bytes_in_words(self.total)} of {device}, {bytes_in_words(free)} are free "
            f"({', '.join(words)}; batch {self.batch})"
        )

    def warning(self, device: torch.device, free: float) -> str | None:
        """Return what to tell the user where it exceeds `free` bytes."""
        if self.total <= free:
            return None
        return (
            f"memory: about {bytes_in_words(self.total)} are needed and {bytes_in_words(free)} are free on {device}: "
            "the training may end for want of memory; use a smaller --micro_batch, or --batch_size"
        )


def tell(need: MemoryNeed, device: torch.device) -> None:
    """Say what a training will take, and warn, naming the flags that take less, where that is not free."""
    free = free_on(device) / (1 if device.type == "cuda" else on_this_machine())
    print(need.line(device, free), flush=True)
    if warning := need.warning(device, free):
        warn(warning)


def gan_need(cfg: GANSettings, latent_dim: int, data: int = 0, evaluation: int = 0) -> MemoryNeed:
    """Return what the training of a GAN takes in each process; `latent_dim` 0: without expression.

    Under bf16 that of fp32: an upper bound. `evaluation`: bytes beside two more copies of the generator, the one
    that is measured and the best so far.
    """
    with META:
        generator, critic = build_generator(generator_args(cfg, latent_dim)), build_critic(cfg, latent_dim)
    batch, passes = _rows(cfg.batch_size), Passes(cfg.micro_batch, least=least_rows(cfg))
    generator.passes = critic.passes = passes.count(cfg.batch_size)
    step = gan_step(cfg, generator, critic, latent_dim, META)
    parts = passes.of(cfg.batch_size)
    weights, made = [size_of(part) for part in (generator, critic)], allocations_of(lambda: step(parts))
    return MemoryNeed(
        weights=sum(weights),
        gradients=sum(weights),
        optimiser=MOMENTS * sum(weights),
        average=weights[0] * (3 if evaluation else 1),
        activations=max(made.peak - sum(weights), 0),
        workspace=COPIES * max(made.largest, largest(generator), largest(critic)),
        batch=batch,
        data=data,
        evaluation=evaluation,
    )


def vae_need(cfg: BetaVAESettings, model_args: dict[str, Any], rows: int, data: int = 0) -> MemoryNeed:
    """Return what the training of a beta-VAE with so many training `rows` takes in each process.

    Under bf16 that of fp32: an upper bound.
    """
    batch = min(cfg.batch_size, rows)
    with META:
        model = BetaVAE(**model_args)
    step, parts, weights = vae_step(cfg, model, batch, META), Passes(cfg.micro_batch, least=2).of(batch), size_of(model)
    return MemoryNeed(
        weights=weights,
        gradients=weights,
        optimiser=MOMENTS * weights,
        average=0,
        activations=max(allocations_of(lambda: step(parts)).peak - weights, 0),
        workspace=0,
        batch=_rows(batch),
        data=data,
    )


def _rows(batch: int) -> int:
    """Return how many rows of a batch are this process's."""
    share = current().share(batch)
    return share.stop - share.start


def moments_to_come(*optimizers: torch.optim.Optimizer) -> int:
    """Return the bytes that Adam or AdamW will take at their first step; 0 once they have them."""
    weights = [w for o in optimizers for group in o.param_groups for w in group["params"] if not o.state.get(w)]
    return MOMENTS * sum(w.numel() * w.element_size() for w in weights)


def size_of(model: nn.Module) -> int:
    """Return the bytes of a network's weights and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def largest(model: nn.Module) -> int:
    """Return the bytes of its largest weight."""
    return max(t.numel() * t.element_size() for t in model.parameters())


def allocations_of(step: Callable[[], None]) -> "Allocations":
    """Return what two calls of `step` make: the peak is that of the second."""
    with alone(), Allocations() as made:  # no other rank is asked
        step()
        made.peak = made.alive
        step()
    return made


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that PyTorch makes inside it: `alive` now, `peak` at most, `largest` of one."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, and count what it returns that was not there before."""
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata  # where the storage lies: views share it
        if key in self._known or key in given:  # what was given and is not known was made outside
            return
        size = storage.nbytes()

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.alive -= size

        self._known[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
