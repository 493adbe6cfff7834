"""Trains a small CNN on Debian's Fashion-MNIST and writes `fashion.onnx` and `fashion.npz`: `fashion.py OUTDIR`.

Runs in the system's Python with Debian's PyTorch (1.13, opset 13). The test images, float32
[N, 1, 28, 28] from 0 to 1 with their labels, are the samples. Must not use the network.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path("/usr/share/datasets/fashion-mnist")
EPOCHS, BATCH = 2, 128


def read(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split."""
    images = gzip.decompress(next(FOLDER.rglob(f"{kind}-images*")).read_bytes())
    labels = gzip.decompress(next(FOLDER.rglob(f"{kind}-labels*")).read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return pixels.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def block(source: int, target: int) -> list[nn.Module]:
    """Convolution, BatchNormalization, Relu, pooling."""
    convolution = nn.Conv2d(source, target, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(target), nn.ReLU(), nn.MaxPool2d(2)]


def main(folder: Path) -> None:
    """Trains and writes."""
    torch.manual_seed(7)
    torch.set_num_threads(2)
    images, labels = (torch.from_numpy(array) for array in read("train"))
    model = nn.Sequential(*block(1, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10))
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(
        model, images[:1], folder / "fashion.onnx", input_names=["x"], output_names=["y"], dynamic_axes=axes, opset_version=13
    )
    pixels, right = read("t10k")
    np.savez(folder / "fashion.npz", x=pixels[:1000], label=right[:1000])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
