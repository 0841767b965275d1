"""`gpusoftmax predict`: labels and probabilities for the rows of a file, block by block."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from sklearn.utils import gen_batches

from gpusoftmax.cli.matching import read_for
from gpusoftmax.cli.outputs import check_output, written_whole
from gpusoftmax.cli.terminal import Terminal, standard_output
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.persistence import load_model
from gpusoftmax.tables import Selection, Table

ARROW = (".parquet", ".pq", ".arrow", ".feather")
SUFFIXES = (".csv", ".tsv", *ARROW, ".npy")
BLOCK_NUMBERS = 1 << 22  # features and probabilities of a block


def predict(
    terminal: Terminal,
    model_path: Path,
    data: Path,
    selection: Selection,
    *,
    has_probabilities: bool,
    device: str,
    output: Path | None,
) -> None:
    """Write the predicted class of every row, and the probability of every class where asked for."""
    check_output(output, SUFFIXES, data, model_path)
    if output is not None and output.suffix.lower() in ARROW and find_spec("pyarrow") is None:
        raise ImportError(f"{output} needs pyarrow to be written: pip install 'gpusoftmax[data]'.")
    model = load_model(model_path).set_params(device=device)
    table = read_for(model, data, selection)
    predictions = Predictions(model, table, has_probabilities)
    result: dict[str, Any] = {"data": data, "model": model_path, "n_rows": len(table.X), "output": output}
    if output is not None:
        with written_whole(output) as temporary:
            WRITERS[output.suffix.lower()](predictions, temporary)
        terminal.say(f"{len(table.X):,} predictions: {output}")
    elif terminal.is_json:
        blocks = list(predictions.blocks())
        result["classes"] = model.classes_
        result["predictions"] = np.concatenate([labels for labels, _ in blocks])
        if has_probabilities:
            result["probabilities"] = np.concatenate([probabilities for _, probabilities in blocks])
    else:
        with standard_output() as stdout:
            if isinstance(stdout, io.TextIOWrapper):
                stdout.reconfigure(encoding="utf-8")  # as in files
            write_text(predictions, stdout, ",")
    terminal.answer(result)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the rows of a table, made when they are read."""

    model: SoftmaxRegression
    table: Table
    has_probabilities: bool

    @property
    def names(self) -> list[str]:
        """Names of the columns: the prediction, and the probability of each class."""
        classes = self.model.classes_.tolist() if self.has_probabilities else []
        return ["prediction", *(f"probability_{name}" for name in classes)]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield labels (n_rows,) and probabilities (n_rows, n_classes), without columns where none are wanted."""
        X, model = self.table.X, self.model
        for rows in gen_batches(len(X), max(1, BLOCK_NUMBERS // (X.shape[1] + len(model.classes_)))):
            labels = model.predict(X[rows])
            probabilities = model.predict_proba(X[rows]) if self.has_probabilities else np.empty((len(labels), 0))
            yield labels, probabilities


def write_text(predictions: Predictions, file: TextIO, delimiter: str) -> None:
    """Write a line of names and a line for each row."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(predictions.names)
    for labels, probabilities in predictions.blocks():
        writer.writerows([label, *row] for label, row in zip(labels.tolist(), probabilities.tolist(), strict=True))


def _write_csv(predictions: Predictions, path: Path, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_text(predictions, file, delimiter)


def _write_tsv(predictions: Predictions, path: Path) -> None:
    _write_csv(predictions, path, "\t")


def _write_npy(predictions: Predictions, path: Path) -> None:
    """Write labels alone, or probabilities alone: an array has one dtype, and objects are none."""
    dtype = np.array(predictions.model.classes_.tolist()).dtype
    with path.open("wb") as file:
        for i, (labels, probabilities) in enumerate(predictions.blocks()):
            block = probabilities if predictions.has_probabilities else labels.astype(dtype)
            if i == 0:
                shape = (len(predictions.table.X), *block.shape[1:])
                header = np.lib.format.header_data_from_array_1_0(np.broadcast_to(block[:1], shape))
                np.lib.format.write_array_header_2_0(file, header | {"fortran_order": False})
            file.write(np.ascontiguousarray(block).data)


def _write_parquet(predictions: Predictions, path: Path) -> None:
    from pyarrow import parquet

    _write_arrow_blocks(predictions, lambda schema: parquet.ParquetWriter(path, schema))


def _write_arrow(predictions: Predictions, path: Path) -> None:
    from pyarrow import ipc

    _write_arrow_blocks(predictions, lambda schema: ipc.new_file(path, schema))


def _write_arrow_blocks(predictions: Predictions, open_writer: Callable) -> None:
    import pyarrow as pa

    writer = None
    try:
        for labels, probabilities in predictions.blocks():
            table = pa.table([pa.array(labels), *map(pa.array, probabilities.T)], names=predictions.names)
            writer = writer or open_writer(table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


WRITERS = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".npy": _write_npy,
    **dict.fromkeys((".parquet", ".pq"), _write_parquet),
    **dict.fromkeys((".arrow", ".feather"), _write_arrow),
}
