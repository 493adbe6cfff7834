"""Asks a served example model about things of this machine and prints the answers as a table.

`predict.py --http HOST:PORT --model NAME [--reference FILE]`: for Magika some files and what they
are, for MiniLM how close some sentences are in meaning. With a reference, ONNX Runtime answers the
same batch in this process and the largest difference is printed. Uses nothing but HTTP and JSON.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import models
import numpy as np

QUESTION = "How can I change my password?"
ANSWERS = [
    "The settings page lets you choose a new password.",
    "I forgot my login and cannot sign in.",
    "The train to the coast leaves at noon.",
    "Add two eggs and stir the dough.",
]
DATATYPES = {"int32": "INT32", "int64": "INT64"}


class Server:
    """A model behind the Open Inference Protocol over HTTP."""

    def __init__(self, address: str, model: str) -> None:
        self.url = f"http://{address}/v2/models/{model}"

    def ask(self, path: str = "", body: Any = None) -> Any:
        """The JSON at a path below the model; ends the program with a sentence when there is none."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self.url + path, data, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"{self.url}{path} answered {error.code}: {error.read().decode(errors='replace')}")
        except OSError as error:
            sys.exit(f"nothing answers at {self.url}: {error}; is the model served there?")

    def infer(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """The model's last output for a batch."""
        inputs = [
            {"name": name, "shape": rows.shape, "datatype": DATATYPES[rows.dtype.name], "data": rows.tolist()}
            for name, rows in batch.items()
        ]
        output = self.ask("/infer", {"inputs": inputs})["outputs"][-1]
        return np.array(output["data"], np.float32).reshape(output["shape"])


def files() -> list[Path]:
    """A few files of different kinds that this machine has."""
    candidates = [
        Path(os.__file__),
        Path(sys.executable).resolve(),
        Path("/usr/share/common-licenses/Apache-2.0"),
        models.package_file(*models.MAGIKA_MODEL),
        models.package_file(*models.TOKENIZER),
    ]
    # One more of each of some kinds; the walk is sorted, so a machine always shows the same.
    wanted = {".png", ".gz", ".svg", ".xml", ".sh", ".css", ".html"}
    for file in models.walk(Path("/usr/share")):
        if file.suffix in wanted and file.stat().st_size > 200:
            wanted.remove(file.suffix)
            candidates.append(file)
        if not wanted:
            break
    return [file for file in candidates if file.is_file()]


def shown(file: Path) -> str:
    """A path that fits into a column of the table: the end is what tells."""
    text = str(file)
    return text if len(text) <= 56 else f"...{text[-53:]}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Prints rows in columns as wide as their longest entry."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def classify(server: Server) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Shows what kind of file each of some files is; returns the batch and the answer."""
    features, labels = models.Features(), models.magika_labels()
    asked = [(file, row) for file in files() if (row := features.of(file)) is not None]
    batch = {"bytes": np.stack([row for _, row in asked])}
    scores = server.infer(batch)
    best = scores.argmax(axis=1)
    rows = [
        (shown(file), labels[index], f"{score[index]:.1%}")
        for (file, _), index, score in zip(asked, best, scores, strict=True)
    ]
    table(("file", "kind", "score"), rows)
    return batch, scores


def compare(server: Server) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Shows how close some sentences are to a question; returns the batch and the answer."""
    batch = models.tokenise([QUESTION, *ANSWERS])
    vectors = server.infer(batch)
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    close = directions[1:] @ directions[0]
    print(f'  How close in meaning to "{QUESTION}"')
    order = np.argsort(-close)
    table(("sentence", "cosine"), [(ANSWERS[index], f"{close[index]:.3f}") for index in order])
    return batch, vectors


def verify(reference: Path, batch: dict[str, np.ndarray], answer: np.ndarray) -> None:
    """Prints how far the answer is from ONNX Runtime's on the reference file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(reference, providers=["CPUExecutionProvider"])
    wanted = session.run([session.get_outputs()[-1].name], batch)[0]
    largest = float(np.abs(answer - wanted).max())
    same = "the same numbers as" if largest == 0 else f"at most {largest:.1e} away from"
    print(f"  {same} ONNX Runtime in Python on {reference.name}")


def main() -> None:
    """Asks the model what its inputs say it can answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", required=True, metavar="HOST:PORT", help="where the model is served")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="an .onnx file to compare with")
    chosen = parser.parse_args()
    server = Server(chosen.http, chosen.model)
    inputs = {one["name"] for one in server.ask()["inputs"]}
    known = {"bytes": classify, "input_ids": compare}
    act = next((act for name, act in known.items() if name in inputs), None)
    if act is None:
        sys.exit(f"{chosen.model} takes {sorted(inputs)}; this client knows Magika and MiniLM only")
    batch, answer = act(server)
    if chosen.reference:
        verify(chosen.reference, batch, answer)


if __name__ == "__main__":
    main()
