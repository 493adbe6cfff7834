"""Takes the ONNX backend's own tests through every pass of `optimize`, and its shapes beside onnx's.

The models come from the onnx package as it is installed: the tests of single nodes, once as they are
and once with every input but the first as a constant, those of whole graphs, and the `light_*`
topologies; besides, the real models of the zoo. One worker process takes them all. What cannot be
compared is counted by its reason; settings are those of test_reference.py.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from passes import passes
from test_reference import Figure

from zoo import ZOO, package_file

NEWEST_OPSET, NEWEST_IR = 26, 13
"""What ONNX Runtime 1.31 reads; the package's newest tests say more, nearly all without need."""
LIGHT = "onnx/backend/test/data/light/"
HEAVY = ("vgg19", "alexnet", "zfnet512")
"""Light topologies whose Gemm layers take hundreds of megabytes; the others have all their operators."""


@dataclass
class Case:
    """A model and one set of inputs, in the order of the graph's inputs."""

    name: str
    model: onnx.ModelProto
    inputs: list[object]


def node_cases() -> Iterator[Case]:
    """The tests of single nodes."""
    with warnings.catch_warnings():
        # Some cases divide by zero on purpose.
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        model, inputs = case.model, list(case.data_sets[0][0])
        for one in model.opset_import:
            if one.domain in ("", "ai.onnx"):
                one.version = min(one.version, NEWEST_OPSET)
        model.ir_version = min(model.ir_version, NEWEST_IR)
        yield Case(case.name, model, inputs)
        if constant := with_constants(case.name, model, inputs):
            yield constant


def with_constants(name: str, model: onnx.ModelProto, inputs: list[object]) -> Case | None:
    """The same model with all inputs but the first as initializers; none where there are no others."""
    others = dict(zip([one.name for one in model.graph.input][1:], inputs[1:], strict=False))
    if not others or not all(isinstance(array, np.ndarray) for array in others.values()):
        return None
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.input[1:]
    made.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in others.items())
    return Case(f"{name}, constants", made, inputs[:1])


def stored_cases() -> Iterator[Case]:
    """The tests of whole graphs, which the package stores with their inputs."""
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for case in load_model_tests(kind=kind):
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            files = sorted(folder.glob("test_data_set_0/input_*.pb"), key=lambda file: (len(file.name), file.name))
            yield Case(case.name, model, [read(file) for file in files])


def read(file: Path) -> np.ndarray:
    """A stored tensor."""
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return numpy_helper.to_array(tensor)


def real_cases(folder: Path) -> Iterator[Case]:
    """The light topologies with the weights they come with, and the real models of the zoo."""
    generator = np.random.default_rng(5)
    for file in sorted(package_file("onnx", LIGHT + "light_resnet50.onnx").parent.glob("*.onnx")):
        if not any(heavy in file.name for heavy in HEAVY):
            image = generator.standard_normal((1, 3, 224, 224), np.float32)
            yield Case(file.stem, onnx.load(file), [image])
    for member in ZOO:
        if member.name.startswith(("ocr", "vad", "sigmoid")):
            model, inputs = onnx.load(member.make(folder)), member.inputs(generator)
            order = [one.name for one in model.graph.input if one.name in inputs]
            yield Case(member.name, model, [inputs[name] for name in order])


@dataclass
class Taken:
    """What the worker made of a case."""

    case: Case
    file: Path
    line: dict


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> list[Taken]:
    """Every case after every pass, by one worker."""
    folder = tmp_path_factory.mktemp("backend")
    cases = [*node_cases(), *stored_cases(), *real_cases(folder)]
    files = [folder / f"{at}.onnx" for at in range(len(cases))]
    for case, file in zip(cases, files, strict=True):
        file.write_bytes(case.model.SerializeToString())
    lines = passes(files, folder / "out")
    return [Taken(*three) for three in zip(cases, files, lines, strict=True)]


def answer(file: Path, inputs: list[object]) -> list[object]:
    """What ONNX Runtime computes, each node as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    # That a test cannot run is counted; why would fill the screen.
    options.log_severity_level = 4
    runner = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in runner.get_inputs()]
    return runner.run(None, dict(zip(names, inputs, strict=False)))


def equal(wanted: object, seen: object) -> bool:
    """Whether two outputs agree within 1e-5 of the largest finite value; NaN equals NaN.

    In half precision within four roundings: the runtime computes chains of nodes in 32 bits where it
    has no kernel for 16, and a constant in their middle is rounded to 16.
    """
    if isinstance(wanted, list) and isinstance(seen, list):
        return len(wanted) == len(seen) and all(map(equal, wanted, seen))
    if not isinstance(wanted, np.ndarray) or not isinstance(seen, np.ndarray):
        return type(wanted) is type(seen) and wanted == seen
    if wanted.shape != seen.shape or wanted.dtype != seen.dtype:
        return False
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, seen))
    finite = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    near = 4 * 2**-11 if wanted.dtype == np.float16 else 1e-5
    # 2e-7 more is the resolution of the runtime's Sigmoid.
    return bool(np.allclose(seen, wanted, rtol=near, atol=near * float(finite) + 2e-7, equal_nan=True))


def test_every_pass_keeps_what_a_model_computes(taken: list[Taken], figure: Figure):
    why, passes, wrong, compared = Counter(), Counter(), [], 0
    for one in taken:
        if reason := one.line.get("reason"):
            why[f"refused: {reason}"] += 1
            continue
        try:
            wanted = answer(one.file, one.case.inputs)
        except Exception:  # the runtime has no kernel, or Python no type for it
            why["the runtime does not run the original"] += 1
            continue
        compared += 1
        before = one.file.read_bytes()
        for written in one.line["written"]:
            file = Path(written["file"])
            after = file.read_bytes()
            if after == before:
                continue
            before = after
            passes[written["did"]] += written["matched"] > 0
            try:
                same = equal(wanted, answer(file, one.case.inputs))
            except Exception as error:
                wrong.append(f"{one.case.name}, {written['did']}: {error}")
                break
            if not same and equal(wanted, answer(one.file, one.case.inputs)):
                wrong.append(f"{one.case.name}, {written['did']}: other outputs")
                break
    loaded = sum("reason" not in one.line for one in taken)
    figure(f"backend tests: {len(taken)} models, {loaded} load, {compared} compared after every pass")
    figure("  optimised by: " + ", ".join(f"{did} in {count}" for did, count in passes.most_common()))
    figure("  not compared: " + ", ".join(f"{count} {reason}" for reason, count in why.most_common()))
    assert not wrong, "\n".join(wrong[:20])
    # A run that skips nearly everything would prove nothing.
    assert compared > 0.8 * len(taken)
    assert {"constant nodes computed", "nodes without effect removed", "BatchNormalization folded"} <= set(passes)


def known(value: onnx.ValueInfoProto) -> tuple[int, list[int | None] | None]:
    """Element type and shape that onnx found; 0 and None where it does not know."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return tensor.elem_type, None
    dims = [one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim]
    return tensor.elem_type, dims


def disagree(ours: dict, theirs: tuple[int, list[int | None] | None]) -> bool:
    """Whether two findings about a value cannot both be right."""
    data_type, shape = theirs
    if data_type and ours["type"] and data_type != ours["type"]:
        return True
    if shape is None or ours["shape"] is None:
        return False
    pairs = list(zip(shape, ours["shape"], strict=False))
    return len(shape) != len(ours["shape"]) or any(None not in pair and pair[0] != pair[1] for pair in pairs)


def test_shapes_never_contradict_onnx(taken: list[Taken], figure: Figure):
    wrong, theirs_known, ours_known, ours_more = [], 0, 0, 0
    for one in taken:
        if "reason" in one.line:
            continue
        try:
            inferred = onnx.shape_inference.infer_shapes(one.case.model, data_prop=True)
        except Exception:  # a model that onnx itself does not follow says nothing about ours
            continue
        given = {value.name for value in one.case.model.graph.input}
        for value in [*inferred.graph.value_info, *inferred.graph.output]:
            ours = one.line["facts"].get(value.name, {"type": 0, "shape": None})
            theirs = known(value)
            if disagree(ours, theirs):
                wrong.append(f"{one.case.name}: {value.name} is {ours}, onnx says {theirs}")
            if value.name in given or theirs[1] is None:
                ours_more += ours["shape"] is not None and None not in ours["shape"]
                continue
            fixed = None not in theirs[1]
            theirs_known += fixed
            ours_known += fixed and ours["shape"] is not None and None not in ours["shape"]
    figure(f"shapes: of {theirs_known} that onnx knows Lithe knows {ours_known}; {ours_more} that onnx does not know")
    assert not wrong, "\n".join(wrong[:20])
    assert ours_known > 0.8 * theirs_known
