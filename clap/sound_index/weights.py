"""The identity of a model."""

import hashlib

import torch
from torch import nn


def digest_weights(model: nn.Module) -> str:
    """Hash of the names, types, shapes and values of all weights, whatever file they were read from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
