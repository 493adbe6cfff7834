"""Holds the step `prune` against PyTorch's pruning, and pruned models against masked originals.

LITHE_WORKER and LITHE_MODELS as in test_reference.py. PyTorch is Debian's python3-torch, run in a
process of its own; without it these tests fail.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from oracle import session, speedup
from test_reference import REFUSED, example, run, same
from zoo import LIGHT, ZOO, floats, light

Figure = Callable[[str], None]
DEBIAN_PYTHON = "/usr/bin/python3"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Net:
    """A graph under construction: every method adds nodes and returns the name of the result.

    All numbers are random and so differ from each other: where a number is in a pruned tensor tells
    which index it came from.
    """

    def __init__(self, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def constant(self, array: np.ndarray) -> str:
        """A constant; its name."""
        name = f"c{len(self.weights)}"
        self.weights[name] = array
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """A random constant of a scale that keeps activations in range."""
        scale = scale or np.sqrt(2 / max(1, np.prod(shape[1:])))
        return self.constant(self.random.normal(0, scale, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        """A constant of int64."""
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """A node; the name of its first output, the others end in _1, _2, …"""
        name = f"{op}_{len(self.nodes)}"
        names = [f"{name}_out"] + [f"{name}_out_{at}" for at in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name, **attributes))
        return names[0]

    def conv(self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, bias: bool = True, **more: object) -> str:
        """Conv with `same` padding."""
        inputs = [x, self.weight(cout, cin // group, k, k)] + ([self.weight(cout, scale=0.3)] if bias else [])
        return self.node("Conv", *inputs, pads=[k // 2] * 4, kernel_shape=[k, k], group=group, **more)

    def norm(self, x: str, width: int) -> str:
        """BatchNormalization with running statistics."""
        positive = [self.constant(self.random.uniform(0.5, 1.5, width).astype(np.float32)) for _ in range(2)]
        return self.node("BatchNormalization", x, positive[0], self.weight(width, scale=0.3), self.weight(width, scale=0.3), positive[1])

    def block(self, x: str, cin: int, cout: int, act: str = "Relu", **more: object) -> str:
        """Conv, BatchNormalization, activation."""
        return self.node(act, self.norm(self.conv(x, cin, cout, bias=False, **more), cout))

    def head(self, x: str, width: int, classes: int = 10) -> str:
        """Global pooling and a classifier."""
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.node("Gemm", flat, self.weight(classes, width), self.weight(classes, scale=0.3), transB=1)

    def linear(self, x: str, cin: int, cout: int) -> str:
        """MatMul and Add."""
        product = self.node("MatMul", x, self.weight(cin, cout, scale=cin**-0.5))
        return self.node("Add", self.weight(cout, scale=0.3), product)

    def gelu(self, x: str) -> str:
        """Gelu as exporters decompose it."""
        scalar = lambda value: self.constant(np.array(value, np.float32))  # noqa: E731
        erf = self.node("Erf", self.node("Div", x, scalar(1.4142135)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, scalar(1.0))), scalar(0.5))

    def layer_norm(self, x: str, width: int) -> str:
        """LayerNormalization over the last axis."""
        return self.node("LayerNormalization", x, self.weight(width, scale=1.0), self.weight(width, scale=0.3), axis=-1)

    def attention(self, x: str, width: int, heads: int, dynamic: bool = False) -> str:
        """Self-attention with heads told apart by Reshape; `dynamic` computes the shapes with Shape."""
        each = width // heads

        def shape(*last: int) -> str:
            if not dynamic:
                return self.ints(0, -1 if len(last) == 1 else 0, *last)
            dims = self.node("Shape", x)
            pick = lambda at: self.node("Unsqueeze", self.node("Gather", dims, self.constant(np.array(at))), self.ints(0))  # noqa: E731
            return self.node("Concat", pick(0), pick(1), *(self.ints(one) for one in last), axis=0)

        def split(perm: list[int]) -> str:
            return self.node("Transpose", self.node("Reshape", self.linear(x, width, width), shape(heads, each)), perm=perm)

        query, key, value = split([0, 2, 1, 3]), split([0, 2, 3, 1]), split([0, 2, 1, 3])
        scores = self.node("Div", self.node("MatMul", query, key), self.constant(np.array(each**0.5, np.float32)))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), shape(width))
        return self.linear(joined, width, width)

    def save(self, file: Path, x: list[object], y: str, opset: int = 17) -> Path:
        """Writes a model from `x` of the given shape to `y`."""
        value = helper.make_tensor_value_info
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", [value("x", TensorProto.FLOAT, x)], [value(y, TensorProto.FLOAT, None)], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        # With the shapes of all values written down, which a pruned model must not repeat.
        onnx.save(onnx.shape_inference.infer_shapes(model), file)
        return file


def chain(net: Net) -> tuple[list[object], str]:
    x = net.block("x", 3, 32)
    x = net.node("MaxPool", net.block(x, 32, 64), kernel_shape=[2, 2], strides=[2, 2])
    return ["N", 3, 16, 16], net.head(net.block(x, 64, 64, "Sigmoid"), 64)


def flattened(net: Net) -> tuple[list[object], str]:
    x = net.block("x", 3, 16)
    x = net.node("MaxPool", net.block(x, 16, 32), kernel_shape=[4, 4], strides=[4, 4])
    hidden = net.node("Relu", net.node("Gemm", net.node("Flatten", x), net.weight(64, 512), net.weight(64, scale=0.3), transB=1))
    return ["N", 3, 16, 16], net.node("Gemm", hidden, net.weight(64, 10), net.weight(10, scale=0.3))


def reshaped(net: Net) -> tuple[list[object], str]:
    """As PyTorch writes x.view(x.size(0), -1), and a view by constants."""
    x = net.node("MaxPool", net.block("x", 3, 24), kernel_shape=[4, 4], strides=[4, 4])
    rows = net.node("Unsqueeze", net.node("Gather", net.node("Shape", x), net.constant(np.array(0))), net.ints(0))
    flat = net.node("Reshape", x, net.node("Concat", rows, net.ints(-1), axis=0))
    again = net.node("Reshape", flat, net.ints(-1, 24, 4, 4))
    flat = net.node("Reshape", net.block(again, 24, 16), net.ints(0, 256))
    return ["N", 3, 16, 16], net.linear(flat, 256, 10)


def residual(net: Net) -> tuple[list[object], str]:
    x = net.block("x", 3, 32)
    for _ in range(2):
        inner = net.norm(net.conv(net.block(x, 32, 48), 48, 32, bias=False), 32)
        x = net.node("Relu", net.node("Add", inner, x))
    wide = net.norm(net.conv(net.block(x, 32, 48), 48, 64), 64)
    x = net.node("Relu", net.node("Add", wide, net.norm(net.conv(x, 32, 64, k=1), 64)))
    return ["N", 3, 12, 12], net.head(x, 64)


def separable(net: Net) -> tuple[list[object], str]:
    """MobileNetV3-like: expand, depthwise, squeeze-and-excitation, project, residual."""
    x = net.block("x", 3, 16, "HardSwish")
    for cin, wide, cout in [(16, 64, 16), (16, 64, 24)]:
        inner = net.block(net.block(x, cin, wide, k=1), wide, wide, group=wide)
        pooled = net.node("Relu", net.conv(net.node("GlobalAveragePool", inner), wide, 16, k=1))
        inner = net.node("Mul", inner, net.node("HardSigmoid", net.conv(pooled, 16, wide, k=1)))
        out = net.norm(net.conv(inner, wide, cout, k=1, bias=False), cout)
        x = net.node("Add", x, out) if cin == cout else out
    x = net.conv(x, 24, 48, group=24)  # two filters per channel
    return ["N", 3, 12, 12], net.head(x, 48)


def dense(net: Net) -> tuple[list[object], str]:
    x, width = net.block("x", 3, 16), 16
    for _ in range(3):
        new = net.conv(net.node("Relu", net.norm(x, width)), width, 16)
        x, width = net.node("Concat", x, new, axis=1), width + 16
    x = net.block(x, width, 32, k=1)
    return ["N", 3, 12, 12], net.head(net.node("AveragePool", x, kernel_shape=[2, 2]), 32)


def inception(net: Net) -> tuple[list[object], str]:
    x = net.block("x", 3, 32)
    pooled = net.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    parts = [net.block(x, 32, 16, k=1), net.block(net.block(x, 32, 24, k=1), 24, 32), net.block(pooled, 32, 16, k=1), "x"]
    return ["N", 3, 12, 12], net.head(net.conv(net.node("Concat", *parts, axis=1), 67, 32), 32)


def split(net: Net) -> tuple[list[object], str]:
    """Split in parts with and without sizes, a gate, and slices put together again."""
    x = net.block("x", 3, 32)
    first = net.node("Split", x, net.ints(8, 24), outputs=2, axis=1)
    y = net.node("Concat", net.block(f"{first}_1", 24, 16), first, axis=1)
    halves = net.node("Split", net.conv(y, 24, 64), outputs=2, axis=1)
    gated = net.node("Mul", halves, net.node("Sigmoid", f"{halves}_1"))
    return ["N", 3, 8, 8], net.head(gated, 32)


def grouped(net: Net) -> tuple[list[object], str]:
    x = net.block("x", 3, 64)
    x = net.block(net.block(x, 64, 64, group=4), 64, 64, group=2)
    return ["N", 3, 8, 8], net.head(x, 64)


def shuffled(net: Net) -> tuple[list[object], str]:
    """ShuffleNet: grouped convolutions with channels dealt out between them."""
    x = net.block(net.block("x", 3, 48), 48, 48, group=3)
    x = net.node("Transpose", net.node("Reshape", x, net.ints(0, 3, 16, 8, 8)), perm=[0, 2, 1, 3, 4])
    x = net.block(net.node("Reshape", x, net.ints(0, 48, 8, 8)), 48, 48, group=48)
    return ["N", 3, 8, 8], net.head(net.conv(x, 48, 48, group=3), 48)


def decoder(net: Net) -> tuple[list[object], str]:
    """Down, up again by ConvTranspose and Resize, with a skip connection, PRelu, Pad and norms."""
    skip = net.node("PRelu", net.conv("x", 3, 24), net.weight(24, 1, 1, scale=0.2))
    x = net.node("Pad", skip, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    x = net.conv(net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 24, 32, strides=[2, 2])
    x = net.node("InstanceNormalization", x, net.weight(32, scale=1.0), net.weight(32, scale=0.3))
    x = net.node("LeakyRelu", net.node("ConvTranspose", x, net.weight(32, 40, 2, 2, scale=0.1), net.weight(40, scale=0.3), strides=[2, 2]))
    x = net.node("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)))
    x = net.node("Slice", x, net.ints(0, 0), net.ints(16, 16), net.ints(2, 3))
    return ["N", 3, 16, 16], net.conv(net.block(net.node("Concat", x, skip, axis=1), 64, 16), 16, 2)


def mlp(net: Net) -> tuple[list[object], str]:
    x = net.node("Relu", net.linear("x", 20, 64))
    x = net.node("Tanh", net.node("Gemm", x, net.weight(64, 96), net.weight(1, 96, scale=0.3), alpha=0.5, beta=2.0))
    return ["N", 20], net.node("Softmax", net.linear(net.node("Dropout", x), 96, 10))


def transformer(net: Net) -> tuple[list[object], str]:
    return ["N", 6, 64], block(net, dynamic=False)


def transformer_dynamic(net: Net) -> tuple[list[object], str]:
    return ["N", "S", 64], block(net, dynamic=True)


def block(net: Net, dynamic: bool) -> str:
    x = net.layer_norm(net.node("Add", "x", net.attention("x", 64, 8, dynamic)), 64)
    inner = net.linear(net.gelu(net.linear(x, 64, 256)), 256, 64)
    return net.node("ReduceMean", net.layer_norm(net.node("Add", x, inner), 64), axes=[1], keepdims=0)


def convolutional_1d(net: Net) -> tuple[list[object], str]:
    """Conv over [N, C, T] after a Transpose from [N, T, C], maximum over time, squeezed."""
    x = net.node("Transpose", net.node("Relu", net.linear("x", 12, 32)), perm=[0, 2, 1])
    x = net.node("Relu", net.node("Conv", x, net.weight(48, 32, 3), net.weight(48, scale=0.3)))
    x = net.node("Squeeze", net.node("ReduceMax", x, axes=[2], keepdims=1), net.ints(2))
    return ["N", 20, 12], net.linear(x, 48, 5)


NETS = [
    chain, flattened, reshaped, residual, separable, dense, inception, split, grouped, shuffled, decoder,
    mlp, transformer, transformer_dynamic, convolutional_1d,
]  # fmt: skip


def inputs_of(model: Path, rows: int = 2) -> dict[str, np.ndarray]:
    """Normal noise for the inputs of a model."""
    random = np.random.default_rng(5)
    dims = lambda one: [d if isinstance(d, int) else (rows if at == 0 else 7) for at, d in enumerate(one.shape)]  # noqa: E731
    return {one.name: random.standard_normal(dims(one), np.float32) for one in session(model).get_inputs()}


def arrays(model: Path | onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers of a model."""
    model = onnx.load(model) if isinstance(model, Path) else model
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def kept_indices(before: np.ndarray, after: np.ndarray) -> list[np.ndarray]:
    """Which indices of each axis of `before` make up `after`, found by the numbers alone."""
    zero = (0,) * before.ndim
    # Some numbers of a large tensor are equal by chance: each place of the first one is tried.
    for place in np.argwhere(before == after[zero]):
        kept = []
        for axis in range(before.ndim):
            line = before[tuple(slice(None) if at == axis else index for at, index in enumerate(place))]
            wanted = after[tuple(slice(None) if at == axis else 0 for at in range(before.ndim))]
            order = np.argsort(line, kind="stable")
            kept.append(order[np.searchsorted(line, wanted, sorter=order).clip(max=len(line) - 1)])
        if np.array_equal(before[np.ix_(*kept)], after) and all((np.diff(one) > 0).all() for one in kept):
            return kept
    raise AssertionError(f"{after.shape} is no cut of {before.shape} along its axes")


def masked(original: Path, pruned: Path, target: Path) -> Path:
    """The original with zeros for all numbers that `pruned` no longer has, in every tensor it cut."""
    model, after = onnx.load(original), arrays(pruned)
    cut = 0
    for one in model.graph.initializer:
        before, now = numpy_helper.to_array(one), after.get(one.name)
        if now is None or now.shape == before.shape or before.dtype != np.float32:
            continue
        cut += 1
        if before.ndim == 1 and len(np.unique(before)) < before.size:
            # Equal numbers do not tell which went; the weights that read them are zero all the same.
            continue
        mask = np.zeros(before.shape, bool)
        mask[np.ix_(*kept_indices(before, now))] = True
        one.CopyFrom(numpy_helper.from_array(np.where(mask, before, 0).astype(np.float32), one.name))
    assert cut, "no tensor was cut"
    onnx.save(model, target)
    return target


def prune_model(model: Path, out: Path, **step: object) -> tuple[Path, dict]:
    """Runs one prune step; the model and the step's report."""
    done = run(model, {"steps": [{"prune": step}]}, out)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    return out / "model.onnx", json.loads((out / "manifest.json").read_text())["steps"][0]


def check_against_mask(original: Path, pruned: Path, folder: Path, inputs: dict[str, np.ndarray]) -> None:
    """Fails unless the pruned model answers like the masked original, and is a valid model."""
    onnx.checker.check_model(onnx.load(pruned), full_check=True)
    mask = masked(original, pruned, folder / "masked.onnx")
    for wanted, seen in zip(session(mask).run(None, inputs), session(pruned).run(None, inputs), strict=True):
        assert np.ptp(wanted) > 1e-4, "the masked model says nothing"
        # Shorter sums are cut into other blocks by each processor's kernels: with AVX-512 two of
        # 530,000 outputs of a deep model differ by 1.7e-5. A channel too many is a thousandfold of it.
        same(wanted, seen, within=1e-4)


def parameters(model: Path) -> int:
    """Numbers in initializers."""
    return sum(array.size for array in arrays(model).values())


@pytest.mark.parametrize("scope", ["Global", "Local"])
@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_pruned_channels_leave_what_the_masked_original_computes(
    make: Callable[[Net], tuple[list[object], str]], scope: str, tmp_path: Path, figure: Figure
):
    net = Net()
    x, y = make(net)
    model = net.save(tmp_path / "net.onnx", x, y)
    pruned, report = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.5, scope=scope)
    check_against_mask(model, pruned, tmp_path, inputs_of(model))
    figure(f"{make.__name__} {scope}: {report['summary']}")
    assert report["matched"] > 0
    assert parameters(pruned) < 0.85 * parameters(model)


@pytest.mark.parametrize("name", ["densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"])
def test_light_topologies_lose_channels_and_compute_what_is_left(name: str, tmp_path: Path, figure: Figure):
    model = light(name)(tmp_path)
    pruned, report = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.3, scope="Local")
    inputs = floats(LIGHT[name], 1, 3, 224, 224)(np.random.default_rng(11))
    check_against_mask(model, pruned, tmp_path, inputs)
    figure(f"{name}: {report['summary']}, {speedup(model, pruned, inputs, pairs=3):.2f}x")
    assert parameters(pruned) < 0.9 * parameters(model)


@pytest.mark.parametrize("name", ["ocr_cls", "ocr_det", "ocr_rec", "magika"])
def test_real_topologies_lose_channels_and_compute_what_is_left(name: str, tmp_path: Path, figure: Figure):
    if name == "magika":
        source, inputs = example(name).model, {key: rows[:4] for key, rows in example(name).samples().items()}
    else:
        member = next(member for member in ZOO if member.name == name)
        source, inputs = member.make(tmp_path), member.inputs(np.random.default_rng(11))
    model = told_apart(source, tmp_path / "original.onnx")
    pruned, report = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.3, scope="Local")
    skipped = "; ".join(f"{one['count']} {one['op']}: {one['reason']}" for one in report["skipped"])
    figure(f"{name}: {report['summary']}, {speedup(model, pruned, inputs, pairs=5):.2f}x; left: {skipped}")
    check_against_mask(model, pruned, tmp_path, inputs)


def told_apart(source: Path, target: Path) -> Path:
    """The model with weights in initializers, each number moved a little, so that no two are equal."""
    model, random = onnx.load(source), np.random.default_rng(9)
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        array = numpy_helper.to_array(node.attribute[0].t)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    scales = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input}
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.dtype == np.float32 and array.size > 1 and one.name not in scales:
            moved = array * random.uniform(0.95, 1.05, array.shape) + random.uniform(1e-6, 1e-5, array.shape)
            one.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), one.name))
    last = model.graph.node[-1]
    if last.op_type == "Sigmoid":
        # On noise it says 0 everywhere, and what it hides could not be compared.
        maker = next(node for node in model.graph.node if last.input[0] in node.output)
        maker.output[0] = last.output[0]
        model.graph.node.remove(last)
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("structure", ["Channels", "Heads"])
def test_minilm_loses_channels_and_computes_what_is_left(structure: str, tmp_path: Path, figure: Figure):
    source = example("minilm")
    pruned, report = prune_model(source.model, tmp_path / "out", structure=structure, sparsity=0.5, scope="Local")
    inputs = {name: rows[:8] for name, rows in source.samples().items()}
    check_against_mask(source.model, pruned, tmp_path, inputs)
    figure(f"MiniLM {structure}: {report['summary']}, {speedup(source.model, pruned, inputs, pairs=20):.2f}x")
    assert parameters(pruned) < 0.95 * parameters(source.model)


@pytest.mark.parametrize("make", [transformer, transformer_dynamic], ids=lambda make: make.__name__)
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_whole_heads_leave_what_the_masked_original_computes(
    make: Callable[[Net], tuple[list[object], str]], sparsity: float, tmp_path: Path
):
    net = Net()
    x, y = make(net)
    model = net.save(tmp_path / "net.onnx", x, y)
    pruned, report = prune_model(model, tmp_path / "out", structure="Heads", sparsity=sparsity)
    check_against_mask(model, pruned, tmp_path, inputs_of(model))
    assert f"{int(8 * sparsity)} of 8 attention heads of 3 MatMul removed" in report["summary"]
    # Query, key and value lose the same 8 columns per head, the output layer the same rows.
    before, after = arrays(model), arrays(pruned)
    cut = [kept_indices(before[name], one) for name, one in after.items() if one.shape != before.get(name, one).shape and one.ndim == 2]
    columns = [axis for kept in cut for axis in kept if len(axis) < 64]
    assert len(columns) == 4
    assert all((one == columns[0]).all() for one in columns)
    assert len({int(one) // 8 for one in columns[0]}) == 8 - int(8 * sparsity)


def test_half_the_channels_of_a_plain_network_are_about_four_times_faster(tmp_path: Path, figure: Figure):
    net = Net()
    x = net.block("x", 3, 64)
    for _ in range(4):
        x = net.block(x, 64, 64)
    model = net.save(tmp_path / "net.onnx", ["N", 3, 56, 56], net.head(x, 64))
    pruned, report = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.5)
    ratio = speedup(model, pruned, inputs_of(model, rows=1), pairs=20)
    share = parameters(model) / parameters(pruned)
    figure(f"plain CNN, half the channels: {report['summary']}, {share:.2f}x fewer parameters, {ratio:.2f}x faster")
    assert share > 3.7


@pytest.mark.parametrize("scope", ["Global", "Local"])
def test_the_channels_that_go_have_the_least_squares(scope: str, tmp_path: Path):
    """Torch-Pruning's default importance, computed anew: p = 2, means over layers and of the group."""
    net = Net()
    weights = [net.random.normal(0, 1, shape).astype(np.float32) for shape in [(64, 3, 3, 3), (64, 64, 3, 3), (10, 64, 1, 1)]]
    # Some channels matter much more, so that groups differ in what they lose.
    weights[0][:20] *= 3
    weights[1][:50] *= 5
    x = "x"
    for weight in weights:
        x = net.node("Relu", net.node("Conv", x, net.constant(weight)))
    model = net.save(tmp_path / "net.onnx", ["N", 3, 12, 12], x)
    pruned, _ = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.5, scope=scope)
    square = [weight.astype(np.float64) ** 2 for weight in weights]
    groups = [(square[at].sum((1, 2, 3)) + square[at + 1].sum((0, 2, 3))) / 2 for at in range(2)]
    groups = [group / group.mean() for group in groups]
    bound = np.sort(np.concatenate(groups))[63]
    before, after = arrays(model), arrays(pruned)
    for at, group in enumerate(groups):
        gone = int((group <= bound).sum()) if scope == "Global" else 32
        left = (64 - gone + 4) // 8 * 8
        wanted = np.sort(np.argsort(group, kind="stable")[64 - left :])
        np.testing.assert_array_equal(kept_indices(before[f"c{at}"], after[f"c{at}"])[0], wanted)


def torch_masks(weights: dict[str, np.ndarray], scope: str, amount: float, folder: Path) -> dict[str, np.ndarray]:
    """PyTorch's masks for these weights; fails where PyTorch is missing."""
    np.savez(folder / "weights.npz", **weights)
    script = Path(__file__).with_name("prune_masks.py")
    command = [DEBIAN_PYTHON, script, folder / "weights.npz", folder / "masks.npz", scope, str(amount)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"PyTorch in {DEBIAN_PYTHON} (apt-get install python3-torch): {done.stderr[-500:]}"
    with np.load(folder / "masks.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(
    ("name", "amount", "scope"),
    [
        ("separable", 0.5, "Global"),
        ("separable", 0.9, "Local"),
        ("decoder", 0.1, "Global"),
        ("transformer", 0.55, "Local"),
        ("mlp", 0.9, "Global"),
        ("minilm", 0.5, "Global"),
    ],
)
def test_unstructured_masks_are_pytorchs(name: str, amount: float, scope: str, tmp_path: Path):
    if name == "minilm":
        model = example("minilm").model
    else:
        net = Net()
        x, y = globals()[name](net)
        model = net.save(tmp_path / "net.onnx", x, y)
    pruned, report = prune_model(model, tmp_path / "out", structure="Unstructured", sparsity=amount, scope=scope)
    graph, before, after = onnx.load(model).graph, arrays(model), arrays(pruned)
    used = [one for node in graph.node if node.op_type in LAYERS for one in node.input[:2] if one in before]
    weights = {name: before[name] for name in dict.fromkeys(used)}
    assert len(weights) > 2
    masks = torch_masks(weights, scope, amount, tmp_path)
    for name, weight in weights.items():
        wanted = np.where(masks[name] == 0, np.float32(0), weight)
        unlike = wanted != after[name]
        if unlike.any():
            # PyTorch picks among equal magnitudes in no stated order; only there may masks differ.
            tied = np.abs(weight[unlike])
            assert len(np.unique(tied)) == 1, f"{name}: {unlike.sum()} masks differ"
            everything = np.concatenate([one.ravel() for one in weights.values()]) if scope == "Global" else weight
            assert (np.abs(everything) == tied[0]).sum() > 1
    for name in before.keys() - weights.keys() & after.keys():
        np.testing.assert_array_equal(after[name], before[name], err_msg=f"{name} is no weight of a layer")
    assert "not time" in report["summary"]


def test_unstructured_weights_stay_where_the_recipe_says(tmp_path: Path):
    net = Net()
    x, y = mlp(net)
    model = net.save(tmp_path / "net.onnx", x, y)
    first = next(node for node in net.nodes if node.op_type == "MatMul")
    pruned, report = prune_model(
        model, tmp_path / "out", structure="Unstructured", sparsity=0.5, exclude=[first.name]
    )
    before, after = arrays(model), arrays(pruned)
    np.testing.assert_array_equal(after[first.input[1]], before[first.input[1]])
    assert report["skipped"] == [
        {"op": "MatMul", "count": 1, "reason": "excluded by the recipe", "nodes": [first.name]}
    ]


@pytest.mark.parametrize("name", ["separable", "decoder", "mlp", "transformer", "residual"])
def test_two_of_four_weights_along_the_input_axis_stay(name: str, tmp_path: Path):
    net = Net()
    x, y = globals()[name](net)
    model = net.save(tmp_path / "net.onnx", x, y)
    pruned, report = prune_model(model, tmp_path / "out", structure="TwoFour", sparsity=0.5)
    before, after = arrays(model), arrays(pruned)
    matched = 0
    for node in net.nodes:
        if node.op_type not in LAYERS or node.input[1] not in before:
            continue
        weight, now = before[node.input[1]], after[node.input[1]]
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": int(transposed), "MatMul": weight.ndim - 2}[node.op_type]
        if weight.shape[axis] % 4:
            np.testing.assert_array_equal(now, weight)
            continue
        matched += 1
        blocks = np.moveaxis(weight, axis, -1).reshape(-1, 4)
        kept = np.moveaxis(now, axis, -1).reshape(-1, 4)
        assert ((kept != 0).sum(axis=1) == 2).all()
        assert ((kept == 0) | (kept == blocks)).all()
        np.testing.assert_array_equal(np.sort(np.abs(blocks))[:, 2:], np.sort(np.abs(kept))[:, 2:])
    assert report["matched"] == matched > 0


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"structure": "TwoFour", "sparsity": 0.6}, "0.5"),
        ({"structure": "Channels", "sparsity": 0}, "above 0"),
        ({"structure": "Channels", "sparsity": 1.5}, "below 1"),
        ({"structure": "Channels", "sparsity": 0.5, "exclude": ["nobody"]}, "nobody"),
        ({"structure": "Heads", "sparsity": 0.5}, "prune.heads matched 0 of 2 nodes"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_words(step: dict, words: str, tmp_path: Path):
    net = Net()
    x = net.node("Softmax", net.linear(net.linear("x", 20, 64), 64, 64))
    model = net.save(tmp_path / "net.onnx", ["N", 20], x)
    done = run(model, {"steps": [{"prune": step}]}, tmp_path / "out")
    assert done.returncode == REFUSED, done.stderr[-2000:]
    assert words in done.stderr


def test_channels_that_must_stay_are_named_with_the_reason(tmp_path: Path):
    net = Net()
    hidden = net.node("Softmax", net.linear("x", 20, 64), axis=-1)
    model = net.save(tmp_path / "net.onnx", ["N", 20], net.linear(net.node("Relu", net.linear(hidden, 64, 32)), 32, 8))
    _, report = prune_model(model, tmp_path / "out", structure="Channels", sparsity=0.5)
    reasons = {one["reason"] for one in report["skipped"]}
    assert reasons == {"its channels reach Softmax, which looks across them", "its channels are an output of the model"}


def test_the_same_pruning_twice_writes_the_same_bytes(tmp_path: Path):
    net = Net()
    x, y = separable(net)
    model = net.save(tmp_path / "net.onnx", x, y)
    files = [prune_model(model, tmp_path / out, structure="Channels", sparsity=0.4)[0] for out in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
