"""What all Python tests share: settings from the environment, ONNX Runtime as the oracle, figures.

Must not import a client library (tritonclient and kserve cannot share a process) nor start servers:
the Rust side starts what is tested and says where it is.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from oracle import session

# The names a data file may carry before an input's name when it is split by hand.
SPLITS = ("train/", "calibration/", "evaluation/")

_figures: list[str] = []


def setting(name: str, meaning: str, default: str | None = None) -> str:
    """The environment variable `name`, or an end of the whole run that says what it should hold."""
    value = os.environ.get(name, default)
    if not value:
        pytest.exit(f"the environment variable {name} is not set; it holds {meaning}", returncode=2)
    return value


def load_data(file: Path | str) -> dict[str, np.ndarray]:
    """A data file's arrays by input name, without a split's prefix; the evaluation split wins."""
    found: dict[str, np.ndarray] = {}
    with np.load(file) as archive:
        for name in sorted(archive.files, key=lambda name: name.startswith("evaluation/")):
            for split in SPLITS:
                name_of_input = name.removeprefix(split)
                if name_of_input != name:
                    break
            found[name_of_input] = archive[name]
    return found


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """Notes one measured figure; all are printed at the end of the run, passed or failed."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures."""
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.line(line)


@dataclass(frozen=True)
class Served:
    """The server under test and what it should answer."""

    http: str
    """HOST:PORT of the REST protocols."""
    grpc: str
    """HOST:PORT of the gRPC protocols."""
    model: str
    """The model's name."""
    session: onnxruntime.InferenceSession
    """ONNX Runtime on the reference file."""
    data: dict[str, np.ndarray]
    """Real samples by input name, [N, ...]."""
    exact: bool
    """Whether answers must equal the reference bit for bit, else within 1e-5."""

    def batch(self, rows: int = 4, start: int = 0) -> dict[str, np.ndarray]:
        """`rows` samples from `start` on, by input name."""
        return {i.name: self.data[i.name][start : start + rows] for i in self.session.get_inputs()}

    def expected(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What ONNX Runtime answers on the same batch, by output name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, batch), strict=True))

    def check(self, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
        """Fails unless an answer is what the reference says.

        The batch is the same on both sides, since ONNX Runtime's dynamic int8 takes one activation
        range over the whole batch. Outside exact mode 1e-5 allows for another processor or thread
        count, which change the order of sums.
        """
        assert actual is not None, f"no output {name}"
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if self.exact:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        else:
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="session")
def served() -> Served:
    """The server named by LITHE_HTTP, LITHE_GRPC and LITHE_MODEL, and its reference.

    LITHE_EXACT=1 is right when LITHE_REFERENCE holds the served bytes, both sides run on the same
    processor, and LITHE_THREADS (ONNX Runtime's own choice by default) is the server's number of
    intra-op threads.
    """
    reference = setting("LITHE_REFERENCE", "the path of the .onnx file that answers are compared with")
    return Served(
        http=setting("LITHE_HTTP", "HOST:PORT of the worker's HTTP port"),
        grpc=setting("LITHE_GRPC", "HOST:PORT of the worker's gRPC port"),
        model=setting("LITHE_MODEL", "the name under which the model is served"),
        session=session(reference, int(setting("LITHE_THREADS", "a number", "0"))),
        data=load_data(setting("LITHE_DATA", "the path of an .npz with samples by input name")),
        exact=setting("LITHE_EXACT", "1 or 0", "0") == "1",
    )
