"""Run the notebooks and write their outputs into their files: `make notebooks`."""

import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        startup_timeout=300,
        timeout=300,
        record_timing=False,  # times would be in each diff
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    # Not which Python ran it, nor what TensorFlow prints when it is imported.
    notebook.metadata["language_info"] = {"name": "python"}
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.outputs = [it for it in first.outputs if it.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(Path(name), Path(folder)), name)
