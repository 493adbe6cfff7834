"""Puts the messages of TensorFlow into this environment, without TensorFlow.

tensorflow-serving-api imports tensorflow.core.*_pb2, which only the wheels of TensorFlow hold: 274
MB, of which the messages are half a megabyte. The wheel is fetched once per environment by pip,
which checks its hash, and nothing else of it is kept or run.
"""

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

WHEEL = "tensorflow-cpu==2.21.0"


def main() -> None:
    """Fetches the wheel, copies the messages, and makes their folders packages."""
    site = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, WHEEL], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            messages = [name for name in archive.namelist() if name.endswith("_pb2.py")]
            archive.extractall(site, messages)
    # The package's own __init__ would import the rest of TensorFlow.
    for name in messages:
        for parent in list(Path(name).parents)[:-1]:
            (site / parent / "__init__.py").touch()


if __name__ == "__main__":
    main()
