"""Models of many shapes and ages from installed packages, for the tests of graph passes.

The topologies of the onnx package come without weights; they get random ones by a seed. Must not
write outside the folder it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

# The light topologies whose weights make about 100 MB at most (the others have large Gemm layers),
# and the name of their input.
LIGHT = {
    "densenet121": "data_0",
    "inception_v1": "data_0",
    "inception_v2": "data_0",
    "resnet50": "gpu_0/data_0",
    "shufflenet": "gpu_0/data_0",
    "squeezenet": "data_0",
}
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Member:
    """One model of the zoo: `make` writes it into a folder, `inputs` draws inputs for it."""

    name: str
    make: Callable[[Path], Path]
    inputs: Callable[[np.random.Generator], Inputs]
    unservable: str = ""
    """The output that no protocol of ours can carry, where there is one."""


def package_file(package: str, path: str) -> Path:
    """The file `path` of an installed package."""
    file = Path(metadata.distribution(package).locate_file(path))
    if not file.is_file():
        raise FileNotFoundError(f"the package {package} has no {path}: install requirements-reference.txt")
    return file


def taken(package: str, path: str) -> Callable[[Path], Path]:
    """A model as the package ships it."""
    return lambda _: package_file(package, path)


def light(name: str) -> Callable[[Path], Path]:
    """A topology of the onnx package with seeded random weights in initializers."""

    def make(folder: Path) -> Path:
        model = onnx.load(package_file("onnx", f"onnx/backend/test/data/light/light_{name}.onnx"))
        fill(model.graph, np.random.default_rng(7))
        file = folder / f"{name}.onnx"
        onnx.save(model, file)
        return file

    return make


def fill(graph: onnx.GraphProto, random: np.random.Generator) -> None:
    """Puts random weights where ConstantOfShape stood in for them.

    He initialisation keeps activations in range through deep networks; variances are positive.
    """
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    scales = {node.input[1] for node in graph.node if node.op_type == "BatchNormalization"}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        name, shape = node.output[0], constants[node.input[0]]
        if name in variances | scales:
            weights = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            weights = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            weights = random.normal(0, 0.1, shape)
        graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
    del graph.node[:]
    graph.node.extend(kept)


def floats(name: str, *shape: int) -> Callable[[np.random.Generator], Inputs]:
    """One float32 input with standard normal values."""
    return lambda random: {name: random.standard_normal(shape, np.float32)}


def speech(state: tuple[int, ...], rate: bool) -> Callable[[np.random.Generator], Inputs]:
    """A chunk of noise for a voice detector, its recurrent state and, if asked for, the sample rate."""

    def draw(random: np.random.Generator) -> Inputs:
        inputs = {
            "input": random.normal(0, 0.1, (1, 576)).astype(np.float32),
            "state": random.normal(0, 0.1, state).astype(np.float32),
        }
        return inputs | ({"sr": np.array(16000, np.int64)} if rate else {})

    return draw


def conv_only(folder: Path) -> Path:
    """A model with nothing but one convolution, `x` [N, 3, 8, 8] to `y`."""
    weights = np.random.default_rng(7).standard_normal((4, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "only")],
        "conv",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = folder / "conv.onnx"
    onnx.save(model, file)
    return file


OCR, VOICE = "rapidocr_onnxruntime/models/", "silero_vad/data/"

ZOO = [
    *(Member(name, light(name), floats(image, 1, 3, 224, 224)) for name, image in LIGHT.items()),
    Member("ocr_cls", taken("rapidocr-onnxruntime", OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx"), floats("x", 2, 3, 48, 192)),
    Member("ocr_rec", taken("rapidocr-onnxruntime", OCR + "ch_PP-OCRv4_rec_infer.onnx"), floats("x", 2, 3, 48, 320)),
    Member("ocr_det", taken("rapidocr-onnxruntime", OCR + "ch_PP-OCRv4_det_infer.onnx"), floats("x", 1, 3, 96, 96)),
    Member("vad_if", taken("silero-vad", VOICE + "silero_vad.onnx"), speech((2, 1, 128), rate=True)),
    Member("vad_if_inner", taken("silero-vad", VOICE + "silero_vad_16k_op15.onnx"), speech((2, 1, 128), rate=True)),
    Member("vad_lstm", taken("silero-vad", VOICE + "silero_vad_openvino_16k.onnx"), speech((2, 1, 128), rate=False)),
    Member("logreg", taken("onnxruntime", "onnxruntime/datasets/logreg_iris.onnx"), floats("float_input", 3, 2), unservable="probabilities"),
    Member("sigmoid", taken("onnxruntime", "onnxruntime/datasets/sigmoid.onnx"), floats("x", 3, 4, 5)),
]  # fmt: skip
