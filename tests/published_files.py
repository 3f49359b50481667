"""Files as the published code and torchgan's trainer write them, small: made by torch.save of objects of their classes.

The classes stand in modules of the published names, which exist only while a file is written: whoever reads it cannot
import them.
"""

import sys
import types
import warnings
from collections import OrderedDict, defaultdict
from contextlib import contextmanager

import torch
from gan_toy import LATENT, N_GENES
from torch import nn

ENCODER, DECODER = [24, 18, LATENT], [18, 24]


class betaVAE(nn.Module):
    """The published network, by its key names and its forward."""

    def __init__(self, genes=N_GENES, encoder=ENCODER, decoder=DECODER):
        super().__init__()
        blocks = [nn.Sequential(nn.Dropout())]
        for n_in, n_out in zip([genes, *encoder], encoder, strict=False):
            blocks.append(nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU()))
        self.encoder = RNAEncoder(blocks)
        self.z_mu, self.z_logvar = nn.Linear(encoder[-1], encoder[-1]), nn.Linear(encoder[-1], encoder[-1])
        blocks = []
        for n_in, n_out in zip([encoder[-1], *decoder], decoder, strict=False):
            blocks.append(nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU()))
        self.decoder = nn.Sequential(*blocks, nn.Sequential(nn.Linear(decoder[-1], genes), nn.Tanh()))

    def forward(self, x):
        h = self.encoder(x)
        mu = self.z_mu(h)
        return self.decoder(mu), mu, self.z_logvar(h)


class RNAEncoder(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.encoder = nn.Sequential(*blocks)

    def forward(self, x):
        return self.encoder(x)


class WassersteinGeneratorLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduction, self.override_train_ops, self.arg_map = "mean", None, {}


class WassersteinGeneratorLossVAE(nn.Module):
    """As the published one: its base class takes the checkpoint's path for `reduction`."""

    def __init__(self, vae):
        super().__init__()
        self.reduction, self.override_train_ops, self.arg_map = "checkpoints/model_dict_best.pt", 19198, {}
        self.betavae = vae


HOME = {"betaVAE": (betaVAE, RNAEncoder), "wgan_loss": (WassersteinGeneratorLossVAE,)}
HOME["torchgan_losses"] = (WassersteinGeneratorLoss,)


@contextmanager
def at_home():
    """Let the classes be in the published modules, so that a pickle names them there."""
    before = {name: sys.modules.get(name) for name in HOME}
    owners = {cls: cls.__module__ for classes in HOME.values() for cls in classes}
    for name, classes in HOME.items():
        sys.modules[name] = types.ModuleType(name)
        for cls in classes:
            cls.__module__ = name
            setattr(sys.modules[name], cls.__name__, cls)
    try:
        yield
    finally:
        for cls, owner in owners.items():
            cls.__module__ = owner
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def trained(network, seed=0, gain=1.0):
    """Return the network with weights and batch norm statistics that are not the initial ones, in eval mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim < 2:
                value.normal_(0, 0.3)
            elif value.is_floating_point():
                value.normal_(0, gain * value[0].numel() ** -0.5)
    return network.eval()


def save_vae(path, seed=0, vae=None, **how):
    """Write a bare state_dict as the published training does; return the network."""
    vae = vae or trained(betaVAE(), seed, gain=3)
    torch.save(vae.state_dict(), path, **how)
    return vae


def save_gan(path, generator, vae=None, critic=None, losses=True, epoch=12, **how):
    """Write what torchgan 0.1.0's save_model does: `vae` makes it an RNA-GAN's."""
    kinds = [WassersteinGeneratorLossVAE(vae)] if vae is not None else [WassersteinGeneratorLoss()]
    model = {"epoch": epoch, "loss_information": {"generator_losses": 0.5, "generator_iters": 7}}
    model |= {"loss_objects": {type(loss).__name__: loss for loss in kinds}} if losses else {}
    logs = defaultdict(list, {type(loss).__name__: [k / 7 for k in range(2500)] for loss in kinds})
    model |= {"metric_objects": None, "loss_logs": logs, "generator": generator.state_dict()}
    if critic is not None:
        model["discriminator"] = critic.state_dict()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.999))
    for value in generator.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()  # its moments are in the file
    model["optimizer_generator"] = optimizer.state_dict()
    with at_home(), warnings.catch_warnings(action="ignore"):  # the older form looks for their source
        torch.save(model, path, **how)
    return OrderedDict((k, v.clone()) for k, v in generator.state_dict().items())
