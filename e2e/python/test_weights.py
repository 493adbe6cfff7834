"""Holds the steps that only store weights smaller against the tools of ONNX Runtime that do the same.

Settings are those of test_reference.py. The oracles run live: matmul_nbits_quantizer for
`mode: WeightOnly`, transformers.float16 for `mode: Float16`.
"""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import session
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from test_reference import (
    REFUSED,
    Example,
    Figure,
    cosine,
    example,
    last_output,
    megabytes,
    run,
    speedup,
)

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
    samples = {key: rows[:8] for key, rows in minilm.samples().items()}
    answers = last_output(ours, samples, fused=False)
    np.testing.assert_array_equal(answers, last_output(theirs, samples, fused=False))

    small = converted(minilm.model, step | {"embeddings": "PerRow"}, tmp_path / "small")
    samples = {key: rows[:48] for key, rows in minilm.samples().items()}
    original = last_output(minilm.model, samples)
    for name, file in (("Lithe", small), ("onnxruntime", theirs)):
        close = cosine(original, last_output(file, samples))
        ratio = speedup(minilm.model, file, samples, pairs=15)
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
