"""Whether the Hugging Face Hub can be asked for a data set; if not, its client would go on asking for half a minute."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from swin_mim.errors import UserError


def check_reachable(name: str) -> None:
    """Raise a `UserError` where the Hub's address cannot be resolved and no cache holds anything of a data set.

    Behind a proxy, which resolves names itself, and with HF_HUB_OFFLINE the client is left to find out.
    """
    from datasets import config

    host = urlsplit(config.HF_ENDPOINT).hostname
    if config.HF_HUB_OFFLINE or host is None or getproxies() or _is_cached(name):
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(
            f"data.source {name!r}: there is no such file or folder here, and no connection to {config.HF_ENDPOINT}, "
            f"which may have a data set of that name ({error.strerror}): check the path, or see to the network"
        ) from None


def files_in_cache(name: str) -> Path:
    """Folder in which the Hub's client keeps the files of a data set."""
    from datasets import config

    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(config.HF_CACHE_HOME) / "hub")
    return hub / f"datasets--{name.replace('/', '--')}"


def _is_cached(name: str) -> bool:
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *user, last = name.split("/")
    prepared = Path(config.HF_DATASETS_CACHE) / "___".join([*user, camelcase_to_snakecase(last)])
    return prepared.exists() or files_in_cache(name).exists()
