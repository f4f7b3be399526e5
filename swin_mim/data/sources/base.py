"""What training and the source of its images tell each other."""

from collections.abc import Callable
from dataclasses import dataclass

from swin_mim.errors import UserError


@dataclass
class StreamStatus:
    """What a training and the images that are brought for it tell each other."""

    stopped: Callable[[], bool] = lambda: False
    """Whether the training was asked to stop: nothing is waited for any more."""
    failure: UserError | None = None
    """Why there will be no more images; known some steps before they run out."""

    def is_set(self) -> bool:
        """Answer as a `CancelToken` of the cache."""
        return self.stopped()
