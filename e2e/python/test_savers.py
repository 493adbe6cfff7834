"""Holds what saves accuracy against its definitions: equalisation, SmoothQuant, bias correction, GPTQ,
AdaRound, the fallback to floats, and the search that chooses among them. Settings are those of
test_reference.py.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from oracle import session
from test_reference import HARDLY_MEASURED, Example, Figure, cosine, last_output, minilm, run  # noqa: F401
from test_static import Net, answers, constants, static


def made(model: Path, steps: list, out: Path, samples: np.ndarray, calibration: np.ndarray | None = None, **recipe):
    """Runs steps on a model with one input `x`; returns the Manifest."""
    given = samples if calibration is None else calibration
    np.savez(out.with_suffix(".npz"), **{"calibration/x": given, "evaluation/x": samples})
    done = run(model, {"steps": steps, "evaluation": HARDLY_MEASURED} | recipe, out, out.with_suffix(".npz"))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "manifest.json").read_text())


def noise(model: Path, original: Path, samples: np.ndarray) -> float:
    """The power of the difference between two models' outputs as a share of the original's."""
    wanted = answers(original, samples, fuse=False).astype(np.float64)
    return float(((answers(model, samples, fuse=False) - wanted) ** 2).sum() / (wanted**2).sum())


def uneven(shape: tuple[int, ...], axis: int, seed: int) -> np.ndarray:
    """Random weights whose channels along `axis` differ in range a thousandfold."""
    random = np.random.default_rng(seed)
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return (random.normal(size=shape) * 10 ** random.uniform(-1.5, 1.5, sizes)).astype(np.float32)


def uneven_net() -> Net:
    """Convolution, ReLU, depthwise convolution, ReLU, convolution, with channels of all ranges."""
    net = Net([3, 10, 10], 31)
    net.add("Conv", net.constant(uneven((8, 3, 3, 3), 0, 1)), net.weight((8,), 0.2), pads=[1] * 4)
    net.add("Relu")
    net.add("Conv", net.constant(uneven((8, 1, 3, 3), 0, 2)), net.weight((8,), 0.2), pads=[1] * 4, group=8)
    net.add("LeakyRelu", alpha=0.1)
    net.add("Conv", net.constant(uneven((4, 8, 1, 1), 1, 3)))
    return net


def test_cross_layer_equalisation_keeps_the_function_and_evens_the_ranges(tmp_path: Path, figure: Figure):
    net = uneven_net()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    made(model, [{"equalize": {}}], tmp_path / "out", samples)
    ours = tmp_path / "out/model.onnx"
    wanted = answers(model, samples, fuse=False)
    np.testing.assert_allclose(answers(ours, samples, fuse=False), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    kernels = [one for one in constants(ours).values() if one.ndim == 4]
    first, middle, last = sorted(kernels, key=lambda one: (one.shape[0] != 8, one.shape[1] == 1))
    ranges = [np.abs(first).max((1, 2, 3)), np.abs(middle).max((1, 2, 3)), np.abs(last).max((0, 2, 3))]
    # The definition for three layers: the cube root of the product.
    origin = [one for one in constants(model).values() if one.ndim == 4]
    one, two, three = sorted(origin, key=lambda one: (one.shape[0] != 8, one.shape[1] == 1))
    product = np.abs(one).max((1, 2, 3)) * np.abs(two).max((1, 2, 3)) * np.abs(three).max((0, 2, 3))
    for seen in ranges:
        np.testing.assert_allclose(seen, np.cbrt(product), rtol=5e-3)
    step = {"quantize": {"mode": "Static", "calibration": "MinMax", "granularity": "PerTensor"}}
    made(model, [step], tmp_path / "plain", samples)
    made(model, [{"equalize": {}}, step], tmp_path / "even", samples)
    plain, even = (noise(tmp_path / name / "model.onnx", model, samples) for name in ("plain", "even"))
    figure(f"per-tensor int8 noise: {plain:.4f}, equalised {even:.4f}")
    assert even < plain / 2


def smooth_net() -> Net:
    """LayerNormalization into two products, one of them into a Gemm behind Gelu's Erf."""
    net = Net([6, 16], 33)
    scale = net.constant(uneven((16,), 0, 4))
    shift = net.weight((16,), 0.3)
    normal = net.node("LayerNormalization", "x", scale, shift, axis=-1)
    left = net.node("MatMul", normal, net.weight((16, 12)))
    right = net.node("MatMul", normal, net.weight((16, 12)))
    net.node("Mul", left, net.node("Erf", right))
    net.add("MatMul", net.weight((12, 5)))
    return net


def test_smoothquant_is_its_formula_and_keeps_the_function(tmp_path: Path):
    net = smooth_net()
    model, samples = net.save(tmp_path / "model.onnx"), net.samples()
    manifest = made(model, [{"equalize": {"method": "SmoothQuant", "strength": 0.6}}], tmp_path / "out", samples)
    assert "3 matrix products smoothed, 1 Mul inserted" in manifest["steps"][0]["summary"]
    ours = tmp_path / "out/model.onnx"
    wanted = answers(model, samples, fuse=False)
    np.testing.assert_allclose(answers(ours, samples, fuse=False), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    shown = onnx.load(model)
    shown.graph.output.append(onnx.ValueInfoProto(name="t0_0"))
    onnx.save(shown, tmp_path / "shown.onnx")
    runner = session(tmp_path / "shown.onnx", fused=False)
    values = np.stack([runner.run(["t0_0"], {"x": sample[None]})[0] for sample in samples])
    reached = np.abs(values).reshape(-1, 16).max(0)
    before, after = constants(model), constants(ours)
    heaviest = np.maximum(np.abs(before["w2"]).max(1), np.abs(before["w3"]).max(1))
    factors = np.maximum(reached, 1e-5) ** 0.6 / np.maximum(heaviest, 1e-5) ** 0.4
    np.testing.assert_allclose(after["w2"], before["w2"] * factors[:, None], rtol=1e-4)
    np.testing.assert_allclose(after["w0"], before["w0"] / factors, rtol=1e-4)
    np.testing.assert_allclose(after["w1"], before["w1"] / factors, rtol=1e-4)


def test_bias_correction_takes_back_the_shift_of_the_mean(tmp_path: Path, figure: Figure):
    net = Net([3, 12, 12], 41)
    net.conv(3, 8)
    net.add("Relu")
    net.conv(8, 6, bias=False)
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(32)
    options = {"granularity": "PerTensor", "reduceRange": "Always"}
    shifts = {}
    for corrected in (False, True):
        more = {"biasCorrection": True} if corrected else {}
        file = static(model, samples, tmp_path / f"out{corrected}", **options, **more)
        change = answers(file, samples, fuse=False) - answers(model, samples, fuse=False)
        shifts[corrected] = float(np.abs(change.mean((0, 2, 3))).mean())
    figure(f"mean shift per channel: {shifts[False]:.5f}, corrected {shifts[True]:.5f}")
    assert shifts[True] < shifts[False] / 2


def correlated(samples: int, width: int, seed: int) -> np.ndarray:
    """Rows from a few directions and some noise, as activations are."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(6, width))
    rows = random.normal(size=(samples, 4, 6)) @ mix + 0.2 * random.normal(size=(samples, 4, width))
    return rows.astype(np.float32)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (8, 32)])
def test_gptq_loses_less_than_the_nearest_on_data_it_never_saw(bits: int, block: int, tmp_path: Path, figure: Figure):
    net = Net([4, 96], 43)
    net.add("MatMul", net.weight((96, 40)))
    model = net.save(tmp_path / "model.onnx")
    seen, fresh = correlated(64, 96, 1), correlated(64, 96, 2)
    losses = {}
    for rounding in ("Nearest", "Gptq"):
        step = {"quantize": {"mode": "WeightOnly", "bits": bits, "blockSize": block, "rounding": rounding}}
        made(model, [step], tmp_path / rounding, fresh, seen)
        file = tmp_path / rounding / "model.onnx"
        # The kernel rounds activations, too; what the weights lose is seen in floats.
        weights = unpacked(file, 96)
        change = weights.astype(np.float64) - constants(model)["w0"]
        losses[rounding] = [float(((rows @ change) ** 2).mean()) for rows in (seen, fresh)]
    figure(f"{bits} bits, blocks of {block}: squared error {losses['Nearest']} nearest, {losses['Gptq']} GPTQ")
    assert all(gptq <= nearest for gptq, nearest in zip(losses["Gptq"], losses["Nearest"], strict=True))
    assert losses["Gptq"][1] < 0.6 * losses["Nearest"][1]


def unpacked(model: Path, rows: int) -> np.ndarray:
    """The matrix [in, out] that a MatMulNBits expands."""
    graph = onnx.load(model).graph
    [node] = [node for node in graph.node if node.op_type == "MatMulNBits"]
    tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    packed, scales = tensors[node.input[1]], tensors[node.input[2]].reshape(attributes["N"], -1)
    if attributes["bits"] == 4:
        packed = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    middle = 2 ** (attributes["bits"] - 1)
    floats = (packed.astype(np.float32) - middle) * scales[:, :, None]
    return floats.reshape(attributes["N"], -1)[:, :rows].T


def test_gptq_brings_minilm_in_4_bits_closer(minilm: Example, tmp_path: Path, figure: Figure):  # noqa: F811
    samples = minilm.samples()
    count = len(next(iter(samples.values())))
    fresh = {name: rows[count - 64 :] for name, rows in samples.items()}
    splits = {f"calibration/{name}": rows[:24] for name, rows in samples.items()}
    splits |= {f"evaluation/{name}": rows[24:32] for name, rows in samples.items()}
    np.savez(tmp_path / "x.npz", **splits)
    wanted = last_output(minilm.model, fresh)
    kept = {}
    for rounding in ("Nearest", "Gptq"):
        step = {"quantize": {"mode": "WeightOnly", "bits": 4, "embeddings": "Keep", "rounding": rounding}}
        recipe = {"steps": [step], "evaluation": HARDLY_MEASURED}
        done = run(minilm.model, recipe, tmp_path / rounding, tmp_path / "x.npz")
        assert done.returncode == 0, done.stderr[-2000:]
        kept[rounding] = cosine(last_output(tmp_path / rounding / "model.onnx", fresh), wanted)
    figure(f"MiniLM, 4 bits: cosine {kept['Nearest']:.4f} nearest, {kept['Gptq']:.4f} GPTQ, on 64 fresh sentences")
    assert kept["Gptq"] > kept["Nearest"]


@pytest.mark.parametrize("group", [1, 4])
def test_adaround_loses_less_than_the_nearest_in_a_layers_output(group: int, tmp_path: Path, figure: Figure):
    net = Net([8, 12, 12], 47)
    net.conv(8, 12, group=group, strides=[2, 1])
    model = net.save(tmp_path / "model.onnx")
    random = np.random.default_rng(6)
    # Smooth pictures: neighbours are alike, so that roundings can make good for each other.
    small = random.normal(size=(96, 8, 4, 4))
    pictures = np.repeat(np.repeat(small, 3, 2), 3, 3).astype(np.float32)
    seen, fresh = pictures[:64], pictures[64:]
    losses = {}
    for rounding in ("Nearest", "AdaRound"):
        options = {"granularity": "PerTensor", "reduceRange": "Always", "rounding": rounding}
        file = static(model, seen, tmp_path / rounding, **options)
        stored = constants(file)
        weights = stored["w0_quantized"].astype(np.float32) * stored["w0_scale"]
        check = onnx.load(model)
        check.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w0"))
        onnx.save(check, tmp_path / "check.onnx")
        losses[rounding] = noise(tmp_path / "check.onnx", model, fresh)
    figure(f"convolution of {group} groups: noise {losses['Nearest']:.2e} nearest, {losses['AdaRound']:.2e} AdaRound")
    assert losses["AdaRound"] < 0.9 * losses["Nearest"]


def test_the_fallback_leaves_the_guilty_layer_in_floats(tmp_path: Path):
    net = Net([3, 10, 10], 51)
    first = np.random.default_rng(2).normal(size=(6, 3, 3, 3)).astype(np.float32)
    first[0] *= 1e-4
    net.add("Conv", net.constant(first), pads=[1] * 4)
    net.add("Relu")
    # One weight a thousand times the others, for a channel that is almost zero: a single scale leaves
    # nothing of what counts.
    weights = np.random.default_rng(3).normal(size=(6, 6, 3, 3)).astype(np.float32)
    weights[0, 0, 0, 0] = 3000
    net.add("Conv", net.constant(weights), pads=[1] * 4)
    net.add("Relu")
    net.conv(6, 4)
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(48)
    quantize = {"mode": "Static", "calibration": "MinMax", "granularity": "PerTensor", "fallback": {"maxExcluded": 2}}
    gates = {"metric": "SignalToNoise", "minimum": 8}
    manifest = made(model, [{"quantize": quantize}], tmp_path / "out", samples, gates=gates)
    [step] = manifest["steps"]
    # How few are enough is the runtime's affair; which costs most is not.
    assert step["excluded"][0]["name"] == "n2" and step["excluded"][0]["noise"] > 0.5, step
    assert "of 3 layers left in floats so that the gates hold: n2" in step["summary"]
    assert manifest["gates"][0]["passed"]


@pytest.mark.parametrize("goal", ["Size", "Memory"])
def test_a_search_finds_a_recipe_that_holds_and_can_be_pinned(goal: str, tmp_path: Path, figure: Figure):
    net = Net([3, 24, 24], 61)
    for into, out in ((3, 32), (32, 32), (32, 32)):
        net.conv(into, out)
        net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Gemm", net.weight((32, 10)), net.weight((10,), 0.1))
    model, samples = net.save(tmp_path / "model.onnx"), net.samples(40)
    gates = {"metric": "Cosine", "minimum": 0.98}
    objective = {"minimise": goal, "budget": "2m"}
    manifest = made(model, [], tmp_path / "out", samples, gates=gates, objective=objective)
    search = manifest["search"]
    assert search["goal"] == goal and any(one["front"] for one in search["candidates"])
    figure(f"search for {goal}: {json.dumps(search['chosen'])} after {search['seconds']:.0f} s")
    chosen = [one for one in search["candidates"] if one["verdict"] == "chosen"]
    assert len(chosen) == bool(search["chosen"])
    if goal == "Size":
        assert manifest["model"]["size"] < 0.4 * manifest["source"]["size"]
    assert all(gate["passed"] for gate in manifest["gates"])
    if search["chosen"]:
        made(model, search["chosen"], tmp_path / "pinned", samples, gates=gates)
        assert (tmp_path / "pinned/model.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()


def test_an_objective_without_a_bound_on_the_metric_is_refused(tmp_path: Path):
    net = uneven_net()
    np.savez(tmp_path / "x.npz", x=net.samples())
    done = run(net.save(tmp_path / "m.onnx"), {"objective": {"minimise": "Size"}}, tmp_path / "o", tmp_path / "x.npz")
    assert done.returncode == 42 and "gates.minimum" in done.stderr
