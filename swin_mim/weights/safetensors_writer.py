"""A dict of tensors -> a safetensors file and the digest of what was meant to be in it.

The library's own writer copies every tensor once more, holds the interpreter's lock meanwhile, which the training that
goes on beside it needs, and leaves no digest but that of the file as it arrived on the disk. The format is a length, a
JSON header and the bytes: https://github.com/huggingface/safetensors#format. It is read by the library.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

assert sys.byteorder == "little", "safetensors are little-endian"

DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""torch's dtype -> safetensors' name of it."""
_CHUNK = 2**24


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write CPU tensors -> SHA-256, in hex, of the bytes that the file should have.

    Larger items first, then by name, so that each starts at a multiple of its item size.

    Raises:
        OSError: the disk is full, or the like; the file may be there in part.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for part in (len(text).to_bytes(8, "little"), text, *map(_bytes_of, (tensor for _, tensor in ordered))):
            view = memoryview(part)
            for at in range(0, len(view), _CHUNK):
                chunk = view[at : at + _CHUNK]
                digest.update(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which stays as it is while the training goes on."""
    return tensor.detach().to("cpu", copy=True).contiguous()
