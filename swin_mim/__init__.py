"""SimMIM pretraining of Swin Transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swin_mim.threads import wait_politely

if TYPE_CHECKING:
    from swin_mim.api import pretrain
    from swin_mim.architecture import SwinConfig
    from swin_mim.evaluation.outputs.embeddings import embed
    from swin_mim.masking import block_mask
    from swin_mim.models.classifier import SwinClassifier
    from swin_mim.models.dense.detector import SwinDetector
    from swin_mim.models.dense.segmenter import SwinSegmenter
    from swin_mim.models.simmim import SimMIM
    from swin_mim.models.swin import Swin

wait_politely()  # here, as it is of use before torch is loaded only

__version__: str
__all__ = [
    "SimMIM",
    "Swin",
    "SwinClassifier",
    "SwinConfig",
    "SwinDetector",
    "SwinSegmenter",
    "block_mask",
    "embed",
    "pretrain",
]

_HOME = {
    "SimMIM": "swin_mim.models.simmim",
    "Swin": "swin_mim.models.swin",
    "SwinClassifier": "swin_mim.models.classifier",
    "SwinConfig": "swin_mim.architecture",
    "SwinDetector": "swin_mim.models.dense.detector",
    "SwinSegmenter": "swin_mim.models.dense.segmenter",
    "block_mask": "swin_mim.masking",
    "embed": "swin_mim.evaluation.outputs.embeddings",
    "pretrain": "swin_mim.api",
}


def __getattr__(name: str) -> Any:
    # Names are looked up on first use, so that `import swin_mim` and `--help` do not wait for torch.
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'swin_mim' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("swin-mim")
    except PackageNotFoundError:  # a checkout on PYTHONPATH, with nothing installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
