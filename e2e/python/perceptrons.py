"""Writes two perceptrons for `cargo e2e bench serve`: `perceptrons.py OUTDIR`.

tiny.onnx (8 inputs, 16 hidden, 4 outputs) shows what serving itself costs; wide.onnx (784 inputs,
twice 2048 hidden, 10 outputs) reads 23 MB of weights for one row as for thirty-two, so batching
pays. The weights are random, from a fixed seed.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = {"tiny": [8, 16, 4], "wide": [784, 2048, 2048, 10]}


def perceptron(sizes: list[int], random: np.random.Generator) -> onnx.ModelProto:
    """Layers of a matrix product, a bias and, but for the last, a ReLU."""
    nodes, weights, name = [], [], "x"
    for layer, (width, height) in enumerate(zip(sizes, sizes[1:])):
        weight = random.standard_normal((width, height), dtype=np.float32) / np.float32(width**0.5)
        bias = random.standard_normal(height, dtype=np.float32)
        weights += [
            numpy_helper.from_array(weight, f"w{layer}"),
            numpy_helper.from_array(bias, f"b{layer}"),
        ]
        last = layer == len(sizes) - 2
        out = "y" if last else f"h{layer}"
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
            name = f"r{layer}"
    rows = ["batch"]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Writes each perceptron below its name."""
    folder = Path(sys.argv[1])
    for name, sizes in SIZES.items():
        model = perceptron(sizes, np.random.default_rng(20240901))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
