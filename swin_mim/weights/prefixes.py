"""Where in a file the tensors of a Swin are: under which prefix, beside which others.

Training scripts keep a network inside of others: `model.`, `student.backbone.`, `module.encoder_q.`, with a projector,
a loss or the copy of a teacher beside it. Names only: nothing here touches data.
"""

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.weights.formats import explained_names, first_names
from swin_mim.weights.layouts import LAYOUTS, Layout

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put anywhere."""

_HEAD = re.compile(r"\w*head\w*|classifier|fc|projector|predictor|norm\d+|hidden_states_norms")
"""Modules beside an encoder's own, within its prefix: heads of any shape, and output norms of detectors."""
_NAMED = 4
"""Prefixes that a message names."""


class Selection(NamedTuple):
    """The tensors of a file that are a network and its parts."""

    names: Mapping[str, str]
    """Name without the prefix -> name in the file."""
    prefix: str = ""
    """What was taken off, as it is in the file."""
    left: tuple[str, ...] = ()
    """Names in the file that are no part of the network."""

    def lines(self) -> list[str]:
        """What was taken off and left, a line each."""
        said = [f"prefix {self.prefix} taken off {counted(len(self.names), 'key')}"] if self.prefix else []
        return said + ([f"left, as no part of the network: {first_names(self.left, '')}"] if self.left else [])


def everything(names: Collection[str]) -> Selection:
    """All of them as they are; without the wrappers of DistributedDataParallel and torch.compile around the whole."""
    prefix, found = "", dict(zip(names, names, strict=True))
    for wrapper in ("module.", "_orig_mod."):
        if found and all(name.startswith(wrapper) for name in found):
            prefix += wrapper
            found = {name.removeprefix(wrapper): file for name, file in found.items()}
    return Selection(found, prefix)


def select(names: Collection[str], prefix: str = "", where: str = "") -> Selection:
    """The one network among the tensors of a file; all of them if there is none, for others to say what they are.

    Args:
        prefix: of the network that is wanted.
        where: the file, for messages.

    Raises:
        UserError: there are several, or none with this prefix.
    """
    found = networks(names)
    if not found and not prefix:
        return everything(names)
    before = the_one(found, prefix, where)
    return select_network(names, before, found[before])


def networks(names: Collection[str]) -> dict[str, str]:
    """What stands before the names of each encoder in a file, "" too: as in the file -> without wrappers."""
    plain = _without_wrappers(names)
    found = {}
    for patch, block in dict.fromkeys(map(_landmarks, LAYOUTS)):
        for name, file in plain.items():
            before = name.removesuffix(patch)
            if before != name and before[-1:] in ("", ".") and before + block in plain:
                found[file.removesuffix(patch) if file.endswith(patch) else before] = before
    return found


def the_one(found: Collection[str], prefix: str = "", where: str = "") -> str:
    """The network that is meant, of these; UserError if that is not one.

    Args:
        found: what stands before the names of each.
        prefix: of the one that is wanted, with or without the wrappers and the last dot.
        where: the file, for messages.
    """
    wanted = {f"{text.rstrip('.')}." for text in (prefix, _unwrapped(prefix)) if text.rstrip(".")}
    fit = [one for one in found if not wanted or any(form.startswith(tuple(wanted)) for form in (one, _unwrapped(one)))]
    exact = [one for one in fit if one in wanted or _unwrapped(one) in wanted]
    fit = exact if len(exact) == 1 else fit
    if len(fit) == 1:
        return fit[0]
    shown = [one or "no prefix" for one in fit or found]
    listed = ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")
    if not fit:
        raise UserError(f"no Swin under the prefix {prefix}: {f'found under {listed}' if found else 'none is in it'}")
    example = next(one for one in fit if one)
    raise UserError(
        f"holds {len(fit)} networks, under {listed}: take the one that you mean, with "
        f"swin-mim convert {shlex.quote(where or 'FILE')} FOLDER --to swin_mim --prefix {example}"
    )


def select_network(names: Collection[str], in_file: str, before: str) -> Selection:
    """One network of a file, with the heads and mask token that its format keeps beside the encoder.

    Args:
        in_file, before: what stands before the names of its encoder, with and without wrappers, as `networks` has them.
    """
    plain = _without_wrappers(names)
    layout, prefix = _layout(plain, before)
    inside = {name.removeprefix(prefix): file for name, file in plain.items() if name.startswith(prefix)}
    known = explained_names(layout, inside)
    # What nobody knows and stands where the encoder does means that the file is not what it seems: it is refused later.
    odd = {
        name
        for name, file in inside.items()
        if file.startswith(in_file) and name.startswith(layout.prefix) and not _is_head(name, layout)
    }
    chosen = {name: file for name, file in inside.items() if name in known | odd}
    files = set(chosen.values())
    return Selection(chosen, _as_in_file(prefix, chosen), tuple(name for name in names if name not in files))


def _layout(plain: Mapping[str, str], before: str) -> tuple[Layout, str]:
    """The layout that explains most, and what stands before its names; of equals the one with less before it.

    But `encoder.` is a word of everybody's, and with nothing known beside it a prefix like others.
    """
    best: tuple[tuple[int, bool, int], Layout, str] | None = None
    for layout in LAYOUTS:
        patch, block = _landmarks(layout)
        fits = before.endswith(layout.prefix) and before + patch in plain and before + block in plain
        prefix = before.removesuffix(layout.prefix)
        if not fits or prefix[-1:] not in ("", "."):
            continue
        inside = [name.removeprefix(prefix) for name in plain if name.startswith(prefix)]
        rank = len(explained_names(layout, inside)), layout.prefix != "encoder.", -len(prefix)
        if best is None or rank > best[0]:
            best = rank, layout, prefix
    assert best is not None, "a network was found by its landmarks"
    return best[1:]


def _is_head(name: str, layout: Layout) -> bool:
    return bool(_HEAD.fullmatch(name.removeprefix(layout.prefix).split(".")[0]))


def _landmarks(layout: Layout) -> tuple[str, str]:
    """Two names of every encoder in a layout, without a prefix: of the patch embedding and of the first block."""
    bare = replace(layout, prefix="")
    block = bare.block.format(prefix="", stage=0, odd=1, block=0)
    return f"{bare.patch.format(prefix='')}.weight", f"{block}{bare.norm1}.weight"


def _without_wrappers(names: Collection[str]) -> dict[str, str]:
    """Name without wrappers -> name; as they are where two would become one."""
    plain = {_unwrapped(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _as_in_file(prefix: str, chosen: Mapping[str, str]) -> str:
    """What stands before the names in the file, wrappers included where all of them have it."""
    ends = {file.removesuffix(name) for name, file in chosen.items() if file.endswith(name)}
    return ends.pop() if len(ends) == 1 else prefix
