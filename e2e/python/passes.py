"""Runs `lithe-worker passes`, which takes many models through `optimize` in one process."""

import json
import os
import subprocess
from pathlib import Path

import onnxruntime
from conftest import setting


def passes(models: list[Path], out: Path) -> list[dict]:
    """One line per model: what was written after each pass and what is known of the shapes, or why
    the model was refused."""
    listed = out.with_suffix(".list")
    listed.write_text("".join(f"{model}\n" for model in models))
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    done = subprocess.run(
        [setting("LITHE_WORKER", "the path of the lithe-worker binary"), "passes", "--out", out, "--list", listed],
        capture_output=True,
        text=True,
        env={"ORT_DYLIB_PATH": str(library)} | os.environ,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
