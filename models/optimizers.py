"""The optimisers that a training may use, by the name that the setting `optimizer` has for them."""

import torch

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
