"""Writes the masks of PyTorch's pruning for weights in an archive; runs in Debian's own Python.

Called as `python3 prune_masks.py weights.npz masks.npz SCOPE AMOUNT`; must not import what Debian's
python3-torch does not bring along.
"""

import sys

import numpy as np
import torch
from torch.nn.utils import prune


def main(source: str, target: str, scope: str, amount: float) -> None:
    """Each array becomes the weight of a module, in the archive's order, and is pruned as one of them."""
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    modules = {}
    for name, array in arrays.items():
        modules[name] = torch.nn.Module()
        modules[name].weight = torch.nn.Parameter(torch.tensor(array))
    if scope == "Global":
        parameters = [(module, "weight") for module in modules.values()]
        prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)
    else:
        for module in modules.values():
            prune.l1_unstructured(module, "weight", amount=amount)
    np.savez(target, **{name: module.weight_mask.numpy() for name, module in modules.items()})


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
