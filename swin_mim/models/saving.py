"""Saving, publishing and loading: what all models have in common."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.hub import pretrained, repository, saved
from swin_mim.hub.about import About
from swin_mim.hub.card import card
from swin_mim.weights.adapt import Method, adapt
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description, Kind, Preprocessing

if TYPE_CHECKING:
    from swin_mim.models.preprocessing import ImageLike

__all__ = ["About", "Preprocessing", "Pretrained"]

VERIFIED = 448
"""Pixels along the side of the image on which a saved model is compared, at most."""

_LOG = logging.getLogger(__name__)


class Pretrained(nn.Module):
    """A model that can be saved, published and loaded. Abstract: all models of swin_mim are such."""

    kind: ClassVar[Kind]
    _head: ClassVar[tuple[str, ...]] = ()
    """Published names of what it has besides the encoder."""
    _way_out: ClassVar[str] = ""
    """What to do about a source that lacks them."""
    preprocessing: Preprocessing = Preprocessing()
    """How images become its input; saved with it. ImageNet's mean and std unless somebody says otherwise."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, of a model that has some."""
    from_simmim: bool = False
    """Whether its weights were loaded from a masked image model."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        config: SwinConfig | None = None,
        image_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
        bias_tables: Method = "bicubic",
        channels: int | Sequence[str] | None = None,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        new_decoder: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        pickles: bool = False,
        **options: Any,
    ) -> Self:
        """Load a published model, in evaluation mode and on the CPU. Every name and shape must fit.

        Args:
            source: a folder (an export, a run, a checkpoint), a .safetensors file, or a Hub repository "user/name".
                Files of timm, torchvision, transformers and microsoft are recognised by their keys, under any prefix.
            config: the network that is wanted: its image size, window and rates replace the source's.
            image_size, window_size: another geometry; the bias tables are resized to it, as bias_tables says:
                "bicubic" as Swin's own code does, "geometric" as SimMIM's code does.
            channels: other input channels. By name, as ["red", "green", "blue", "nir"]: those that the source has keep
                their weights, new ones get the mean. A number: every channel gets the mean.
            drop_rate, drop_path_rate: of the new model; None keeps the source's.
            new_decoder: for SimMIM from a source without one: draw mask token and decoder anew.
            revision, token, cache_dir, local_files_only: as everywhere.
            pickles: read a local .pth file too, of which nothing is executed; without it safetensors only.
            options: of the class: attention, activation_checkpointing, target, num_classes: another number than the
                source's means a new head, drawn at random, with a warning.

        Raises:
            UserError (a ValueError): the source cannot be read safely or is no such model; names the file and the key.
        """
        hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        path = pretrained.locate(source, local_files_only=local_files_only, pickles=pickles, **hub)
        weights = pretrained.read(path, pickles=pickles)
        if weights.size_is_guessed and not (image_size or config):
            _LOG.warning("%s does not tell its image size: it is the smallest that its bias tables allow", source)
        fields: dict[str, Any] = {"image_size": image_size, "window_size": window_size}
        fields |= {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
        if config is not None:
            fields = {field: getattr(config, field) if value is None else value for field, value in fields.items()}
        description, tensors, changes = adapt(
            weights.description,
            weights.tensors,
            {field: value for field, value in fields.items() if value is not None},
            bias_tables=bias_tables,
            channels=channels,
        )
        _log_changes([*weights.selection.lines(), *weights.notes, *changes], str(source))
        if config is not None:
            _check_same(config, description.config, str(source))
        return cls._assemble(description, tensors, str(source), new_decoder=new_decoder, **options)

    def preprocess(self, images: "Tensor | ImageLike | Sequence[ImageLike]") -> Tensor:
        """Images as they come -> the model's input, as in evaluation: float (B, C, H, W), normalised, on its device.

        Args:
            images: a picture of PIL's or the path of its file, or several: the centre of each is cut out and resized to
                the model's image size. Or a tensor (B, C, H, W) or (C, H, W), whose size stays: uint8, or of a model of
                other channels than RGB any numbers in the units of its files, NaN where there is no pixel.

        Raises:
            UserError: a file cannot be read; a tensor is of other channels, or normalised already.
        """
        from swin_mim.models.preprocessing import model_input  # here: the models need no Pillow

        size, device = as_pair(self._config().image_size), next(self.parameters()).device
        return model_input(images, self.preprocessing, size, device)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, about: About | None = None, transformers: bool = False
    ) -> Path:
        """Write the model as a folder that swin_mim, timm and transformers load; it is there whole or not at all.

        What was written is loaded again, and must give the same output to the last bit, before it gets its name.

        Args:
            folder: new, empty, or a model published before, which is replaced.
            about: what the card is to say besides what the model itself knows.
            transformers: add a subfolder `transformers/` for its native Swin classes.

        Returns:
            the folder.

        Raises:
            UserError: the folder holds something else, a weight is not finite, or (with `transformers`) transformers
                cannot build this network.
        """
        target, about = Path(folder).expanduser(), about or About()
        odd = [picture.name for picture in about.pictures if not repository.is_published(picture.name)]
        if odd:
            raise UserError(f"a picture is named {odd[0]}: call it loss.png, reconstructions.png or card_<words>.png")
        description, tensors = self.description(), self._tensors()
        caution = unsupported_reason("timm", description)
        if caution:
            _LOG.warning("%s: %s", target, caution)
        with saved.replacing(target) as staging:
            saved.write(staging, description, tensors, transformers=transformers)
            for picture in about.pictures:
                shutil.copyfile(picture.file, staging / picture.name)
            parameters = sum(tensor.numel() for name, tensor in tensors.items() if not pretrained.is_mim_head(name))
            page = card(description, about, folder=target.resolve().name, parameters=parameters, native=transformers)
            (staging / pretrained.CARD).write_text(page, encoding="utf-8")
            self._verify(staging, description, tensors)
        return target

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        message: str | None = None,
        about: About | None = None,
        transformers: bool = False,
    ) -> str:
        """Publish as one commit of a Hub repository, which is made if there is none -> the commit's address.

        Args:
            repo: "user/name".
            private: of a new repository.
            token, revision: as everywhere in the ecosystem.
            message: of the commit.
            about, transformers: as in `save_pretrained`.

        Raises:
            UserError: the push failed; says why, where the saved model is kept and how to try again.
        """
        if not repository.is_valid_name(repo):
            raise UserError(f"{repo!r} is not the name of a Hub repository: expected user/name")
        scratch = Path(tempfile.mkdtemp(prefix="swin_mim_"))
        folder = scratch / repo.partition("/")[2]
        try:
            self.save_pretrained(folder, about=replace(about or About(), repo=repo), transformers=transformers)
        except BaseException:
            shutil.rmtree(scratch)
            raise
        message = message or f"Upload {self.kind}"
        try:
            address = repository.push(folder, repo, private=private, message=message, token=token, revision=revision)
        except UserError:  # which says where the folder is, to try again
            raise
        except BaseException:
            shutil.rmtree(scratch)
            raise
        shutil.rmtree(scratch)
        return address

    def description(self) -> Description:
        """What config.json says of this model."""
        config = self._config()
        for field, values in (("mean", self.preprocessing.mean), ("std", self.preprocessing.std)):
            if len(values) != config.in_channels:
                raise UserError(
                    f"preprocessing.{field} has {counted(len(values), 'value')} and the model "
                    f"{counted(config.in_channels, 'channel')}: "
                    "set model.preprocessing = Preprocessing(mean, std, channels)"
                )
        return Description(self.kind, config, labels=self.labels, preprocessing=self.preprocessing)

    @classmethod
    def _assemble(
        cls, description: Description, tensors: dict[str, Tensor], where: str, *, new_decoder: bool, **options: Any
    ) -> Self:
        """A model of this class with these weights; what they lack is drawn anew where that was asked for."""
        lacking = [name for name in cls._head if name not in tensors]
        if lacking and not (new_decoder or "num_classes" in options):
            raise UserError(f"{where} has no {', '.join(lacking)}: {cls._way_out}")
        arguments = cls._arguments(description) | options
        if cls.kind == description.kind == "SimMIM" and _decodes_other_units(arguments["target"], description.target):
            _LOG.warning(
                "%s predicts %s, now %s: its decoder has to learn", where, description.target, arguments["target"]
            )
        with torch.device("meta"):
            model = cls(description.config, **arguments)
        names = {key: cls._our_name(key) for key in model.state_dict()}
        drawn = {
            key: value
            for key, value in model.state_dict().items()
            if cls._of_head(names[key]) and _other(tensors, names[key], value)
        }
        lacking = [names[key] for key in drawn if names[key] not in tensors]
        if lacking and not (new_decoder or "num_classes" in options):
            raise UserError(f"{where} has no {_listed(lacking)}: {cls._way_out}")
        if drawn:
            model = cls(description.config, **arguments)
            drawn = {key: model.state_dict()[key] for key in drawn}
            new = _listed([names[key] for key in drawn])
            _LOG.warning("%s: %s new, drawn at random: train before use", where, new)
        unused = sorted(tensors.keys() - names.values())
        if unused and not drawn:  # whoever was told of a new head knows that the old one stays behind
            _LOG.info("%s: a %s has no use for %s", where, cls.kind, _listed(unused))
        model.load_state_dict(
            {key: tensors[name] for key, name in names.items() if key not in drawn} | drawn, assign=True
        )
        model.preprocessing, model.from_simmim = description.preprocessing, description.kind == "SimMIM"
        model.labels = description.labels if cls.kind == description.kind and not drawn else None
        return model.eval()

    @classmethod
    def _arguments(cls, description: Description) -> dict[str, Any]:
        """Arguments of the class, besides the config, that a description decides."""
        return {}

    @classmethod
    def _of_head(cls, name: str) -> bool:
        """Whether a published name is of what it has besides the encoder."""
        return name in cls._head

    @classmethod
    def _our_name(cls, key: str) -> str:
        """Key of the state dict -> name in a published file."""
        return key.removeprefix("encoder.")

    def _config(self) -> SwinConfig:
        config = getattr(self, "encoder", self).config
        assert isinstance(config, SwinConfig)
        return config

    def _tensors(self) -> dict[str, Tensor]:
        state = self.state_dict()
        return {self._our_name(key): value.detach().to("cpu", torch.float32, copy=True) for key, value in state.items()}

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """All that a forward returns."""
        return [self(images)]

    def _verify(self, folder: Path, description: Description, tensors: dict[str, Tensor]) -> None:
        original = self._assemble(description, tensors, "", new_decoder=False)
        loaded = type(self).from_pretrained(folder)
        config = description.config
        most = max(1, VERIFIED // config.patch_size) * config.patch_size  # of a large image a part does as well
        sides = (min(side, most) for side in as_pair(config.image_size))
        images = torch.randn(1, config.in_channels, *sides, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pairs = zip(original._outputs(images), loaded._outputs(images), strict=True)
            same = loaded.description() == description and all(torch.equal(a, b) for a, b in pairs)
        if not same:
            raise UserError(f"what was written to {folder} is not what is in memory: the disk may be failing")


def check_labels(labels: Sequence[str] | None, num_classes: int) -> None:
    """Raise a UserError unless the names of classes, if there are some, are one text for each."""
    if not all(isinstance(label, str) for label in labels or ()):
        raise UserError(f"labels {labels!r:.80} must be texts")
    if labels is not None and len(labels) != num_classes:
        raise UserError(
            f"labels has {counted(len(labels), 'name')} and the head {counted(num_classes, 'class', 'classes')}: "
            "give one name each"
        )


def _log_changes(changes: Sequence[str], where: str) -> None:
    for change in changes:
        lost = change.startswith("left") or "dropped" in change
        _LOG.log(logging.WARNING if lost else logging.INFO, "%s: %s", where, change)


def _check_same(wanted: SwinConfig, found: SwinConfig, where: str) -> None:
    fields = ("version", "patch_size", "in_channels", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias")
    for field in (*fields, "extra_norm_period"):
        theirs, ours = getattr(found, field), getattr(wanted, field)
        if theirs != ours:
            raise UserError(f"{where} has {field} {theirs} and the model wanted {ours}: its weights do not fit")


def _decodes_other_units(one: str, other: str) -> bool:
    """Whether the decoders of two targets predict different things: all predict pixels, or normalised ones."""
    return (one == "normalized") != (other == "normalized")


def _other(tensors: dict[str, Tensor], name: str, value: Tensor) -> bool:
    """Whether a part of the head has to be drawn: the source lacks it, or has another size of it."""
    return name not in tensors or tensors[name].shape != value.shape


def _listed(names: Sequence[str]) -> str:
    """The names; of many the modules that they are in."""
    return ", ".join(names if len(names) <= 5 else dict.fromkeys(name.split(".")[0] for name in names))
