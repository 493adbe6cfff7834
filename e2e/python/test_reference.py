"""Holds `lithe-worker compress` against ONNX Runtime and its quantizer, in Python.

LITHE_WORKER is the binary, LITHE_MODELS a folder written by models.py. ORT_DYLIB_PATH is the runtime
that the binary loads; by default the one in this environment, so both sides run the same code.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import load_data, setting
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from oracle import session, speedup
from zoo import ZOO, Member, conv_only

OPTIMIZE = {"optimize": {}}
DYNAMIC = {"quantize": {"mode": "Dynamic"}}
MATMUL_ONLY = {"quantize": {"mode": "Dynamic", "embeddings": "Keep", "convolutions": "Keep"}}
# Where a test is about the graph, Lithe's own measuring only costs time.
HARDLY_MEASURED = {"maxSamples": 32, "latencyPairs": 3}
REFUSED, GATE_FAILED = 42, 43
Figure = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """One of the example models and its data."""

    model: Path
    data: Path

    def samples(self) -> dict[str, np.ndarray]:
        """The inputs, without the label."""
        arrays = load_data(self.data)
        arrays.pop("label", None)
        return arrays


def example(name: str) -> Example:
    """The example model `name` of LITHE_MODELS."""
    folder = Path(setting("LITHE_MODELS", "a folder written by models.py"))
    found = Example(folder / f"{name}.onnx", folder / f"{name}.npz")
    for file in (found.model, found.data):
        if not file.is_file():
            pytest.exit(f"{file} is missing; write it with: models.py {folder}", returncode=2)
    return found


@pytest.fixture(scope="session")
def magika() -> Example:
    """File types: bytes int32 [N, 2048] to 214 scores."""
    return example("magika")


@pytest.fixture(scope="session")
def minilm() -> Example:
    """Sentences: tokens int64 [N, 64] to a vector of 384, the last output."""
    return example("minilm")


def run(model: Path, recipe: object, out: Path, data: Path | None = None) -> subprocess.CompletedProcess:
    """Runs the command with a recipe written beside `out`; JSON is YAML."""
    worker = setting("LITHE_WORKER", "the path of the lithe-worker binary")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    file = out.with_suffix(".recipe.yaml")
    file.write_text(json.dumps(recipe))
    command = [worker, "compress", "--model", model, "--recipe", file, "--out", out]
    command += ["--data", data] if data else []
    environment = {"ORT_DYLIB_PATH": str(library)} | os.environ
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def compress(
    model: Path, steps: list[object], out: Path, data: Path, evaluation: dict = HARDLY_MEASURED, **recipe: object
) -> dict:
    """Compresses a model and returns its Manifest; fails when the command does."""
    done = run(model, {"steps": steps, "evaluation": evaluation} | recipe, out, data)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    assert (out / "model.onnx").is_file(), "no model.onnx was written"
    return json.loads((out / "manifest.json").read_text())


def last_output(model: Path, samples: dict[str, np.ndarray], fused: bool = True) -> np.ndarray:
    """The last output on all samples, one by one.

    Dynamic int8 takes one activation range over the whole batch, so in a batch the neighbours of a
    sample would change its answer.
    """
    runner = session(model, fused=fused)
    name = runner.get_outputs()[-1].name
    count = len(next(iter(samples.values())))
    single = ({key: rows[at : at + 1] for key, rows in samples.items()} for at in range(count))
    return np.concatenate([runner.run([name], one)[0] for one in single])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The mean cosine between rows, in double precision."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / lengths))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of rows with the same largest value."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def megabytes(file: Path) -> str:
    """The size of a file as text."""
    return f"{file.stat().st_size / 1e6:.2f} MB"


def ort_dynamic(source: Path, target: Path, **options: object) -> Path:
    """ONNX Runtime's own dynamic quantization."""
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, **options)
    return target


def matmul_weights(model: Path) -> list[tuple[tuple[int, ...], bytes, bytes]]:
    """Shape, quantized values (zero point taken off) and scales of each int8 matrix, sorted.

    Found by form rather than by name: MatMulInteger's second input, and the float initializer
    with one entry per column in a Mul that follows. uint8 with zero point 128 holds the same
    values as int8 and cannot saturate on processors without VNNI, so either is right.
    """
    graph = onnx.load(model).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in arrays:
            zero = arrays[node.input[3]].astype(np.int16) if len(node.input) > 3 and node.input[3] else 0
            values = arrays[node.input[1]].astype(np.int16) - zero
            found.append((values.shape, values.tobytes(), scales_of(node, arrays, readers, graph)))
    return sorted(found)


def scales_of(node, arrays, readers, graph) -> bytes:
    """The weight's scales: the constant operand of a Mul on the path of the integer product."""
    makers = {output: maker for maker in graph.node for output in maker.output}
    cast = next(reader for reader in readers[node.output[0]] if reader.op_type == "Cast")
    product = next(reader for reader in readers[cast.output[0]] if reader.op_type == "Mul")
    # Either Mul(cast, Mul(activation scale, weight scale)) or Mul(Mul(cast, activation), weight).
    around = [product, *readers.get(product.output[0], [])]
    around += [makers[name] for name in product.input if name in makers]
    for mul in (one for one in around if one.op_type == "Mul"):
        for name in mul.input:
            if name in arrays and arrays[name].size in (1, arrays[node.input[1]].shape[1]):
                return arrays[name].tobytes()
    raise AssertionError(f"no weight scale was found beside {node.name}")


def unsigned_like(ours: Path, theirs: Path) -> Path:
    """ONNX Runtime's int8 graph with its matrices stored as uint8 where ours are; the values stay."""
    weights = {one.name: one for one in onnx.load(ours).graph.initializer}
    readers = [node for node in onnx.load(ours).graph.node if node.op_type == "MatMulInteger"]
    kinds = {weights[node.input[1]].data_type for node in readers if node.input[1] in weights}
    if onnx.TensorProto.UINT8 not in kinds:
        return theirs
    model = onnx.load(theirs)
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    signed = {name for node in products for name in node.input[1::2]}
    for one in model.graph.initializer:
        if one.name in signed and one.data_type == onnx.TensorProto.INT8:
            shifted = (numpy_helper.to_array(one).astype(np.int16) + 128).astype(np.uint8)
            one.CopyFrom(numpy_helper.from_array(shifted, one.name))
    file = theirs.with_suffix(".unsigned.onnx")
    onnx.save(model, file)
    return file


@pytest.mark.parametrize("name", ["minilm", "magika"])
def test_dynamic_int8_is_onnxruntimes_bit_for_bit(name: str, tmp_path: Path):
    source, ours = example(name), tmp_path / "out/model.onnx"
    compress(source.model, [MATMUL_ONLY], tmp_path / "out", source.data)
    options = {"per_channel": True, "op_types_to_quantize": ["MatMul"]}
    theirs = ort_dynamic(source.model, tmp_path / "ort.onnx", **options)
    wanted, seen = matmul_weights(theirs), matmul_weights(ours)
    assert len(wanted) > 0
    assert [shape for shape, _, _ in seen] == [shape for shape, _, _ in wanted]
    assert seen == wanted, "weights or scales differ"

    # Without fusions, which depend on what else is in the file and move the last bit of an
    # activation over a rounding edge, the graphs compute the same bits too.
    samples = {key: rows[:32] for key, rows in source.samples().items()}
    wanted = last_output(unsigned_like(ours, theirs), samples, fused=False)
    np.testing.assert_array_equal(last_output(ours, samples, fused=False), wanted)


def test_minilm_is_at_most_17_7_mb_with_cosine_0_997_on_1000_sentences(
    minilm: Example, tmp_path: Path, figure: Figure
):
    compress(minilm.model, [OPTIMIZE, DYNAMIC], tmp_path / "out", minilm.data)
    small = tmp_path / "out/model.onnx"
    samples = {key: rows[:1000] for key, rows in minilm.samples().items()}
    assert len(samples["input_ids"]) == 1000
    original = last_output(minilm.model, samples)
    theirs = ort_dynamic(minilm.model, tmp_path / "ort.onnx")
    close = {}
    for name, file in (("Lithe", small), ("onnxruntime's default", theirs)):
        close[name] = cosine(original, last_output(file, samples))
        ratio = speedup(minilm.model, file, samples)
        sizes = f"{megabytes(minilm.model)} -> {megabytes(file)}"
        figure(f"MiniLM by {name}: {sizes}, cosine {close[name]:.4f}, {ratio:.2f}x")
    assert small.stat().st_size <= 17_700_000
    assert close["Lithe"] >= 0.997


class Calibration(CalibrationDataReader):
    """Hands samples to ONNX Runtime's static quantizer in batches of 16."""

    def __init__(self, samples: dict[str, np.ndarray]) -> None:
        count = len(next(iter(samples.values())))
        self.batches = iter(
            [{key: rows[at : at + 16] for key, rows in samples.items()} for at in range(0, count, 16)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def naive_static(source: Example, target: Path) -> Path:
    """Static MinMax int8 as ONNX Runtime does it without further thought, on 128 samples."""
    few = {key: rows[:128] for key, rows in source.samples().items()}
    quantize_static(source.model, target, Calibration(few), calibrate_method=CalibrationMethod.MinMax)
    return target


def test_magika_keeps_99_percent_of_its_answers_and_gets_smaller(
    magika: Example, tmp_path: Path, figure: Figure
):
    manifest = compress(magika.model, [OPTIMIZE, DYNAMIC], tmp_path / "out", magika.data, evaluation={})
    model, samples = tmp_path / "out/model.onnx", magika.samples()
    few = {key: rows[:200] for key, rows in samples.items()}
    original = last_output(magika.model, samples)
    kept = agreement(original, last_output(model, samples))
    naive = naive_static(magika, tmp_path / "static.onnx")
    ruined = agreement(original[:200], last_output(naive, few))
    for name, file, share in (("Lithe", model, kept), ("onnxruntime's static MinMax", naive, ruined)):
        ratio = speedup(magika.model, file, samples)
        sizes = f"{megabytes(magika.model)} -> {megabytes(file)}"
        figure(f"Magika by {name}: {sizes}, agreement {share:.2%}, {ratio:.2f}x")
    assert kept >= 0.99
    assert model.stat().st_size < magika.model.stat().st_size

    assert manifest["model"]["size"] == model.stat().st_size
    assert manifest["source"]["size"] == magika.model.stat().st_size
    assert [step["name"] for step in manifest["steps"]] == ["optimize", "quantize.dynamic"]
    assert manifest["steps"][-1]["sizeAfter"] == model.stat().st_size
    # Lithe judges a split of the data in batches of its own, so its figure is near ours, not equal.
    assert manifest["evaluation"]["agreement"] == pytest.approx(kept, abs=0.01)


@pytest.mark.parametrize("name", ["minilm", "magika"])
def test_the_same_command_twice_writes_the_same_bytes(name: str, tmp_path: Path):
    source = example(name)
    for out in ("one", "two"):
        compress(source.model, [OPTIMIZE, DYNAMIC], tmp_path / out, source.data)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


@pytest.mark.parametrize("name", ["minilm", "magika"])
def test_optimize_keeps_outputs_within_1e_5(name: str, tmp_path: Path):
    source = example(name)
    compress(source.model, [OPTIMIZE], tmp_path / "out", source.data)
    samples = {key: rows[:100] for key, rows in source.samples().items()}
    wanted, seen = last_output(source.model, samples), last_output(tmp_path / "out/model.onnx", samples)
    np.testing.assert_allclose(seen, wanted, rtol=1e-5, atol=1e-5)


def batch_normalizations(graph: onnx.GraphProto) -> int:
    """How many BatchNormalization nodes a graph has, subgraphs included."""
    inner = [
        one.g for node in graph.node for one in node.attribute if one.type == onnx.AttributeProto.GRAPH
    ]
    own = sum(node.op_type == "BatchNormalization" for node in graph.node)
    return own + sum(map(batch_normalizations, inner))


@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_optimize_keeps_what_every_model_of_the_zoo_computes(member: Member, tmp_path: Path, figure: Figure):
    model, out = member.make(tmp_path), tmp_path / "out"
    done = run(model, {"steps": [OPTIMIZE]}, out)
    if member.unservable:
        assert done.returncode == REFUSED
        assert member.unservable in done.stderr
        return
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    inputs = member.inputs(np.random.default_rng(11))
    for wanted, seen in zip(
        session(model).run(None, inputs), session(out / "model.onnx").run(None, inputs), strict=True
    ):
        same(wanted, seen)

    step = json.loads((out / "manifest.json").read_text())["steps"][0]
    before = batch_normalizations(onnx.load(model).graph)
    after = batch_normalizations(onnx.load(out / "model.onnx").graph)
    figure(f"{member.name}: BatchNormalization {before} -> {after}; {step['summary']}")
    if before:
        folded = re.search(r"(\d+) BatchNormalization", step["summary"])
        assert folded, f"the summary does not count folded BatchNormalization: {step['summary']}"
        assert int(folded[1]) == before - after > 0


def same(wanted: object, seen: object, within: float = 1e-5) -> None:
    """Fails unless two outputs agree within 1e-5, or `within`, of the largest value.

    Relative to the largest: folding scales into weights moves every sum's rounding, and outputs
    near zero are differences of large terms. 2e-7 more is the resolution of ONNX Runtime's Sigmoid,
    which answers in steps near 6e-8 however small the value.
    """
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
        assert np.array_equal(wanted, seen) if isinstance(wanted, np.ndarray) else wanted == seen
        return
    assert np.isfinite(wanted).all(), "the test's own model overflows"
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=within * np.abs(wanted).max() + 2e-7)


@pytest.mark.parametrize(("name", "metric"), [("minilm", "Cosine"), ("minilm", "Agreement")])
def test_a_gate_that_fails_names_gate_bound_and_figure(name: str, metric: str, tmp_path: Path):
    source = example(name)
    gates = {"metric": metric, "minimum": 0.9999999}
    recipe = {"steps": [DYNAMIC], "gates": gates, "evaluation": HARDLY_MEASURED}
    done = run(source.model, recipe, tmp_path / "out", source.data)
    assert done.returncode == GATE_FAILED, done.stderr[-2000:]
    [line] = [line for line in done.stderr.splitlines() if "minimum" in line]
    assert "0.9999999" in line
    assert re.search(r"0\.\d{2,}", line.replace("0.9999999", "")), f"no measured figure in: {line}"


def test_a_gate_that_holds_is_in_the_manifest(minilm: Example, tmp_path: Path):
    gates = {"metric": "Cosine", "minimum": 0.9, "maxSize": "20M"}
    recipe = {"steps": [DYNAMIC], "gates": gates, "evaluation": HARDLY_MEASURED}
    done = run(minilm.model, recipe, tmp_path / "out", minilm.data)
    assert done.returncode == 0, done.stderr[-2000:]
    gates = json.loads((tmp_path / "out/manifest.json").read_text())["gates"]
    assert {gate["gate"]: gate["passed"] for gate in gates} == {"minimum": True, "maxSize": True}


def test_a_metric_without_data_is_refused(minilm: Example, tmp_path: Path):
    recipe = {"steps": [DYNAMIC], "gates": {"metric": "Cosine", "minimum": 0.9}}
    done = run(minilm.model, recipe, tmp_path / "out")
    assert done.returncode == REFUSED, done.stderr[-2000:]
    assert "data" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "culprit"),
    [
        ({"steps": [{"quantise": {}}]}, "quantise"),
        ({"steps": [{"quantize": {"mode": "Dynamically"}}]}, "Dynamically"),
        ({"steps": [{"quantize": {"mood": "Dynamic"}}]}, "mood"),
        ({"steps": [DYNAMIC], "gates": {"metric": "Kosinus"}}, "Kosinus"),
        ({"step": []}, "step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misspelt_recipe_is_refused_by_its_word(
    recipe: object, culprit: str, magika: Example, tmp_path: Path
):
    done = run(magika.model, recipe, tmp_path / "out", magika.data)
    assert done.returncode == REFUSED, done.stderr[-2000:]
    assert culprit in done.stderr
    assert not (tmp_path / "out/model.onnx").exists()


def test_a_step_that_matches_nothing_is_refused_with_its_name(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.zeros((32, 3, 8, 8), np.float32))
    done = run(conv_only(tmp_path), {"steps": [DYNAMIC]}, tmp_path / "out", tmp_path / "x.npz")
    assert done.returncode == REFUSED, done.stderr[-2000:]
    line = [line for line in done.stderr.splitlines() if "quantize" in line][-1]
    assert "Conv" in line, f"the sentence does not say what the model has instead: {line}"
