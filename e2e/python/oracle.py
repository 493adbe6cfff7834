"""ONNX Runtime in Python, the judge of tests and benches: sessions, and latency in interleaved pairs."""

import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime


def session(model: Path | str, threads: int = 0, fused: bool = True) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a model file, on the CPU. `threads` 0 leaves the number to ONNX Runtime.

    Without `fused` every node runs as it stands in the file.
    """
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def speedup(original: Path, compressed: Path, samples: dict[str, np.ndarray], pairs: int = 50) -> float:
    """The median over interleaved pairs of the original's time over the other's, one sample, one thread."""
    return ratio(*(session(file, threads=1) for file in (original, compressed)), first(samples), pairs)


def first(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first sample as a batch of one."""
    return {name: rows[:1] for name, rows in samples.items()}


def ratio(
    original: onnxruntime.InferenceSession,
    compressed: onnxruntime.InferenceSession,
    one: dict[str, np.ndarray],
    pairs: int,
) -> float:
    """The median over interleaved pairs of the original's time over the other's on the batch `one`."""
    runners = (original, compressed)
    for runner in runners * 3:
        runner.run(None, one)
    ratios = []
    for _ in range(pairs):
        times = []
        for runner in runners:
            start = time.perf_counter()
            runner.run(None, one)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)
