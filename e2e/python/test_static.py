"""Holds `quantize: {mode: Static}` against onnxruntime.quantization.quantize_static, run live.

Ranges, scales, zero points, integers and biases are compared bit for bit, and the two graphs' outputs
where both place 8 bits alike. Settings are those of test_reference.py.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import MinMaxCalibrater
from oracle import session, speedup
from test_reference import (
    GATE_FAILED,
    HARDLY_MEASURED,
    REFUSED,
    Example,
    Figure,
    agreement,
    compress,
    last_output,
    magika,  # noqa: F401, a fixture
    megabytes,
    naive_static,
    run,
)

FLOAT = TensorProto.FLOAT


class OneByOne:
    """Hands samples to onnxruntime one at a time, as Lithe calibrates."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples, self.at = samples, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self.at += 1
        return {"x": self.samples[self.at - 1 : self.at]} if self.at <= len(self.samples) else None


@dataclass
class Net:
    """A small model built node by node; the input is `x`, the output whatever came last."""

    shape: list[int]
    """The input's shape without the batch."""
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "x"
    batch: int | str = "n"

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def weight(self, shape: tuple[int, ...], scale: float | None = None) -> str:
        """Adds a random weight whose channels differ in range; returns its name."""
        name = f"w{len(self.weights)}"
        values = self.random.normal(size=shape) * self.random.uniform(0.2, 3, size=shape[:1] + (1,) * (len(shape) - 1))
        values *= scale if scale is not None else 1 / np.sqrt(max(np.prod(shape) / max(shape[0], 1), 1))
        return self.constant(values.astype(np.float32), name)

    def constant(self, values: np.ndarray, name: str | None = None) -> str:
        """Adds a constant; returns its name."""
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """Adds a node that reads the last output and `inputs`; returns its output."""
        return self.node(op, self.last, *inputs, **attributes)

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Adds a node; returns its first output."""
        names = [f"t{len(self.nodes)}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{len(self.nodes)}", **attributes))
        self.last = names[0]
        return self.last

    def conv(self, channels: int, into: int, bias: bool = True, **attributes: object) -> str:
        """A 3x3 convolution."""
        group = attributes.get("group", 1)
        inputs = [self.weight((into, channels // group, 3, 3))] + ([self.weight((into,), 0.1)] if bias else [])
        return self.add("Conv", *inputs, pads=[1, 1, 1, 1], **attributes)

    def save(self, file: Path, opset: int = 17) -> Path:
        """Writes the model."""
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", FLOAT, [self.batch, *self.shape])],
            [helper.make_tensor_value_info(self.last, FLOAT, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), file)
        return file

    def samples(self, count: int = 24, seed: int = 3) -> np.ndarray:
        """Samples with a tail: a few values far out."""
        random = np.random.default_rng(seed)
        return (random.standard_t(3, size=(count, *self.shape))).astype(np.float32)


def static(
    model: Path,
    samples: np.ndarray,
    out: Path,
    evaluation: np.ndarray | None = None,
    target: str = "X64Vnni",
    **options: object,
) -> Path:
    """Lithe's static quantization, calibrated on `samples`; returns the model file."""
    data = out.with_suffix(".npz")
    judged = samples if evaluation is None else evaluation
    np.savez(data, **{"calibration/x": samples, "evaluation/x": judged})
    step = {"quantize": {"mode": "Static", "calibration": "MinMax", **options}}
    compress(model, [step], out, data, target=target)
    return out / "model.onnx"


def reference(model: Path, samples: np.ndarray, out: Path, **options: object) -> Path:
    """onnxruntime's static quantization with unsigned activations."""
    options = {"activation_type": QuantType.QUInt8, "calibrate_method": CalibrationMethod.MinMax} | options
    quantize_static(model, out, OneByOne(samples), weight_type=QuantType.QInt8, **options)
    return out


def constants(model: Path) -> dict[str, np.ndarray]:
    """Every initializer by name."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(model).graph.initializer}


def same_bits(ours: Path, theirs: Path, but: str = "$^") -> int:
    """Fails unless every initializer of `ours` is in `theirs` bit for bit; returns how many there are."""
    seen, wanted = constants(ours), constants(theirs)
    names = [name for name in seen if not re.search(but, name)]
    for name in names:
        assert name in wanted, f"{name} is not in the reference, which has {sorted(wanted)}"
        one, other = seen[name], wanted[name]
        assert one.dtype == other.dtype, f"{name}: {one.dtype}, {other.dtype}"
        # The reference gives scales of one channel no dimension.
        assert one.shape == other.shape or one.size == other.size == 1, f"{name}: {one.shape}, {other.shape}"
        assert one.tobytes() == other.tobytes(), f"{name} differs:\n{one.ravel()[:8]}\n{other.ravel()[:8]}"
    return len(names)


def without_last_pair(file: Path) -> Path:
    """The reference without QuantizeLinear and DequantizeLinear on the model's output.

    Lithe leaves the result of a last matrix product in floats: nobody reads it in 8 bits.
    """
    model = onnx.load(file)
    graph = model.graph
    output = graph.output[0].name
    makers = {name: node for node in graph.node for name in node.output}
    dequantize = makers[output]
    quantize = makers[dequantize.input[0]]
    product = makers[quantize.input[0]]
    product.output[0] = output
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    onnx.save(model, file)
    return file


def fused(model: Path, folder: Path) -> list[str]:
    """The operators of the graph that the runtime really executes."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def answers(model: Path, samples: np.ndarray, fuse: bool = True) -> np.ndarray:
    """The output for every sample, one by one."""
    runner = session(model, fused=fuse)
    return np.concatenate([runner.run(None, {"x": samples[at : at + 1]})[0] for at in range(len(samples))])


def likeness(ours: Path, model: Path, samples: np.ndarray) -> float:
    """The correlation of all outputs of two models."""
    return float(np.corrcoef(answers(ours, samples).ravel(), answers(model, samples).ravel())[0, 1])


def conv_net(group: int = 1, bias: bool = True, relu: str = "Relu", seed: int = 0) -> Net:
    """Conv, activation, Conv; both ends in 8 bits."""
    net = Net([4, 9, 7], seed)
    net.conv(4, 6, bias)
    if relu == "Clip":
        net.add("Clip", net.constant(np.float32(0)), net.constant(np.float32(6)))
    elif relu:
        net.add(relu)
    net.conv(6, 6, bias, group=group)
    return net


def residual_net() -> Net:
    """Convolutions that meet in Add, with pooling before and after."""
    net = Net([3, 12, 12], 5)
    net.conv(3, 8)
    skip = net.add("Relu")
    net.conv(8, 8)
    net.add("Relu")
    net.conv(8, 8)
    net.node("Add", net.last, skip)
    net.add("Relu")
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.conv(8, 8)
    return net


def gemm_net(transposed: bool, bias: bool, width: int = 13) -> Net:
    """Gemm, Relu, Gemm."""
    net = Net([width], 7)
    for shape in ((width, 20), (20, 5)):
        weight = net.weight(shape[::-1] if transposed else shape)
        inputs = [weight] + ([net.weight((shape[1],), 0.5)] if bias else [])
        net.add("Gemm", *inputs, transB=int(transposed))
        if shape[1] == 20:
            net.add("Relu")
    return net


def matmul_net() -> Net:
    """MatMul of three dimensions, Add with a constant, Relu, MatMul."""
    net = Net([6, 11], 9)
    net.add("MatMul", net.weight((11, 16)))
    net.add("Add", net.weight((16,), 0.4))
    net.add("Relu")
    net.add("MatMul", net.weight((16, 3)))
    return net


GRANULARITY = {True: "PerChannel", False: "PerTensor"}
REDUCE = {True: "Always", False: "Never"}
OPTIONS = list(itertools.product([True, False], [True, False]))


@pytest.mark.parametrize(("per_channel", "reduce"), OPTIONS)
@pytest.mark.parametrize(
    ("net", "ends_in_8_bits", "operators"),
    [
        (conv_net(), True, ["QLinearConv"] * 2),
        (conv_net(group=3, bias=False, relu="Clip"), True, ["QLinearConv"] * 2),
        (conv_net(group=6, relu=""), True, ["QLinearConv"] * 2),
        (residual_net(), True, ["NhwcMaxPool", "QLinearAdd"] + ["QLinearConv"] * 4),
        (gemm_net(False, True), False, ["QGemm"] * 2),
        (gemm_net(True, False), False, ["QGemm"] * 2),
        (matmul_net(), False, ["MatMulIntegerToFloat", "QLinearAdd", "QLinearMatMul"]),
    ],
    ids=["conv", "grouped", "depthwise", "residual", "gemm", "gemm-transposed", "matmul"],
)
def test_integers_scales_and_outputs_are_onnxruntimes(
    net: Net, ends_in_8_bits: bool, operators: list[str], per_channel: bool, reduce: bool, tmp_path: Path
):
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    options = {"granularity": GRANULARITY[per_channel], "reduceRange": REDUCE[reduce]}
    ours = static(model, samples, tmp_path / "out", **options)
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=per_channel, reduce_range=reduce)
    # The reference halves the range of constants of Add too, which are no weights.
    constant = "^w1_" if reduce and "QLinearMatMul" in operators else "$^"
    assert same_bits(ours, theirs, constant) >= 7
    if not ends_in_8_bits:
        theirs = without_last_pair(theirs)
    new = net.samples(16, 11)
    if constant == "$^":
        np.testing.assert_array_equal(answers(ours, new), answers(theirs, new))
    # Conversions stand at the ends, and the runtime moves channels last around its 8-bit kernels.
    ends = ("QuantizeLinear", "DequantizeLinear", "Transpose")
    kinds = [op for op in fused(ours, tmp_path) if op not in ends]
    assert kinds == sorted(operators), kinds
    # Signed weights of 8 bits saturate on some processors, in the reference just so; unsigned ones
    # hold the same numbers and never do.
    exact = static(model, samples, tmp_path / "unsigned", **options, weights="Unsigned")
    np.testing.assert_array_equal(answers(exact, new, fuse=False), answers(ours, new, fuse=False))
    assert [op for op in fused(exact, tmp_path) if op not in ends] == kinds
    assert likeness(exact, model, samples) > 0.95


def test_every_operator_with_an_8_bit_kernel_really_gets_it(tmp_path: Path):
    net = Net([6, 16, 16], 13)
    wide = net.conv(6, 8)
    gate = net.node("Sigmoid", wide)
    swish = net.node("Mul", wide, gate)
    net.conv(8, 8)
    leaky = net.add("LeakyRelu", alpha=0.1)
    joined = net.node("Concat", swish, leaky, axis=1)
    net.node("AveragePool", joined, kernel_shape=[2, 2], strides=[2, 2])
    sizes = net.constant(np.array([0, 0, 1, 1], np.int64)), net.constant(np.array([9, 99, 7, 7], np.int64))
    net.add("Slice", *sizes)
    net.add("Resize", "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    net.add("Split", net.constant(np.array([8, 8], np.int64)), axis=1, outputs=2)
    net.node("Add", net.last, net.last.replace("_0", "_1"))
    net.conv(8, 4)
    net.add("Transpose", perm=[0, 2, 3, 1])
    net.add("Reshape", net.constant(np.array([-1, 12 * 12 * 4], np.int64)))
    net.add("MatMul", net.weight((12 * 12 * 4, 5)))
    net.add("Softmax")
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    ours = static(model, samples, tmp_path / "out", weights="Unsigned")
    kinds = set(fused(ours, tmp_path))
    kernels = ["Sigmoid", "Mul", "LeakyRelu", "Concat", "AveragePool", "Add", "Conv"]
    assert {f"QLinear{one}" for one in kernels} | {"MatMulIntegerToFloat"} <= kinds, kinds
    assert not kinds & set(kernels), kinds
    # One conversion in, none between.
    assert fused(ours, tmp_path).count("QuantizeLinear") == 1
    assert fused(ours, tmp_path).count("DequantizeLinear") == 0
    assert likeness(ours, model, samples) > 0.95


@pytest.mark.parametrize(("per_channel", "reduce"), OPTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_generated_shapes_have_onnxruntimes_numbers(per_channel: bool, reduce: bool, seed: int, tmp_path: Path):
    random = np.random.default_rng(100 + seed)
    channels, into = (int(random.integers(1, 9)) for _ in range(2))
    net = Net([channels, int(random.integers(3, 9)), int(random.integers(3, 9))], seed)
    # A large bias on small weights overflows 32 bits unless the weights' scales are raised.
    weight = net.weight((into, channels, 3, 3), 1e-9 if seed % 2 else None)
    net.add("Conv", weight, net.weight((into,), 5), pads=[1] * 4)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Gemm", net.weight((into, 4)), net.weight((4,), 3))
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(8, seed)
    options = {"granularity": GRANULARITY[per_channel], "reduceRange": REDUCE[reduce]}
    ours = static(model, samples, tmp_path / "out", **options)
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=per_channel, reduce_range=reduce)
    assert same_bits(ours, theirs) >= 14
    assert "QLinearConv" in (ops := fused(ours, tmp_path)) and "QGemm" in ops and "QLinearGlobalAveragePool" in ops
    new = net.samples(8, 40 + seed)
    np.testing.assert_array_equal(answers(ours, new), answers(without_last_pair(theirs), new))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("Arm64", {"activation_type": QuantType.QInt8}),
        (
            "TensorRT",
            {
                "activation_type": QuantType.QInt8,
                "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
            },
        ),
    ],
)
@pytest.mark.parametrize("net", [conv_net(group=3), residual_net(), gemm_net(True, True)], ids=["conv", "residual", "gemm"])
def test_other_targets_have_onnxruntimes_numbers_under_its_options(
    net: Net, target: str, options: dict, per_channel: bool, tmp_path: Path
):
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    ours = static(model, samples, tmp_path / "out", target=target, granularity=GRANULARITY[per_channel])
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=per_channel, **options)
    # The reference gives MaxPool's output its input's scale, TensorRT gets none in between.
    assert same_bits(ours, theirs, "^t7_0_" if target == "TensorRT" else "$^") >= 7
    signed = {one.dtype for name, one in constants(ours).items() if name.endswith("_zero_point")}
    assert signed <= {np.dtype(np.int8), np.dtype(np.int32)}, signed
    assert likeness(ours, model, samples) > 0.95


def test_signed_weights_give_up_a_bit_where_the_target_saturates(tmp_path: Path):
    net = conv_net()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    ours = static(model, samples, tmp_path / "out", target="X64", weights="Signed")
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=True, reduce_range=True)
    assert same_bits(ours, theirs) >= 7
    unsigned = static(model, samples, tmp_path / "default", target="X64")
    assert constants(unsigned)["w0_quantized"].dtype == np.uint8


def test_tensorrt_adds_in_floats_what_it_fuses_itself(tmp_path: Path):
    net = residual_net()
    ours = static(net.save(tmp_path / "model.onnx"), net.samples(), tmp_path / "out", target="TensorRT")
    graph = onnx.load(ours).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        kinds = [makers.get(name, "") for name in node.input]
        if node.op_type == "Conv":
            assert kinds[:2] == ["DequantizeLinear"] * 2 and kinds[2:] == [""], kinds
        if node.op_type == "QuantizeLinear":
            assert kinds[0] != "Conv"
        if node.op_type == "Add":
            assert sorted(kinds) == ["Conv", "DequantizeLinear"]


def test_the_percentile_is_onnxruntimes(tmp_path: Path):
    net = Net([3, 40, 40])
    net.conv(3, 8)
    net.add("Sigmoid")
    net.conv(8, 4)
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(64)
    ours = static(model, samples, tmp_path / "out", calibration="Percentile")
    options = {"CalibTensorRangeSymmetric": False}
    method = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": options, "per_channel": True}
    theirs = reference(model, samples, tmp_path / "ort.onnx", **method)
    assert same_bits(ours, theirs) >= 10
    widest = constants(reference(model, samples, tmp_path / "minmax.onnx", per_channel=True))
    assert constants(ours)["x_scale"] < widest["x_scale"], "nothing was cut"


def test_the_moving_average_is_onnxruntimes(tmp_path: Path):
    net = conv_net()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(12)
    ours = constants(static(model, samples, tmp_path / "out", calibration="MovingAverage"))
    calibrater = MinMaxCalibrater(model, augmented_model_path=str(tmp_path / "a.onnx"), moving_average=True)
    calibrater.augment_graph()
    calibrater.create_inference_session()
    for sample in samples:
        calibrater.collect_data(OneByOne(sample[None]))
    for name, data in calibrater.compute_data().data.items():
        if f"{name}_scale" in ours:
            scale, zero = unsigned(*(np.float32(end.item()) for end in data.range_value))
            assert (ours[f"{name}_scale"], ours[f"{name}_zero_point"]) == (scale, zero), name


def unsigned(low: np.float32, high: np.float32) -> tuple[np.float32, int]:
    """Scale and zero point of a range in unsigned 8 bits."""
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (np.float64(high) - np.float64(low)) / 255
    return np.float32(scale), int(np.rint(-np.float64(low) / scale))


def least_divergence(values: np.ndarray) -> tuple[np.float32, np.float32]:
    """The range of least Kullback-Leibler divergence, written down without regard to time."""
    magnitudes = np.abs(values[values != 0])
    counts, edges = np.histogram(magnitudes, 2048, range=(np.float32(0), magnitudes.max()))
    best = (np.inf, 2048)
    for bins in range(128, 2049):
        kept = counts[:bins].astype(np.float64)
        clipped = kept.copy()
        clipped[-1] += counts[bins:].sum()
        if kept.sum() == 0:
            continue
        levels = np.minimum(((np.arange(bins) + 1) * 128 - 1) // bins, 127)
        filled = np.bincount(levels, clipped > 0, 128)
        spread = (np.bincount(levels, kept, 128) / np.maximum(filled, 1))[levels]
        there = clipped > 0
        p = clipped[there] / clipped.sum()
        q = np.maximum(spread[there], 1e-4) / kept.sum()
        divergence = (p * np.log(p / q)).sum()
        if divergence < best[0] * (1 - 1e-12):
            best = (divergence, bins)
    threshold = edges[best[1]]
    return max(-threshold, values.min()), min(threshold, values.max())


def least_squares(values: np.ndarray) -> tuple[np.float32, np.float32]:
    """The share of the range of least squared error."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    counts, edges = np.histogram(values, 2048, range=(low, high))
    middles = (edges[:-1].astype(np.float64) + edges[1:].astype(np.float64)) / 2
    best = (np.inf, low, high)
    for number in range(101):
        share = 1 - 0.005 * number
        ends = np.float32(np.float64(low) * share), np.float32(np.float64(high) * share)
        scale, zero = unsigned(*ends)
        back = (np.clip(np.rint(middles / np.float64(scale)) + zero, 0, 255) - zero) * np.float64(scale)
        error = (counts * (middles - back) ** 2).sum()
        if error < best[0] * (1 - 1e-12):
            best = (error, *ends)
    return best[1:]


@pytest.mark.parametrize(
    ("calibration", "oracle"), [("Entropy", least_divergence), ("MeanSquaredError", least_squares)]
)
def test_entropy_and_squared_error_are_numpys(calibration: str, oracle, tmp_path: Path, figure: Figure):
    net = Net([3, 24, 24])
    net.conv(3, 8)
    net.add("LeakyRelu", alpha=0.1)
    net.conv(8, 8)
    net.add("Relu")
    net.conv(8, 4)
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(32)
    ours = constants(static(model, samples, tmp_path / "out", calibration=calibration))
    shown = onnx.load(model)
    names = [name for name in ("x", "t0_0", "t1_0", "t3_0", "t4_0") if f"{name}_scale" in ours]
    assert len(names) == 5
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "x")
    onnx.save(shown, tmp_path / "shown.onnx")
    runner = session(tmp_path / "shown.onnx", fused=False)
    rows = [runner.run(None, {"x": sample[None]}) for sample in samples]
    values = {"x": samples} | {
        one.name: np.concatenate([row[at] for row in rows]) for at, one in enumerate(runner.get_outputs())
    }
    for name in names:
        low, high = oracle(values[name].ravel())
        assert (ours[f"{name}_scale"], ours[f"{name}_zero_point"]) == unsigned(low, high), name
        wide = unsigned(values[name].min(), values[name].max())[0]
        figure(f"{calibration} of {name}: step {ours[f'{name}_scale'] / wide:.3f} of MinMax's")


@pytest.mark.parametrize("calibration", ["MinMax", "Percentile", "Entropy", "MeanSquaredError"])
def test_the_same_samples_in_other_batches_give_the_same_bytes(calibration: str, tmp_path: Path):
    made = []
    for batch in ("n", 4):
        net = residual_net()
        net.batch = batch
        model = net.save(tmp_path / f"{batch}.onnx")
        file = static(model, net.samples(), tmp_path / f"out{batch}", calibration=calibration)
        made.append({name: values.tobytes() for name, values in constants(file).items()})
    assert made[0] == made[1]


def test_the_seed_draws_calibration_samples_that_do_not_judge(tmp_path: Path):
    net = conv_net()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(41)
    np.savez(tmp_path / "x.npz", x=samples)
    scales, judged = [], []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = {"steps": [{"quantize": {"mode": "Static", "calibration": "MinMax"}}], "seed": seed}
        done = run(model, recipe | {"evaluation": {"latencyPairs": 3}}, tmp_path / out, tmp_path / "x.npz")
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / out / "manifest.json").read_text())
        judged.append(manifest["evaluation"]["samples"])
        assert "20 samples" in manifest["steps"][0]["summary"]
        scales.append(constants(tmp_path / out / "model.onnx")["x_scale"].tobytes())
    assert judged == [21] * 3
    assert scales[0] == scales[1] != scales[2]


def poisoned(samples: np.ndarray, value: float) -> np.ndarray:
    """The samples with one number replaced."""
    samples = samples.copy()
    samples.ravel()[5] = value
    return samples


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (lambda x: {"x": x[:1]}, ["divided"]),
        (lambda x: {"evaluation/x": x}, ["calibration/"]),
        (lambda x: {"calibration/x": x[:0], "evaluation/x": x}, ["calibration", "no samples"]),
        (lambda x: {"calibration/y": x, "evaluation/x": x}, ["calibration", '"x"', '"y"']),
        (lambda x: {"calibration/x": x.astype(np.float64), "evaluation/x": x}, ["FP64", "FP32"]),
        (lambda x: {"calibration/x": x[:, :2], "evaluation/x": x}, ["shape", "calibration"]),
        (lambda x: {"calibration/x": poisoned(x, np.nan), "evaluation/x": x}, ["DataInvalid", "NaN", '"x"']),
        (lambda x: {"calibration/x": poisoned(x, -np.inf), "evaluation/x": x}, ["DataInvalid", "inf", '"x"']),
        (None, ["data"]),
    ],
    ids=["one", "missing", "empty", "name", "type", "shape", "nan", "infinity", "none"],
)
def test_calibration_data_that_cannot_be_used_are_refused(arrays, words: list[str], tmp_path: Path):
    net = conv_net()
    model = net.save(tmp_path / "model.onnx")
    data = tmp_path / "x.npz" if arrays else None
    if arrays:
        np.savez(data, **arrays(net.samples(8)))
    recipe = {"steps": [{"quantize": {"mode": "Static"}}], "evaluation": HARDLY_MEASURED}
    done = run(model, recipe, tmp_path / "out", data)
    assert done.returncode == REFUSED, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_what_does_not_fuse_stays_in_floats_and_is_reported(tmp_path: Path):
    net = Net([4, 8, 8])
    net.add("ConvTranspose", net.weight((4, 4, 3, 3)))
    np.savez(tmp_path / "x.npz", x=net.samples(8))
    recipe = {"steps": [{"quantize": {"mode": "Static"}}], "evaluation": HARDLY_MEASURED}
    model = net.save(tmp_path / "model.onnx")
    done = run(model, recipe, tmp_path / "out", tmp_path / "x.npz")
    assert done.returncode == REFUSED
    assert "matched 0 of 1 nodes: 1 ConvTranspose" in done.stderr, done.stderr


def test_old_operator_sets_are_upgraded(tmp_path: Path):
    net = conv_net()
    model = net.save(tmp_path / "model.onnx", opset=11)
    ours = static(model, net.samples(8), tmp_path / "out")
    assert fused(ours, tmp_path).count("QLinearConv") == 2


def test_excluded_nodes_stay_in_floats(tmp_path: Path):
    net = conv_net()
    model = net.save(tmp_path / "model.onnx")
    ours = static(model, net.samples(8), tmp_path / "out", exclude=["n2"])
    assert sorted(set(fused(ours, tmp_path)) & {"Conv", "QLinearConv", "FusedConv"}) == ["Conv", "QLinearConv"]


def plain_cnn(size: int = 32, width: int = 48) -> Net:
    """A plain CNN with 3x3 convolutions, pooling and a classifier."""
    net = Net([3, size, size], 21)
    into = 3
    for _ in range(3):
        net.conv(into, width)
        net.add("Relu")
        net.conv(width, width)
        net.add("Relu")
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        into = width
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Gemm", net.weight((width, 10)), net.weight((10,), 0.1))
    return net


def test_a_plain_cnn_gets_faster(tmp_path: Path, figure: Figure):
    net = plain_cnn()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(64)
    ratios = {}
    for weights, reduce in (("Unsigned", "Never"), ("Signed", "Never"), ("Signed", "Always")):
        name = f"{weights}, reduceRange {reduce}"
        ours = static(model, samples, tmp_path / f"{weights}{reduce}", weights=weights, reduceRange=reduce)
        ratios[name] = speedup(model, ours, {"x": samples})
        sizes = f"{model.stat().st_size} -> {ours.stat().st_size} bytes"
        close = likeness(ours, model, samples)
        figure(f"plain CNN, static, {name}: {sizes}, {ratios[name]:.2f}x, correlation {close:.4f}")
        assert model.stat().st_size > 3.5 * ours.stat().st_size
        assert close > 0.99
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=True)
    figure(f"plain CNN by onnxruntime, static: {speedup(model, theirs, {'x': samples}):.2f}x")


PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_samples(tmp_path: Path, figure: Figure):
    net = plain_cnn(16, 16)
    model = net.save(tmp_path / "model.onnx")
    recipe = tmp_path / "recipe.yaml"
    step = {"quantize": {"mode": "Static", "calibration": "Entropy"}}
    recipe.write_text(json.dumps({"steps": [step], "evaluation": HARDLY_MEASURED}))
    peaks = {}
    for count in (10, 2000):
        data = tmp_path / f"{count}.npz"
        np.savez(data, **{"calibration/x": net.samples(count), "evaluation/x": net.samples(8)})
        command = [os.environ["LITHE_WORKER"], "compress", "--model", model, "--recipe", recipe]
        command += ["--data", data, "--out", tmp_path / f"out{count}"]
        library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
        environment = {"ORT_DYLIB_PATH": str(library)} | os.environ
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout)
    held = sum(np.load(tmp_path / "2000.npz")[name].nbytes for name in ("calibration/x", "evaluation/x")) / 2**20
    figure(f"peak memory: {peaks[10]} MiB for 10 samples, {peaks[2000]} MiB for 2000 (their data: {held:.0f} MiB)")
    assert peaks[2000] - peaks[10] < 2 * held + 16


def test_magika_survives_because_only_what_fuses_is_quantized(
    magika: Example,  # noqa: F811
    tmp_path: Path,
    figure: Figure,
):
    samples = magika.samples()
    name = next(iter(samples))
    few, judged = samples[name][:48], samples[name][128:248]
    naive = naive_static(magika, tmp_path / "naive.onnx")
    step = {"quantize": {"mode": "Static", "calibration": "MinMax"}}
    np.savez(tmp_path / "x.npz", **{f"calibration/{name}": few, f"evaluation/{name}": judged})
    compress(magika.model, [step], tmp_path / "out", tmp_path / "x.npz")
    kept = {}
    original = last_output(magika.model, {name: judged})
    for who, file in (("onnxruntime's tool", naive), ("Lithe", tmp_path / "out/model.onnx")):
        kept[who] = agreement(original, last_output(file, {name: judged}))
        ratio = speedup(magika.model, file, {name: judged}, 15)
        figure(f"Magika, static MinMax by {who}: {megabytes(file)}, agreement {kept[who]:.2%}, {ratio:.2f}x")
    assert kept["onnxruntime's tool"] < 0.5 < 0.98 < kept["Lithe"]

    gates = {"metric": "SignalToNoise", "minimum": 60}
    recipe = {"steps": [step], "gates": gates, "evaluation": HARDLY_MEASURED}
    done = run(magika.model, recipe, tmp_path / "gate", tmp_path / "x.npz")
    assert done.returncode == GATE_FAILED, done.stdout + done.stderr[-2000:]
    [line] = [line for line in done.stderr.splitlines() if "minimum" in line]
    assert re.search(r"SignalToNoise \d+\.\d", line), f"no measured figure in: {line}"
    figure(f"Magika, static: {line}")


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_transposed_convolutions_are_onnxruntimes(per_channel: bool, tmp_path: Path):
    net = Net([16, 6, 6])
    net.conv(16, 24)
    net.add("ConvTranspose", net.weight((24, 20, 3, 3)), strides=[2, 2])
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(8)
    ours = static(model, samples, tmp_path / "out", granularity=GRANULARITY[per_channel])
    theirs = reference(model, samples, tmp_path / "ort.onnx", per_channel=per_channel)
    # Its scales are shaped for Mul.
    assert same_bits(ours, theirs, "^w2_scale") >= 10
    assert constants(ours)["w2_scale"].tobytes() == constants(theirs)["w2_scale"].tobytes()
    assert "ConvTranspose" in (ops := fused(ours, tmp_path)) and "Mul" not in ops, ops
    assert likeness(ours, model, samples) > 0.99
