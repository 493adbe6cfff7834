"""The same model, recipe and data give the same bytes: again, and on another number of threads.

Every kind of step, on a small network that has something for each. Settings are those of
test_reference.py.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import setting
from onnx import TensorProto, helper, numpy_helper

STEPS = {
    "optimize": {"optimize": {}},
    "prune.channels": {"prune": {"structure": "Channels", "sparsity": 0.25}},
    "prune.unstructured": {"prune": {"structure": "Unstructured", "sparsity": 0.5}},
    "prune.twofour": {"prune": {"structure": "TwoFour", "sparsity": 0.5}},
    "quantize.dynamic": {"quantize": {"mode": "Dynamic"}},
    "quantize.weightonly": {"quantize": {"mode": "WeightOnly", "bits": 4, "blockSize": 16}},
    "quantize.float16": {"quantize": {"mode": "Float16"}},
    **{
        f"quantize.static {name}": {"quantize": {"mode": "Static", "calibration": name}}
        for name in ("MinMax", "MovingAverage", "Percentile", "Entropy", "MeanSquaredError")
    },
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Convolutions with BatchNormalization, then two products; and random samples for it."""
    folder, generator = tmp_path_factory.mktemp("network"), np.random.default_rng(3)
    weights = {
        "c": generator.normal(0, 0.2, (32, 3, 3, 3)),
        "c2": generator.normal(0, 0.1, (32, 32, 3, 3)),
        "scale": generator.uniform(0.5, 1.5, 32),
        "shift": generator.normal(0, 0.1, 32),
        "mean": generator.normal(0, 0.1, 32),
        "variance": generator.uniform(0.5, 1.5, 32),
        "m": generator.normal(0, 0.1, (32, 64)),
        "m2": generator.normal(0, 0.1, (64, 16)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["t0"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["t0", "scale", "shift", "mean", "variance"], ["t1"], "norm"),
        helper.make_node("Relu", ["t1"], ["t2"], "relu"),
        helper.make_node("Conv", ["t2", "c2"], ["t3"], "conv2", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["t3"], ["t4"], "pool"),
        helper.make_node("Flatten", ["t4"], ["t5"], "flat"),
        helper.make_node("MatMul", ["t5", "m"], ["t6"], "product"),
        helper.make_node("Relu", ["t6"], ["t7"], "relu2"),
        helper.make_node("MatMul", ["t7", "m2"], ["y"], "product2"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [value("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", x=generator.standard_normal((64, 3, 16, 16), np.float32))
    return folder / "model.onnx", folder / "data.npz"


def digest(network: tuple[Path, Path], steps: list[dict], out: Path, threads: int) -> str:
    """The digest of the model that a compression writes."""
    model, data = network
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps({"steps": steps, "seed": 9, "evaluation": {"latencyPairs": 3}}))
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    worker = setting("LITHE_WORKER", "the path of the lithe-worker binary")
    command = [worker, "compress", "--model", model, "--recipe", recipe, "--data", data, "--out", out]
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        capture_output=True,
        text=True,
        env={"ORT_DYLIB_PATH": str(library)} | os.environ,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    assert json.loads((out / "manifest.json").read_text())["model"]["digest"] == f"sha256:{found}"
    return found


@pytest.mark.parametrize("name", STEPS)
def test_the_same_step_gives_the_same_bytes(name: str, network: tuple[Path, Path], tmp_path: Path):
    one = digest(network, [STEPS[name]], tmp_path / "one", threads=1)
    assert digest(network, [STEPS[name]], tmp_path / "again", threads=1) == one
    assert digest(network, [STEPS[name]], tmp_path / "threads", threads=3) == one


def test_another_seed_or_step_gives_other_bytes(network: tuple[Path, Path], tmp_path: Path):
    found = {digest(network, [step], tmp_path / str(at), threads=1) for at, step in enumerate(STEPS.values())}
    # MinMax, the average and the rest differ, so the comparison above can fail.
    assert len(found) == len(STEPS)
