"""Holds steps that store weights smaller against the tools of ONNX Runtime that do the same.

Settings are those of test_reference.py. The oracles run live: matmul_nbits_quantizer for
`mode: WeightOnly`, transformers.float16 for `mode: Float16`, quantize_dynamic for LSTM.
"""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from oracle import session, speedup
from test_reference import (
    REFUSED,
    Example,
    Figure,
    cosine,
    example,
    last_output,
    megabytes,
    ort_dynamic,
    run,
)

from zoo import ZOO, Member

# Both tools report every node.
logging.disable(logging.INFO)


@pytest.fixture(scope="session")
def minilm() -> Example:
    """Sentences: tokens int64 [N, 64] to a vector of 384, the last output."""
    return example("minilm")


def converted(model: Path, step: dict, out: Path) -> Path:
    """What Lithe makes of a model by one step, unjudged."""
    done = run(model, {"steps": [{"quantize": step}]}, out)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    return out / "model.onnx"


def saved(folder: Path, nodes, inputs, outputs, weights, opset: int = 17) -> Path:
    """A model file of these parts; inputs and outputs by name, with shapes of floats."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "made",
        [value(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [value(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    file = folder / "model.onnx"
    onnx.save(model, file)
    return file


def initializers(model: Path) -> dict[str, np.ndarray]:
    """All initializers by name, those of bodies included."""
    found: dict[str, np.ndarray] = {}

    def collect(graph: onnx.GraphProto) -> None:
        found.update({one.name: numpy_helper.to_array(one) for one in graph.initializer})
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    collect(attribute.g)

    collect(onnx.load(model).graph)
    return found


def nodes_of(model: Path, op: str) -> list[onnx.NodeProto]:
    """The nodes of one operator in the main graph, in order."""
    return [node for node in onnx.load(model).graph.node if node.op_type == op]


# Weight-only


def ort_nbits(source: Path, target: Path, bits: int, block: int) -> Path:
    """ONNX Runtime's own symmetric blocks, computed in 8-bit integers as Lithe's are."""
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, target)
    return target


def blocks(model: Path) -> list[tuple[dict[str, int], bytes, bytes]]:
    """Attributes, packed bytes and scales of each MatMulNBits, in order."""
    arrays = initializers(model)
    return [
        (
            {one.name: one.i for one in node.attribute},
            arrays[node.input[1]].tobytes(),
            arrays[node.input[2]].tobytes(),
        )
        for node in nodes_of(model, "MatMulNBits")
    ]


def odd_matrix(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """A matrix with ties, zeros of both signs, columns without weights and very small numbers."""
    matrix = generator.standard_normal((rows, columns)).astype(np.float32)
    kinds = [
        lambda column: column,
        lambda column: np.round(column * 4) / 4,
        lambda column: column * 0,
        lambda column: np.where(np.arange(rows) < 40, np.float32(-0.0), column),
        lambda column: column * np.float32(1e-38),
        lambda column: np.full_like(column, column[0]),
        lambda column: np.where(np.arange(rows) % 2, -np.abs(column).max(), np.abs(column).max()),
    ]
    for at in range(1, columns):
        matrix[:, at] = kinds[at % len(kinds)](matrix[:, at])
    return matrix


SHAPES = [(64, 24), (384, 8), (100, 7), (63, 5), (257, 3), (48, 1), (1024, 9), (129, 30)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_blocks_are_onnxruntimes_bit_for_bit(bits: int, block: int, tmp_path: Path):
    generator = np.random.default_rng(bits * 1000 + block)
    shapes = [(rows, columns) for rows, columns in SHAPES if rows * 2 > block]
    matrices = {f"w{at}": odd_matrix(*shape, generator) for at, shape in enumerate(shapes)}
    products = [helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"y{at}"], f"m{at}") for at in range(len(shapes))]
    inputs = {f"x{at}": ["n", rows] for at, (rows, _) in enumerate(shapes)}
    outputs = {f"y{at}": ["n", columns] for at, (_, columns) in enumerate(shapes)}
    source = saved(tmp_path, products, inputs, outputs, matrices)

    ours = converted(source, {"mode": "WeightOnly", "bits": bits, "blockSize": block}, tmp_path / "out")
    theirs = ort_nbits(source, tmp_path / "ort.onnx", bits, block)
    wanted, seen = blocks(theirs), blocks(ours)
    assert len(seen) == len(wanted) == len(shapes)
    for (rows, columns), one, other in zip(shapes, wanted, seen, strict=True):
        assert other == one, f"weights of [{rows}, {columns}] differ"

    samples = {
        name: generator.standard_normal((5, rows)).astype(np.float32) for name, (_, rows) in inputs.items()
    }
    for wanted, seen in zip(session(theirs).run(None, samples), session(ours).run(None, samples), strict=True):
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_becomes_a_product_and_a_sum(bits: int, trans_a: int, trans_b: int, tmp_path: Path):
    generator = np.random.default_rng(5)
    matrix = generator.standard_normal((96, 40)).astype(np.float32)
    bias = generator.standard_normal(40).astype(np.float32)
    options = {"alpha": 0.5, "beta": 2.0, "transA": trans_a, "transB": trans_b}
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g", **options)
    weights = {"w": matrix.T.copy() if trans_b else matrix, "b": bias}
    shape = [96, 6] if trans_a else [6, 96]
    source = saved(tmp_path, [gemm], {"x": shape}, {"y": [6, 40]}, weights)
    ours = converted(source, {"mode": "WeightOnly", "bits": bits}, tmp_path / "out")

    product = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    plain = saved(tmp_path, [product], {"x": [6, 96]}, {"y": [6, 40]}, {"w": matrix * np.float32(0.5)})
    theirs = ort_nbits(plain, tmp_path / "ort.onnx", bits, 32)
    assert blocks(ours) == blocks(theirs)
    x = generator.standard_normal((6, 96)).astype(np.float32)
    # Fused, the runtime would add the bias inside the product, in another order.
    [wanted] = session(theirs, fused=False).run(None, {"x": x})
    [seen] = session(ours, fused=False).run(None, {"x": x.T.copy() if trans_a else x})
    np.testing.assert_array_equal(seen, wanted + 2 * bias)


@pytest.mark.parametrize("bits", [4, 8])
def test_weight_only_minilm_is_onnxruntimes_bit_for_bit(
    bits: int, minilm: Example, tmp_path: Path, figure: Figure
):
    step = {"mode": "WeightOnly", "bits": bits, "embeddings": "Keep"}
    ours = converted(minilm.model, step, tmp_path / "out")
    theirs = ort_nbits(minilm.model, tmp_path / "ort.onnx", bits, 32)
    wanted, seen = blocks(theirs), blocks(ours)
    assert len(wanted) > 0
    assert seen == wanted
    samples = {key: rows[:4] for key, rows in minilm.samples().items()}
    answers = last_output(ours, samples, fused=False)
    np.testing.assert_array_equal(answers, last_output(theirs, samples, fused=False))

    small = converted(minilm.model, step | {"embeddings": "PerRow"}, tmp_path / "small")
    samples = {key: rows[:24] for key, rows in minilm.samples().items()}
    original = last_output(minilm.model, samples)
    for name, file in (("Lithe", small), ("onnxruntime", theirs)):
        close = cosine(original, last_output(file, samples))
        ratio = speedup(minilm.model, file, samples, pairs=9)
        sizes = f"{megabytes(minilm.model)} -> {megabytes(file)}"
        figure(f"MiniLM in {bits} bits by {name}: {sizes}, cosine {close:.4f}, {ratio:.2f}x")
        assert close >= (0.999 if bits == 8 else 0.95)


def test_what_cannot_become_blocks_is_left_and_named(tmp_path: Path):
    generator = np.random.default_rng(1)
    array = lambda *shape: generator.standard_normal(shape).astype(np.float32)  # noqa: E731
    weights = {"w": array(64, 16), "batched": array(2, 16, 16), "tiny": array(4, 2)}
    products = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "taken"),
        helper.make_node("MatMul", ["a", "batched"], ["b"], "batched"),
        helper.make_node("MatMul", ["b", "b"], ["c"], "computed"),
        helper.make_node("MatMul", ["z", "tiny"], ["d"], "tiny"),
    ]
    source = saved(tmp_path, products, {"x": [2, 16, 64], "z": [1, 4]}, {"c": [2, 16, 16], "d": [1, 2]}, weights)
    done = run(source, {"steps": [{"quantize": {"mode": "WeightOnly"}}]}, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [step] = json.loads((tmp_path / "out/manifest.json").read_text())["steps"]
    assert step["matched"] == 1
    assert {name for one in step["skipped"] for name in one["nodes"]} == {"batched", "computed", "tiny"}


@pytest.mark.parametrize(
    ("step", "culprit"),
    [
        ({"bits": 5}, "4 or 8"),
        ({"bits": 2}, "4 or 8"),
        ({"blockSize": 48}, "blockSize is 48"),
        ({"blockSize": 512}, "blockSize is 512"),
        ({"calibration": "MinMax"}, "calibration has no meaning with mode WeightOnly"),
        ({"granularity": "PerTensor"}, "granularity has no meaning with mode WeightOnly"),
        ({"exclude": ["nobody"]}, "nobody"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_weight_only_step_that_cannot_be_right_is_refused(step: dict, culprit: str, minilm: Example, tmp_path: Path):
    done = run(minilm.model, {"steps": [{"quantize": {"mode": "WeightOnly"} | step}]}, tmp_path / "out")
    assert done.returncode == REFUSED, done.stderr[-2000:]
    assert culprit in done.stderr


# Half precision

FLOAT16 = {"mode": "Float16"}


def ort_float16(source: Path) -> dict[str, np.ndarray]:
    """The initializers that ONNX Runtime's own converter writes, by name."""
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def relative(wanted: np.ndarray, seen: np.ndarray) -> float:
    """The length of the difference over the length of what is wanted."""
    wanted, seen = wanted.astype(np.float64), seen.astype(np.float64)
    length = np.linalg.norm(wanted)
    return float(np.linalg.norm(seen - wanted) / length) if length else float(np.abs(seen).max(initial=0))


def close(source: Path, ours: Path, inputs: dict[str, np.ndarray], bound: float = 1e-2) -> float:
    """The largest relative error over all outputs; types and shapes must be the same."""
    worst = 0.0
    for wanted, seen in zip(session(source).run(None, inputs), session(ours).run(None, inputs), strict=True):
        assert seen.dtype == wanted.dtype
        assert seen.shape == wanted.shape
        if wanted.dtype.kind == "f":
            assert np.isfinite(seen).all() == np.isfinite(wanted).all()
            worst = max(worst, relative(wanted, seen))
    assert worst < bound
    return worst


def no_cast_twice(source: Path, ours: Path) -> None:
    """Fails where a value that a new Cast made is cast again, or one value is newly cast twice to one type."""

    def look(graph: onnx.GraphProto, known: set[str]) -> None:
        casts = [node for node in graph.node if node.op_type == "Cast" and node.name not in known]
        made = {node.output[0] for node in casts}
        pairs = [(node.input[0], node.attribute[0].i) for node in casts]
        assert len(set(pairs)) == len(pairs), "a value is cast twice to one type"
        assert not made & {name for name, _ in pairs}, "the result of a Cast is cast again"
        for body in inner(graph):
            look(body, known)

    def inner(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
        attributes = [one for node in graph.node for one in node.attribute]
        return [one.g for one in attributes if one.type == onnx.AttributeProto.GRAPH]

    def names(graph: onnx.GraphProto) -> set[str]:
        return {node.name for node in graph.node}.union(*map(names, inner(graph)))

    look(onnx.load(ours).graph, names(onnx.load(source).graph))


def array(*shape: int, seed: int = 3) -> np.ndarray:
    """Seeded standard normal floats."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


make = helper.make_node


def network() -> tuple:
    """Convolutions, normalizations, pooling and a blocked Max that shares a weight with an Add."""
    nodes = [
        make("Conv", ["x", "k", "kb"], ["c"], "conv", pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["c", "gain", "kb", "kb", "var"], ["n"], "norm"),
        make("Relu", ["n"], ["r"], "relu"),
        make("Add", ["r", "shared"], ["a"], "add"),
        make("Max", ["a", "shared"], ["m"], "max"),
        make("MaxPool", ["m"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["p"], ["f"], "flat"),
        make("Gemm", ["f", "g", "gb"], ["y"], "gemm", transB=1),
    ]
    weights = {
        "k": array(6, 3, 3, 3),
        "kb": array(6) * np.float32(0.1),
        "gain": array(6),
        "var": np.abs(array(6)) + np.float32(0.5),
        "shared": array(6, 1, 1),
        "g": array(5, 96) * np.float32(0.1),
        "gb": array(5),
    }
    return nodes, {"x": [2, 3, 8, 8]}, {"y": [2, 5]}, weights


def casts() -> tuple:
    """Casts of every direction, and values that nodes make from nothing or from integers."""
    nodes = [
        make("Shape", ["x"], ["s"], "shape"),
        make("Cast", ["s"], ["sf"], "to_float", to=TensorProto.FLOAT),
        make("ReduceMean", ["sf"], ["mean"], "mean", keepdims=0),
        make("Cast", ["x"], ["i"], "to_int", to=TensorProto.INT64),
        make("Cast", ["i"], ["if"], "back", to=TensorProto.FLOAT),
        make("ConstantOfShape", ["s"], ["zeros"], "zeros"),
        make("ConstantOfShape", ["s"], ["ones"], "ones", value=helper.make_tensor("", TensorProto.FLOAT, [1], [1.5])),
        make("EyeLike", ["w"], ["eye"], "eye"),
        make("Cast", ["x"], ["same"], "same", to=TensorProto.FLOAT),
        make("Add", ["if", "zeros"], ["a"], "a"),
        make("Mul", ["a", "ones"], ["b"], "b"),
        make("Add", ["b", "same"], ["c"], "c"),
        make("MatMul", ["c", "eye"], ["d"], "d"),
        make("MatMul", ["d", "w"], ["e"], "e"),
        make("Div", ["e", "mean"], ["y"], "y"),
        make("Range", ["start", "limit", "delta"], ["range"], "range"),
        make("Cast", ["range"], ["z"], "ints", to=TensorProto.INT32),
        make("Cast", ["z"], ["zf"], "floats", to=TensorProto.FLOAT),
    ]
    scalars = {"start": 0.0, "limit": 4.0, "delta": 1.0}
    weights = {name: np.array(value, np.float32) for name, value in scalars.items()} | {"w": array(4, 4)}
    return nodes, {"x": [3, 4]}, {"y": [3, 4], "zf": [4], "d": [3, 4]}, weights


def resize() -> tuple:
    """Resize, whose scales are floats in any precision, and a TopK whose values are read on."""
    nodes = [
        make("Resize", ["x", "", "scales"], ["r"], "resize", mode="linear"),
        make("Reshape", ["r", "flat"], ["f"], "reshape"),
        make("TopK", ["f", "k"], ["v", "at"], "top"),
        make("Mul", ["v", "w"], ["y"], "mul"),
    ]
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "flat": np.array([1, -1], np.int64),
        "k": np.array([5], np.int64),
        "w": array(5),
    }
    return nodes, {"x": [1, 2, 3, 3]}, {"y": [1, 5]}, weights


def sequences() -> tuple:
    """A normalization of which mean and deviation are read, and an LSTM."""
    nodes = [
        make("LayerNormalization", ["x", "scale"], ["n", "mean", "dev"], "norm"),
        make("Mul", ["dev", "half"], ["d"], "scaled"),
        make("LSTM", ["n", "W", "R"], ["all", "h", "c"], "lstm", hidden_size=6),
        make("Identity", ["all"], ["y"], "identity"),
    ]
    weights = {"scale": array(8), "half": np.array([0.5], np.float32), "W": array(1, 24, 8), "R": array(1, 24, 6)}
    return nodes, {"x": [5, 2, 8]}, {"y": [5, 1, 2, 6], "d": [5, 2, 1], "mean": [5, 2, 1], "h": [1, 2, 6]}, weights


def bodies() -> tuple:
    """If, Loop and Scan with weights of their own and of the graph around them."""
    value, tensor = helper.make_tensor_value_info, numpy_helper.from_array
    floats, shape = TensorProto.FLOAT, [3, 4]
    branch = lambda op, own: helper.make_graph(  # noqa: E731
        [make("MatMul", ["h", "outer"], [own + "m"], own), make(op, [own + "m", own], [own + "o"], own + "op")],
        own,
        [],
        [value(own + "o", floats, shape)],
        [tensor(array(3, 4, seed=len(own)), own)],
    )
    loop = helper.make_graph(
        [
            make("Tanh", ["state"], ["t"], "tanh"),
            make("Mul", ["t", "step"], ["u"], "step"),
            make("Add", ["u", "chosen"], ["next"], "next"),
            make("Identity", ["go"], ["on"], "on"),
        ],
        "loop",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state", floats, shape)],
        [value("on", TensorProto.BOOL, []), value("next", floats, shape)],
        [tensor(array(4, seed=9), "step")],
    )
    scan = helper.make_graph(
        [make("Add", ["acc", "row"], ["sum"], "sum"), make("Max", ["sum", "floor"], ["top"], "top")],
        "scan",
        [value("acc", floats, [4]), value("row", floats, [4])],
        [value("sum", floats, [4]), value("top", floats, [4])],
        [tensor(array(4, seed=10), "floor")],
    )
    nodes = [
        make("MatMul", ["x", "outer"], ["h"], "before"),
        make("ReduceSum", ["x"], ["total"], "total", keepdims=0),
        make("Greater", ["total", "zero"], ["yes"], "yes"),
        make("If", ["yes"], ["chosen"], "if", then_branch=branch("Add", "then"), else_branch=branch("Mul", "other")),
        make("Loop", ["times", "", "h"], ["looped"], "loop", body=loop),
        make("Scan", ["start", "looped"], ["last", "tops"], "scan", body=scan, num_scan_inputs=1),
        make("Mul", ["tops", "outer_row"], ["y"], "after"),
    ]
    weights = {
        "outer": array(4, 4) * np.float32(0.5),
        "outer_row": array(4),
        "zero": np.array(0, np.float32),
        "times": np.array(3, np.int64),
        "start": np.zeros(4, np.float32),
    }
    return nodes, {"x": shape}, {"y": shape, "last": [4]}, weights


MADE = {made.__name__: made for made in (network, casts, resize, sequences, bodies)}


@pytest.mark.parametrize("name", MADE)
def test_half_precision_weights_are_onnxruntimes_bit_for_bit(name: str, tmp_path: Path):
    source = saved(tmp_path, *MADE[name]())
    ours = converted(source, FLOAT16, tmp_path / "out")
    onnx.checker.check_model(onnx.load(ours), full_check=True)
    # What goes into a Scan crosses the border of a body, where Lithe keeps 32 bits.
    wanted = {name: one for name, one in ort_float16(source).items() if name != "start"}
    same_halves(wanted, initializers(ours))
    no_cast_twice(source, ours)
    for seed in range(4):
        inputs = {one.name: array(*one.shape, seed=seed) for one in session(source).get_inputs()}
        close(source, ours, inputs)


def same_halves(wanted: dict[str, np.ndarray], seen: dict[str, np.ndarray]) -> None:
    """Fails unless every initializer of ONNX Runtime's is among ours, under its name or beside it."""
    assert any(one.dtype == np.float16 for one in wanted.values())
    for name, one in wanted.items():
        # A weight that is read in both precisions has both here; there it is cast back.
        other = seen.get(f"{name}_fp16", seen[name]) if one.dtype == np.float16 else seen[name]
        assert other.dtype == one.dtype, name
        assert other.tobytes() == one.tobytes(), name


def test_half_precision_of_odd_numbers_is_onnxruntimes(tmp_path: Path):
    bits = np.random.default_rng(2).integers(0, 2**32, 200_000, np.uint32)
    numbers = bits.view(np.float32)
    edges = [0.0, -0.0, 5.96e-8, 5.9604e-8, 1e-8, -1e-8, 1e-45, 65504, -65504, 6.1e-5, np.inf, -np.inf]
    numbers = np.concatenate([numbers[np.abs(numbers) <= 65504], np.array(edges, np.float32)])
    ties = (np.arange(2048, 4096, dtype=np.float32) + np.float32(0.5)) / np.float32(16)
    weights = {"w": np.concatenate([numbers, ties]).astype(np.float32)}
    source = saved(tmp_path, [make("Add", ["x", "w"], ["y"], "add")], {"x": [1]}, {"y": [len(weights["w"])]}, weights)
    same_halves(ort_float16(source), initializers(converted(source, FLOAT16, tmp_path / "out")))


def test_a_node_with_a_weight_beyond_half_precision_stays_in_32_bits(tmp_path: Path):
    nodes = [
        make("Sub", ["one", "mask"], ["off"], "off"),
        make("Mul", ["off", "lowest"], ["bias"], "bias"),
        make("MatMul", ["x", "w"], ["scores"], "scores"),
        make("Add", ["scores", "bias"], ["masked"], "masked"),
        make("Softmax", ["masked"], ["y"], "softmax"),
        make("Mul", ["scores", "huge"], ["h"], "huge"),
        make("Div", ["h", "huge"], ["z"], "small"),
    ]
    weights = {
        "one": np.array(1, np.float32),
        "lowest": np.array(np.finfo(np.float32).min),
        "w": array(6, 4),
        "huge": np.array([65505.0], np.float32),
    }
    source = saved(tmp_path, nodes, {"x": [3, 6], "mask": [3, 4]}, {"y": [3, 4], "z": [3, 4]}, weights)
    ours = converted(source, FLOAT16, tmp_path / "out")
    seen = initializers(ours)
    assert {name for name, one in seen.items() if one.dtype == np.float32} >= {"lowest", "huge"}
    [step] = json.loads((tmp_path / "out/manifest.json").read_text())["steps"]
    [skipped] = [one for one in step["skipped"] if "65504" in one["reason"] and one["op"] == "Mul"]
    assert skipped["nodes"] == ["bias", "huge"]
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    close(source, ours, {"x": array(3, 6), "mask": mask})
    # Masked altogether, infinities in place of large numbers would make every answer NaN. Asked of ONNX's
    # reference, which computes in half precision, where ONNX Runtime on a CPU leaves the casts out.
    [answer, _] = ReferenceEvaluator(str(ours)).run(None, {"x": array(3, 6), "mask": mask * 0})
    assert np.isfinite(answer).all()


def test_excluded_nodes_keep_their_32_bits(tmp_path: Path):
    source = saved(tmp_path, *network())
    ours = converted(source, FLOAT16 | {"exclude": ["gemm", "add"]}, tmp_path / "out")
    seen = initializers(ours)
    assert {name for name, one in seen.items() if one.dtype == np.float32} == {"g", "gb", "shared"}
    close(source, ours, {"x": array(2, 3, 8, 8)})


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
def test_half_precision_in_every_age_of_the_format(opset: int, tmp_path: Path):
    nodes, inputs, outputs, weights = network()
    source = saved(tmp_path, nodes, inputs, outputs, weights, opset)
    ours = converted(source, FLOAT16, tmp_path / "out")
    same_halves(ort_float16(source), initializers(ours))
    close(source, ours, {"x": array(2, 3, 8, 8)})


@pytest.mark.parametrize("name", ["minilm", "magika"])
def test_half_precision_of_real_models(name: str, tmp_path: Path, figure: Figure):
    source = example(name)
    ours = converted(source.model, FLOAT16, tmp_path / "out")
    wanted, seen = ort_float16(source.model), initializers(ours)
    halves = {one.tobytes() for one in seen.values()}
    missing = [key for key, one in wanted.items() if one.dtype == np.float16 and one.tobytes() not in halves]
    assert missing == []
    no_cast_twice(source.model, ours)
    samples = {key: rows[:4] for key, rows in source.samples().items()}
    worst = close(source.model, ours, samples)
    sizes = f"{megabytes(source.model)} -> {megabytes(ours)}"
    ratio = speedup(source.model, ours, samples, pairs=9)
    figure(f"{name} in half precision: {sizes}, relative error {worst:.1e}, {ratio:.2f}x")


# Models of the zoo whose activations reach 1e7 on these inputs: what they answer in half precision is
# for a gate to refuse.
BEYOND_HALF = {"shufflenet", "ocr_det"}
LARGE = {"densenet121", "inception_v1", "inception_v2", "resnet50"}


@pytest.mark.parametrize("member", [one for one in ZOO if one.name not in LARGE], ids=lambda member: member.name)
def test_half_precision_loads_and_answers_over_the_zoo(member: Member, tmp_path: Path, figure: Figure):
    model = member.make(tmp_path)
    done = run(model, {"steps": [{"quantize": FLOAT16}]}, tmp_path / "out")
    if member.unservable:
        assert done.returncode == REFUSED
        return
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    ours = tmp_path / "out/model.onnx"
    no_cast_twice(model, ours)
    inputs = member.inputs(np.random.default_rng(11))
    if member.name in BEYOND_HALF:
        session(ours).run(None, inputs)
        return
    worst = close(model, ours, inputs)
    figure(f"{member.name} in half precision: {megabytes(model)} -> {megabytes(ours)}, relative error {worst:.1e}")


# LSTM


def recurrent(directions: int, extras: bool, folder: Path) -> Path:
    """An LSTM of 12 inputs and 10 states, with bias, lengths, first states and peepholes if asked for."""
    weights = {"W": array(directions, 40, 12), "R": array(directions, 40, 10, seed=4)}
    names = ["x", "W", "R"]
    if extras:
        weights |= {"B": array(directions, 80), "lengths": np.array([7, 5, 6], np.int32)}
        weights |= {name: array(directions, 3, 10, seed=6) for name in ("h0", "c0")}
        names += ["B", "lengths", "h0", "c0", "P"]
        weights["P"] = array(directions, 30, seed=8)
    weights["W"][0, 3] = 0
    direction = "bidirectional" if directions == 2 else "reverse"
    lstm = make("LSTM", names, ["y", "h", "c"], "lstm", hidden_size=10, direction=direction)
    outputs = {"y": [7, directions, 3, 10], "h": [directions, 3, 10], "c": [directions, 3, 10]}
    return saved(folder, [lstm], {"x": [7, 3, 12]}, outputs, weights)


def recurrences(model: Path) -> list[tuple[list[str], dict, list[tuple]]]:
    """Attributes and constants of each DynamicQuantizeLSTM: shape and values, zero points taken off."""
    arrays, found = initializers(model), []
    for node in nodes_of(model, "DynamicQuantizeLSTM"):
        of = [arrays[name] if name in arrays else name for name in node.input]
        for at, zero in ((1, 9), (2, 11)):
            assert set(of[zero].flat) <= ({128} if of[zero].dtype == np.uint8 else {0})
            assert of[at].dtype == of[zero].dtype
            of[at] = of[at].astype(np.int16) - int(of[zero].flat[0])
            of[zero] = of[zero].astype(np.int16) * 0
        constants = [(one.shape, one.dtype.str, one.tobytes()) if isinstance(one, np.ndarray) else one for one in of]
        found.append(({one.name: helper.get_attribute_value(one) for one in node.attribute}, constants))
    return found


@pytest.mark.parametrize("weights", ["Signed", "Unsigned"])
@pytest.mark.parametrize("granularity", ["PerChannel", "PerTensor"])
@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize(("directions", "extras"), [(1, False), (2, True)])
def test_lstm_is_onnxruntimes_bit_for_bit(
    directions: int, extras: bool, reduced: bool, granularity: str, weights: str, tmp_path: Path
):
    source = recurrent(directions, extras, tmp_path)
    step = {"mode": "Dynamic", "granularity": granularity, "weights": weights}
    ours = converted(source, step | {"reduceRange": "Always" if reduced else "Never"}, tmp_path / "out")
    options = {"per_channel": granularity == "PerChannel", "reduce_range": reduced}
    theirs = ort_dynamic(source, tmp_path / "ort.onnx", op_types_to_quantize=["LSTM"], **options)
    wanted = recurrences(theirs)
    assert len(wanted) == 1
    assert recurrences(ours) == wanted
    # With all 8 bits a processor without VNNI saturates signed products, and only these: there signed
    # weights give ONNX Runtime's own answers, which are not the model's.
    if weights == "Signed" or reduced:
        inputs = {"x": array(7, 3, 12, seed=1)}
        for one, other in zip(session(theirs).run(None, inputs), session(ours).run(None, inputs), strict=True):
            np.testing.assert_array_equal(other, one)
    if weights == "Unsigned" or reduced:
        close(source, ours, {"x": array(7, 3, 12, seed=1)}, bound=0.1)
