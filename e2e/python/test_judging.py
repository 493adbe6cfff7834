"""Holds how `lithe-worker compress` judges against scikit-learn and scipy, and feeds it bad data.

The models are tiny; what is compared are figures and intervals of the Manifest. Settings are those of
test_reference.py.
"""

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import setting
from onnx import TensorProto, helper, numpy_helper
from oracle import session
from safetensors.numpy import save_file
from scipy import optimize, stats
from sklearn import metrics
from test_reference import GATE_FAILED, REFUSED, run

DYNAMIC = {"quantize": {"mode": "Dynamic"}}
CLASSES, WIDTH = 5, 24


def linear(file: Path, outputs: int = CLASSES, steps: int | None = None, seed: int = 0) -> Path:
    """`y = sigmoid(x W)` with x [n, WIDTH], or [n, steps, WIDTH]."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(WIDTH, outputs)).astype(np.float32) / 4
    shape = ["n", WIDTH] if steps is None else ["n", steps, WIDTH]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], "dense"), helper.make_node("Sigmoid", ["z"], ["y"], "gate")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), file)
    return file


def outputs(model: Path, x: np.ndarray) -> np.ndarray:
    """The outputs for every sample, one by one, as they are judged."""
    runner = session(model, threads=1)
    rows = [runner.run(None, {"x": x[at : at + 1]})[0] for at in range(len(x))]
    return np.concatenate(rows).astype(np.float64)


def judge(model: Path, arrays: dict[str, np.ndarray], gates: dict, out: Path, **evaluation: object) -> dict:
    """Compresses and returns the Manifest; gates must let everything through."""
    np.savez(out.with_suffix(".npz"), **arrays)
    recipe = {"steps": [DYNAMIC], "gates": gates, "evaluation": {"latencyPairs": 6, **evaluation}}
    done = run(model, recipe, out, out.with_suffix(".npz"))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "manifest.json").read_text())


def student(values: np.ndarray) -> tuple[float, float]:
    """scipy's interval of a mean."""
    return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


def wilson(hits: np.ndarray) -> tuple[float, float]:
    """scipy's interval of a share."""
    found = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
    return found.low, found.high


def jackknife(figure, count: int) -> tuple[float, float]:
    """The jackknife interval of `figure`, a function of the indices that are kept."""
    everything = np.arange(count)
    without = np.array([figure(np.delete(everything, at)) for at in everything])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return figure(everything) + np.array([-1, 1]) * stats.t.ppf(0.975, count - 1) * error


def tango(lost: int, won: int, count: int) -> tuple[float, float]:
    """Tango's score interval with the restricted likelihood maximised numerically."""
    z = stats.norm.ppf(0.975)

    def score(delta: float) -> float:
        cells = lambda q: ((lost, q + delta), (won, q), (count - lost - won, 1 - delta - 2 * q))  # noqa: E731
        loss = lambda q: -sum(k * np.log(max(p, 1e-300)) for k, p in cells(q) if k)  # noqa: E731
        bounds = (max(0, -delta), (1 - delta) / 2)
        q = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        return (lost - won - count * delta) / np.sqrt(count * (2 * q + delta * (1 - delta)))

    share = (lost - won) / count
    low = optimize.brentq(lambda delta: score(delta) - z, -1 + 1e-9, share - 1e-12)
    return low, optimize.brentq(lambda delta: score(delta) + z, share + 1e-12, 1 - 1e-9)


def delong(truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """DeLong's interval of the drop in area, by every pair of samples."""
    wins = lambda s: (s[truth][:, None] > s[~truth]) + 0.5 * (s[truth][:, None] == s[~truth])  # noqa: E731
    drop = wins(before) - wins(after)
    error = np.sqrt(drop.mean(1).var(ddof=1) / truth.sum() + drop.mean(0).var(ddof=1) / (~truth).sum())
    return drop.mean() + np.array([-1, 1]) * stats.norm.ppf(0.975) * error


def check(manifest: dict, original: float, value: float, ends: dict[str, tuple[float, float]], tolerance=1e-7) -> None:
    """Fails unless figures and the gates' intervals are the references'."""
    evaluation = manifest["evaluation"]
    assert evaluation["original"] == pytest.approx(original, abs=1e-9)
    assert evaluation["compressed"] == pytest.approx(value, abs=1e-9)
    for gate, (low, high) in ends.items():
        [seen] = [one for one in manifest["gates"] if one["gate"] == gate]
        assert seen["interval"]["low"] == pytest.approx(low, abs=tolerance), seen
        assert seen["interval"]["high"] == pytest.approx(high, abs=tolerance), seen


@pytest.fixture
def samples() -> np.ndarray:
    """Samples of which a few lie between classes."""
    return np.random.default_rng(5).normal(size=(400, WIDTH)).astype(np.float32)


def test_shares_are_scipys_and_drops_tangos(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    before = outputs(model, samples)
    # Labels that the original misses now and then.
    label = (before + np.random.default_rng(1).normal(0, 0.05, before.shape)).argmax(1)
    for name, top in (("Accuracy", 1), ("TopKAccuracy", 2)):
        gates = {"metric": name, "minimum": 0.01, "maxDrop": "90%"} | ({"topK": top} if top > 1 else {})
        manifest = judge(model, {"x": samples, "label": label}, gates, tmp_path / name)
        after = outputs(tmp_path / name / "model.onnx", samples)
        hits = [np.array([l in row.argsort()[-top:] for row, l in zip(rows, label)]) for rows in (before, after)]
        score = [metrics.top_k_accuracy_score(label, rows, k=top, labels=range(CLASSES)) for rows in (before, after)]
        drop = tango(int((hits[0] & ~hits[1]).sum()), int((~hits[0] & hits[1]).sum()), len(label))
        check(manifest, *score, {"minimum": wilson(hits[1]), "maxDrop": drop})


def test_agreement_cosine_noise_and_maximum_error(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    before = outputs(model, samples)
    manifests = {
        metric: judge(model, {"x": samples}, {"metric": metric, **bound}, tmp_path / metric)
        for metric, bound in [
            ("Agreement", {"minimum": 0.01, "maxDrop": "90%"}),
            ("Cosine", {"minimum": 0.01, "maxDrop": "90%"}),
            ("SignalToNoise", {"minimum": 1}),
            ("MaximumError", {"maximum": 1}),
        ]
    }
    after = outputs(tmp_path / "Agreement/model.onnx", samples)
    same = before.argmax(1) == after.argmax(1)
    check(manifests["Agreement"], 1, same.mean(), {"minimum": wilson(same), "maxDrop": wilson(~same)})
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    check(manifests["Cosine"], 1, cosine.mean(), {"minimum": student(cosine), "maxDrop": student(1 - cosine)})
    signal, noise = (before**2).sum(1), ((before - after) ** 2).sum(1)
    decibels = lambda kept: 10 * np.log10(signal[kept].sum() / noise[kept].sum())  # noqa: E731
    ends = {"minimum": jackknife(decibels, len(samples))}
    check(manifests["SignalToNoise"], 200, decibels(np.arange(len(samples))), ends)
    check(manifests["MaximumError"], 0, np.abs(before - after).max(), {})


def test_f1_auc_and_squared_error_are_scikit_learns(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    before = outputs(model, samples)
    noisy = before + np.random.default_rng(1).normal(0, 0.2, before.shape)
    label = noisy.argmax(1)
    manifest = judge(model, {"x": samples, "label": label}, {"metric": "F1", "minimum": 0.01, "maxDrop": "90%"}, tmp_path / "f1")
    after = outputs(tmp_path / "f1/model.onnx", samples)
    f1 = lambda rows: lambda kept: metrics.f1_score(label[kept], rows[kept].argmax(1), average="macro")  # noqa: E731
    drop = lambda kept: f1(before)(kept) - f1(after)(kept)  # noqa: E731
    every = np.arange(len(label))
    ends = {"minimum": jackknife(f1(after), len(label)), "maxDrop": jackknife(drop, len(label))}
    check(manifest, f1(before)(every), f1(after)(every), ends)

    truth = noisy[:, 1] > np.median(noisy[:, 1])
    arrays = {"x": samples, "label": truth.astype(np.int64)}
    manifest = judge(model, arrays, {"metric": "AUC", "minimum": 0.01, "maxDrop": "90%"}, tmp_path / "auc")
    area = [metrics.roc_auc_score(truth, rows[:, 1]) for rows in (before, after)]
    check(manifest, *area, {"maxDrop": delong(truth, before[:, 1], after[:, 1])})

    arrays = {"x": samples, "label": noisy}
    gates = {"metric": "MeanSquaredError", "maximum": 1, "maxDrop": "90%"}
    manifest = judge(model, arrays, gates, tmp_path / "mse")
    errors = [((rows - noisy) ** 2).mean(1) for rows in (before, after)]
    mean = [metrics.mean_squared_error(noisy, rows) for rows in (before, after)]
    check(manifest, *mean, {"maximum": student(errors[1]), "maxDrop": student(errors[1] - errors[0])})


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein's distance, by its definition."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        table[i + 1, j + 1] = min(table[i, j] + (a[i] != b[j]), table[i, j + 1] + 1, table[i + 1, j] + 1)
    return int(table[-1, -1])


def test_the_character_error_rate_decodes_and_counts_edits(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", steps=9)
    random = np.random.default_rng(2)
    x = random.normal(size=(60, 9, WIDTH)).astype(np.float32)
    decode = lambda row: [int(c) for c, _ in itertools.groupby(row.argmax(1)) if c != 0]  # noqa: E731
    before = [decode(row) for row in outputs(model, x)]
    label = np.full((60, 12), -1)
    for at, letters in enumerate(before):
        letters = [*letters[1:], random.integers(1, CLASSES)] if at % 3 == 0 else letters
        label[at, : len(letters)] = letters
    gates = {"metric": "CharacterErrorRate", "maximum": 9, "maxDrop": "99%"}
    manifest = judge(model, {"x": x, "label": label}, gates, tmp_path / "out")
    after = [decode(row) for row in outputs(tmp_path / "out/model.onnx", x)]
    wanted = [[int(c) for c in row if c >= 0] for row in label]
    length = np.array([len(row) for row in wanted])
    edits = [np.array([distance(a, b) for a, b in zip(seen, wanted)]) for seen in (before, after)]
    rate = lambda kept: edits[1][kept].sum() / length[kept].sum()  # noqa: E731
    ends = {"maximum": jackknife(rate, 60)}
    check(manifest, edits[0].sum() / length.sum(), edits[1].sum() / length.sum(), ends)


def test_every_format_gives_the_same_verdict(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    arrays = {"x": samples[:50], "label": np.arange(50) % CLASSES}
    np.savez(tmp_path / "plain", **arrays)
    np.savez_compressed(tmp_path / "packed", **arrays)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / name, array)
    save_file(arrays, tmp_path / "tensors.bin")
    lines = [json.dumps({"x": [float(v) for v in x], "label": int(l)}) for x, l in zip(*arrays.values())]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    recipe = {"steps": [DYNAMIC], "gates": {"metric": "Accuracy"}, "evaluation": {"latencyPairs": 3}}
    seen = {}
    for name in ("plain.npz", "packed.npz", "folder", "tensors.bin", "lines.txt"):
        done = run(model, recipe, tmp_path / f"out-{name}", tmp_path / name)
        assert done.returncode == 0, f"{name}: {done.stderr[-1000:]}"
        evaluation = json.loads((tmp_path / f"out-{name}/manifest.json").read_text())["evaluation"]
        seen[name] = {key: evaluation[key] for key in ("samples", "original", "compressed", "cosine")}
    assert all(one == seen["plain.npz"] for one in seen.values()), seen


def npy(array: np.ndarray, **options: object) -> bytes:
    """The bytes of an array."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    """The bytes of a packed archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def claim(shape: str) -> bytes:
    """An array that claims a shape and holds nothing."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def tensors(header: object) -> bytes:
    """A safetensors file with only a header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


ROW = [0.5] * WIDTH
GOOD = np.ones((4, WIDTH), np.float32)
HUGE = {"dtype": "F32", "shape": [1 << 40, WIDTH], "data_offsets": [0, WIDTH << 42]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(GOOD), "pickle"),
        (zipped({"x.npy": npy(np.array([{}], object), allow_pickle=True)}), "Python objects (pickle)"),
        (zipped({"x.npy": npy(np.asfortranarray(GOOD))}), "Fortran order"),
        (zipped({"x.npy": claim("(1000000000000, 24)")}), "its shape takes 96000000000000 bytes"),
        (zipped({"x.npy": claim("(99999999999999, 99999999999999)")}), "its shape overflows"),
        (zipped({"x.npy": claim("(1000, 24)") + bytes(50 << 20)}), "its shape takes 96000 bytes"),
        (zipped({"x.npy": npy(GOOD), "x.py": b"import os"}), "x.py"),
        (zipped({"y.npy": npy(GOOD)}), "no array for the model's input \"x\""),
        (zipped({"x.npy": npy(GOOD.astype(np.float64))}), "is FP64, the model's input is FP32"),
        (zipped({"x.npy": npy(GOOD[:, :9])}), "has shape [4, 9], the model's input has [?, 24]"),
        (zipped({"x.npy": npy(GOOD[:0])}), "no samples"),
        (zipped({"x.npy": npy(GOOD), "label.npy": npy(np.array([0, 1, 2, 9]))}), "is 9 at sample 3, classes are 0 to 4"),
        (zipped({"x.npy": npy(GOOD), "label.npy": npy(np.zeros(3))}), "3 samples"),
        (zipped({"train/x.npy": npy(GOOD)}), "no evaluation/ split"),
        (b"PAR1" + bytes(64), "Parquet"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "DOCTYPE"),
        (tensors({"x": HUGE}), "beyond the file's"),
        (tensors({"x": HUGE | {"data_offsets": [8, 0]}}), "its offsets are 8 and 0"),
        (tensors({"x": HUGE | {"dtype": "F8_E4M3"}}), "F8_E4M3"),
        (tensors([1]).replace(b"[", b"{"), "header"),
        (json.dumps({"x": ROW[:-1] + ["nan"]}).encode(), 'line 1: \\"x\\"'),
        (json.dumps({"x": ROW}).encode() + b"\n" + json.dumps({"x": ROW[1:]}).encode(), "line 2"),
        (json.dumps({"x": ROW, "y": 1}).encode(), "is no input of the model"),
        (json.dumps({"x": ROW, "split": "test"}).encode(), "write train, calibration or evaluation"),
        (b'{"x": ' + b"[" * 100_000, "line 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_data_is_refused_by_name(content: bytes, words: str, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    (tmp_path / "data").write_bytes(content)
    recipe = {"steps": [DYNAMIC], "gates": {"metric": "Accuracy" if b"label" in content else "Agreement"}}
    done = run(model, recipe, tmp_path / "out", tmp_path / "data")
    assert done.returncode == REFUSED, done.stderr
    assert words.replace('\\"', '"') in done.stderr, done.stderr
    assert "spec.compression.data" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_infinity_in_calibration_is_named(tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    bad = GOOD.copy()
    bad[2, 7] = np.inf
    np.savez(tmp_path / "x.npz", **{"calibration/x": bad, "evaluation/x": GOOD})
    recipe = {"steps": [{"quantize": {"mode": "Static"}}]}
    done = run(model, recipe, tmp_path / "out", tmp_path / "x.npz")
    assert done.returncode == REFUSED
    assert "holds inf at sample 2" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("gates", "field", "words"),
    [
        ({"metric": "Cosine", "minimum": 1.5}, "minimum", "never above 1"),
        ({"metric": "MeanSquaredError", "minimum": 0.5}, "minimum", "write maximum"),
        ({"metric": "SignalToNoise", "maxDrop": "1%"}, "maxDrop", "not in points"),
        ({"metric": "Cosine", "topK": 3}, "topK", "no meaning"),
        ({"confidence": 1.0}, "confidence", "0.5 to 0.9999"),
        ({"maxMemory": "much"}, "maxMemory", "much"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_impossible_gate_is_refused_before_any_work(gates: dict, field: str, words: str, tmp_path: Path):
    done = run(linear(tmp_path / "m.onnx"), {"steps": [DYNAMIC], "gates": gates}, tmp_path / "out")
    assert done.returncode == REFUSED
    assert f"spec.compression.gates.{field}" in done.stderr and words in done.stderr, done.stderr


def test_few_samples_leave_a_gate_undecided_and_say_how_many_would_do(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=samples[:20])
    gates = {"metric": "Agreement", "minimum": 0.95}
    recipe = {"steps": [DYNAMIC], "gates": gates, "evaluation": {"latencyPairs": 3}}
    done = run(model, recipe, tmp_path / "out", tmp_path / "x.npz")
    assert done.returncode == GATE_FAILED, done.stderr
    assert "undecided, about" in done.stderr and "samples would decide" in done.stderr, done.stderr
    recipe["gates"] = gates | {"whenUndecided": "Estimate"}
    assert run(model, recipe, tmp_path / "out", tmp_path / "x.npz").returncode == 0


def command(model: Path, recipe: object, *rest: object) -> tuple[list[str], dict[str, str]]:
    """The command line and its environment."""
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    file = model.with_suffix(".recipe.json")
    file.write_text(json.dumps(recipe))
    parts = [setting("LITHE_WORKER", "the path of the lithe-worker binary"), "compress", "--model", model]
    parts += ["--recipe", file, *rest]
    return [str(part) for part in parts], {"ORT_DYLIB_PATH": str(library)} | os.environ


PEAK = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10); sys.exit(code)"


def test_memory_depends_on_no_number_of_samples(tmp_path: Path, figure):
    model = linear(tmp_path / "m.onnx", steps=40)
    recipe = {"steps": [{"quantize": {"mode": "Static"}}], "evaluation": {"latencyPairs": 3}}
    random = np.random.default_rng(0)
    peaks = {}
    for save, count in itertools.product((np.savez, np.savez_compressed), (10, 10_000)):
        x = random.normal(size=(count, 40, WIDTH)).astype(np.float32)
        name = f"{save.__name__}{count}"
        save(tmp_path / name, **{"calibration/x": x[: count // 2], "evaluation/x": x})
        parts, env = command(model, recipe, "--data", tmp_path / f"{name}.npz", "--out", tmp_path / name)
        done = subprocess.run([sys.executable, "-c", PEAK, *parts], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1000:]
        peaks[name] = int(done.stdout)
    figure(f"peak memory of a static compression by samples, MiB: {peaks}")
    # 10,000 samples are 38 MB of inputs and half of it again for calibration.
    assert peaks["savez10000"] < peaks["savez10"] + 12, peaks
    assert peaks["savez_compressed10000"] < peaks["savez_compressed10"] + 12, peaks


def test_sigterm_leaves_nothing_and_the_same_command_begins_anew(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", steps=40)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20_000, 40, WIDTH)).astype(np.float32))
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    recipe = {"steps": [DYNAMIC], "evaluation": {"latencyPairs": 3}}
    parts, env = command(model, recipe, "--data", tmp_path / "x.npz", "--out", out)
    working = subprocess.Popen(parts, env=env | {"TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True)
    for line in working.stderr:
        if "quantize" in line:
            working.send_signal(signal.SIGTERM)
    assert working.wait() == 128 + signal.SIGTERM
    assert list(out.iterdir()) == [] and list(scratch.iterdir()) == []
    recipe["evaluation"]["maxSamples"] = 10
    parts, env = command(model, recipe, "--data", tmp_path / "x.npz", "--out", out)
    assert subprocess.run(parts, env=env, capture_output=True).returncode == 0
    assert sorted(file.name for file in out.iterdir()) == ["manifest.json", "model.onnx", "report.html"]


def test_a_full_disk_is_told(tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(2000, WIDTH)).astype(np.float32))
    parts, env = command(model, {"steps": [DYNAMIC]}, "--data", tmp_path / "x.npz", "--out", tmp_path / "out")
    # As a disk that takes no more: every file of the process ends at 64 KiB.
    limited = ["bash", "-c", 'ulimit -f 64; trap "" XFSZ; exec "$@"', "limited", *parts]
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr, done.stderr
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_dry_run_tells_what_every_step_would_match(tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    steps = [{"prune": {"structure": "Heads", "sparsity": 0.5}}, DYNAMIC]
    parts, env = command(model, {"steps": steps}, "--dry-run", "--json")
    done = subprocess.run(parts, env=env, capture_output=True, text=True)
    assert done.returncode == REFUSED
    first, second = json.loads(done.stdout)["steps"]
    assert first["error"]["reason"] == "RecipeInvalid", first
    assert second["matched"] == 1 and "MatMul" in second["summary"], second


def test_the_report_stands_alone(samples: np.ndarray, tmp_path: Path):
    model = linear(tmp_path / "m.onnx")
    manifest = judge(model, {"x": samples}, {"metric": "Agreement", "minimum": 0.01}, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert manifest["report"]["size"] == len(page.encode())
    assert not any(word in page for word in ("http:", "https:", "<script", "src=", "url(", "@import", "<link"))
    assert "dense" in page and "minimum" in page
    [layer] = manifest["layers"]
    assert (layer["op"], layer["parameters"], layer["bits"]) == ("MatMulInteger", WIDTH * CLASSES, 8)
    assert 20 < layer["signalToNoise"] < 100, layer
