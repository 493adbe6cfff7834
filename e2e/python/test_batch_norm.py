"""Holds folded BatchNormalization against its formula in double precision: within one unit in the
last place of a 32-bit float, for every kind of layer that it is folded into.

Settings are those of test_reference.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from passes import passes

EPSILON = 1e-3


@dataclass(frozen=True)
class Layer:
    """A layer before a BatchNormalization, the shape of its weights and the axis of its channels."""

    op: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    channels: int
    bias: tuple[int, ...] | None = None
    attributes: dict = field(default_factory=dict)

    def scaled(self, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The weights with each output channel times its scale."""
        if self.op == "Conv":
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        if self.op == "Gemm":
            return weight * (scale[:, None] if self.attributes.get("transB") else scale[None, :])
        groups = self.attributes.get("group", 1)
        # [in, out / group, ...]: group g of the inputs makes group g of the outputs.
        parts = zip(np.split(weight, groups), np.split(scale, groups), strict=True)
        spread = [part * one.reshape(1, -1, *[1] * (weight.ndim - 2)) for part, one in parts]
        return np.concatenate(spread)


LAYERS = {
    "conv": Layer("Conv", (8, 3, 3, 3), (1, 3, 8, 8), 8),
    "conv with bias": Layer("Conv", (8, 3, 3, 3), (1, 3, 8, 8), 8, (8,)),
    "grouped conv": Layer("Conv", (8, 2, 3, 3), (1, 4, 8, 8), 8, (8,), {"group": 2}),
    "depthwise conv": Layer("Conv", (6, 1, 3), (1, 6, 9), 6, None, {"group": 6}),
    "transposed conv": Layer("ConvTranspose", (4, 6, 3, 3), (1, 4, 5, 5), 6, (6,)),
    "grouped transposed conv": Layer("ConvTranspose", (4, 3, 2, 2), (1, 4, 5, 5), 6, None, {"group": 2}),
    "gemm": Layer("Gemm", (5, 7), (3, 5), 7, (7,)),
    "gemm, transposed, beta": Layer("Gemm", (7, 5), (3, 5), 7, (1, 7), {"transB": 1, "beta": 0.3}),
    "gemm, one bias": Layer("Gemm", (5, 7), (3, 5), 7, (1,), {"alpha": 0.5}),
}


def ulps(a: np.ndarray, b: np.ndarray) -> int:
    """The largest distance in representable 32-bit floats."""
    def order(array: np.ndarray) -> np.ndarray:
        bits = array.astype(np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(order(a) - order(b)).max(initial=0))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_folded_numbers_are_the_formulas(name: str, seed: int, tmp_path: Path):
    layer, generator = LAYERS[name], np.random.default_rng(seed)
    arrays = {"w": generator.standard_normal(layer.weight).astype(np.float32)}
    if layer.bias:
        arrays["b"] = generator.standard_normal(layer.bias).astype(np.float32)
    for one, low, high in (("gamma", -2, 2), ("beta", -1, 1), ("mean", -3, 3), ("var", 1e-6, 4)):
        arrays[one] = generator.uniform(low, high, layer.channels).astype(np.float32)
    inputs = ["x", "w", *(["b"] if layer.bias else [])]
    nodes = [
        helper.make_node(layer.op, inputs, ["t"], "layer", **layer.attributes),
        helper.make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "var"], ["y"], "norm", epsilon=EPSILON),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layer",
        [value("x", TensorProto.FLOAT, layer.input)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    file = tmp_path / "layer.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)

    [line] = passes([file], tmp_path / "out")
    made = onnx.load(line["written"][-1]["file"]).graph
    [node] = made.node
    folded = {one.name: numpy_helper.to_array(one) for one in made.initializer}
    double = {key: array.astype(np.float64) for key, array in arrays.items()}
    scale = double["gamma"] / np.sqrt(double["var"] + np.float64(np.float32(EPSILON)))
    bias = double["b"].reshape(-1) if layer.bias else 0.0
    factor = np.float64(np.float32(layer.attributes.get("beta", 1.0)))
    wanted = ((bias * factor) - double["mean"]) * scale + double["beta"]
    assert ulps(folded[node.input[1]], layer.scaled(double["w"], scale).astype(np.float32)) <= 1
    # Products that nearly cancel leave a sum far smaller than they are; its error is theirs, in doubles.
    np.testing.assert_allclose(folded[node.input[2]], wanted, rtol=2**-23, atol=1e-14)
