"""The container of a model: tensors and metadata as one checked safetensors file. It knows nothing of models.

The file is an ordinary safetensors file. Its ``__metadata__`` has one entry, ``gpusoftmax``: the metadata as JSON. Its
last tensor, ``sha256`` (32 bytes, U8), is the SHA-256 of every byte before it: length, header, padding and tensors.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown  # in a few words, however large or deep
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gpusoftmax.exceptions import ModelFileError

FORMAT = "gpusoftmax"
FORMAT_VERSION = 1
DIGEST = "sha256"
DIGEST_BYTES = 32
LENGTH_BYTES = 8  # of the header's length, at the start
LARGEST_HEADER_BYTES = 100_000_000  # safetensors's own limit
NEW_COPY = "Copy or download it again, or save the model anew"


def pack(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> tuple[memoryview, bytes]:
    """Return a file as all but its last 32 bytes, and those.

    Parameters
    ----------
    tensors : of arrays of any layout, of dtypes that safetensors knows
    metadata : what JSON can hold, with neither NaN nor infinities

    Raises
    ------
    ModelFileError
        The metadata take more than a header of safetensors can hold.
    """
    marked = {"format": FORMAT, "format_version": FORMAT_VERSION} | dict(metadata)
    text = json.dumps(marked, separators=(",", ":"), allow_nan=False)
    # safetensors writes the memory of an array as it lies, whatever its strides say.
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        # One entry, since safetensors orders several at random: the same model is the same bytes.
        data = memoryview(save(arrays | {DIGEST: np.zeros(DIGEST_BYTES, np.uint8)}, {FORMAT: text}))
        if int.from_bytes(data[:LENGTH_BYTES], "little") > LARGEST_HEADER_BYTES:
            raise SafetensorError("header too large")  # older versions write what they would not read
    except SafetensorError as error:
        raise ModelFileError(f"its labels, names and parameters take {len(text):,} bytes of text: {error}") from error
    content = data[:-DIGEST_BYTES]
    return content, hashlib.sha256(content).digest()


def unpack(path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors and the metadata of a file that `pack` made, every byte of it checked.

    At most twice the size of the file is allocated, beside what the text of its header takes as Python objects.

    Raises
    ------
    ModelFileError
        The file is another kind of file, of a newer format, or damaged.
    OSError
        It cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelFileError("it is no ordinary file")
    with path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        start = _read_start(file, n_bytes)
        metadata = _metadata(memoryview(start)[LENGTH_BYTES:])
        file.seek(0)
        data = file.read(n_bytes)
    digest = data[-DIGEST_BYTES:]
    if hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest() != digest or not data.startswith(start):
        raise ModelFileError(f"its content does not match its SHA-256: it is damaged. {NEW_COPY}")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # the last two of NumPy: a dtype, a shape it does not know
        raise ModelFileError(f"its tensors cannot be read: {error}") from error
    if DIGEST not in tensors or tensors.pop(DIGEST).tobytes() != digest:
        raise ModelFileError(f"its last tensor is not {DIGEST}")
    return tensors, metadata


def _read_start(file: BinaryIO, n_bytes: int) -> bytes:
    """Return the header and its length before it, after a look at whether the file can hold what it claims."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if not 0 < length <= min(n_bytes - LENGTH_BYTES - DIGEST_BYTES, LARGEST_HEADER_BYTES):
        raise ModelFileError(f"it is no safetensors file, or cut off after {n_bytes:,} bytes. {NEW_COPY}")
    file.seek(0)
    return file.read(LENGTH_BYTES + length)


def _metadata(header: memoryview) -> dict[str, Any]:
    """Return the metadata that a header holds; it tells what is no model before anything large is read."""
    try:
        text = json.loads(str(header, "utf-8"))["__metadata__"][FORMAT]
        metadata = json.loads(text, parse_constant=_refuse)
        format_name, version = metadata.pop("format"), metadata.pop("format_version")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"its header is not that of a gpusoftmax model, or damaged. {NEW_COPY}") from error
    if format_name != FORMAT or type(version) is not int or version < 1:
        raise ModelFileError(
            f"its format is {shown(format_name)}, version {shown(version)}; expected {FORMAT!r}, version 1"
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"gpusoftmax {shown(metadata.get('library_version'))} wrote it in version {shown(version)} of the format, "
            f"and this one reads up to {FORMAT_VERSION}: update gpusoftmax"
        )
    return metadata


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")
