"""Why a run cannot start, in the words of the recipe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import PretrainConfig

if TYPE_CHECKING:
    from swin_mim.cli.doctor.images.source import Images
    from swin_mim.training.loop.schedule import TrainingSchedule

Result = TypeVar("Result")


class Reasons:
    """Collects the mistakes that a recipe would stop at."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def of(self, what: Callable[[], Result]) -> Result | None:
        """Its result, or None and a reason more."""
        try:
            return what()
        except UserError as error:
            if str(error) not in self.found:
                self.found.append(str(error))
            return None

    def too_many_broken(self, images: "Images", config: PretrainConfig, plan: "TrainingSchedule | None") -> None:
        from swin_mim.training.loop.trainer import BROKEN_GRACE

        most = config.data.max_broken
        if images.broken == images.looked_at:
            first = images.first_broken[0]
            self.found.append(
                f"none of the {images.looked_at} images of data.source {config.data.source!r} that were tried can be "
                f"read, the first: {first.name}: {first.reason}"
            )
        elif images.broken_share > most and (plan is None or plan.total_steps * plan.global_batch >= BROKEN_GRACE):
            self.found.append(
                f"{images.broken} of {images.looked_at} images cannot be read, more than data.max_broken {most:.2%}: "
                f"a run stops after {BROKEN_GRACE} images; {_for_broken(images, config.data.source)}"
            )


def _for_broken(images: "Images", source: str) -> str:
    from swin_mim.cli.doctor.page import for_too_large

    if not images.too_large:
        return "repair or remove them, or raise data.max_broken"
    way_out, one = for_too_large(images, source), images.too_large == 1
    if images.too_large == images.broken:
        return f"{'it is' if one else 'they are'} too large: {way_out}"
    few = f"{images.too_large} of them {'is' if one else 'are'} too large: {way_out}"
    return f"{few}; repair or remove the others, or raise data.max_broken"
