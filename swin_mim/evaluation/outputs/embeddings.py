"""Features of every image of a source: pooled, of one stage or all, or whole maps."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.data.sources.packed import packed_rasters
from swin_mim.errors import UserError
from swin_mim.evaluation.outputs.collect import Outputs, Rows, collect, reader_of
from swin_mim.evaluation.outputs.images import image_name, is_streamed, labels_of, open_images
from swin_mim.evaluation.outputs.job import PART_BYTES, Job, part_size, parts_beside
from swin_mim.evaluation.outputs.parts import Manifest, digest, none_read
from swin_mim.files import replacing, sha256
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin
from swin_mim.training.channels import channels_to_read
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.distributed.processes import DTYPES, resolve_precision

MapFormat = Literal["safetensors", "npy"]


def stage_text(stage: str | int, count: int) -> str:
    """Check a choice of stages: "last", "all", or a number from 1 to `count`, as a text.

    Raises:
        UserError: it is none of these.
    """
    text = str(stage)
    if text not in ("last", "all", *map(str, range(1, count + 1))):
        raise UserError(
            f"stage {text!r} must be last, all, or a number from 1 to {count}: so many stages the model has"
        )
    return text


def feature_outputs(model: Pretrained, stage: str, *, maps: bool = False) -> Outputs:
    """Say what is wanted of a model's encoder: the mean over a stage's grid, or with `maps` the grid (D, h, w) itself.

    Args:
        stage: "last", after the final norm, as a classifier's head gets it; from "1" on a stage's output as
            `Swin.pyramid` gives it; "all" of these.
    """
    encoder = getattr(model, "encoder", model)
    assert isinstance(encoder, Swin)
    config, chosen = encoder.config, stage_text(stage, encoder.config.num_stages)
    numbers = range(config.num_stages) if chosen == "all" else [int(chosen) - 1 if chosen != "last" else -1]
    places = [number % config.num_stages for number in numbers]

    def of(images: Tensor) -> list[Tensor]:
        if chosen == "last":
            grid = encoder(images)  # (B, h, w, D)
            return [grid.permute(0, 3, 1, 2) if maps else grid.mean(dim=(1, 2))]
        levels = encoder.pyramid(images)
        return [levels[place] if maps else levels[place].float().mean(dim=(2, 3)) for place in places]

    names = ["embedding"] if len(places) == 1 else [f"embedding_{place + 1}" for place in places]
    dims = [(config.stage_dim(place), *(config.stage_grid(place) if maps else ())) for place in places]
    return Outputs(encoder, of, dict(zip(names, dims, strict=True)), model.preprocessing, as_pair(config.image_size))


def pooled_table(number: int, known: dict[str, Any], values: dict[str, np.ndarray]) -> Any:
    """A part of pooled features as a `pyarrow.Table`: image, label, each feature as a list of float32, error."""
    import pyarrow as pa

    missing = known["error"].is_valid()
    columns = dict(known)
    error = columns.pop("error")
    for name, rows in values.items():
        if missing.true_count:
            rows = np.where(missing.to_numpy(zero_copy_only=False)[:, None], np.float32(0), rows)
        flat = pa.array(rows.reshape(-1), pa.float32())
        mask = missing if missing.true_count else None
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1], mask=mask)
    return pa.table(columns | {"error": error})


@dataclass(frozen=True)
class MapFiles:
    """Writes maps as files of bounded size.

    Args:
        folder: that gets 000000.safetensors, with a tensor float32 (n, D, h, w) for each name, or NAME_000000.npy.
        kind: of the files.
    """

    folder: Path
    kind: MapFormat

    def table(self, number: int, known: dict[str, Any], values: dict[str, np.ndarray]) -> Any:
        """Write a part's maps -> its rows as a `pyarrow.Table`: image, label, file, row in it, error."""
        import pyarrow as pa

        columns = dict(known)
        error = columns.pop("error")
        if self.kind == "npy":
            for name, rows in values.items():
                path = self.folder / self._npy(name, number)
                with replacing(path, durable=True) as temporary, temporary.open("wb") as file:
                    np.save(file, rows)
                    file.flush()
            columns["file"] = pa.array([self._npy("*", number)] * len(error), pa.string())
        else:
            from safetensors.numpy import save_file

            file_name = f"{number:06d}.safetensors"
            with replacing(self.folder / file_name, durable=True) as temporary:
                save_file(values, temporary)
            columns["file"] = pa.array([file_name] * len(error), pa.string())
        columns["row"] = pa.array(np.arange(len(error)), pa.int64())
        return pa.table(columns | {"error": error})

    def _npy(self, name: str, number: int) -> str:
        return f"{name}_{number:06d}.npy"


@dataclass(frozen=True)
class Embeddings:
    """Pooled features of the images of a source, in its order."""

    names: list[str]
    """Paths relative to the source, or places in it."""
    labels: list[str | None] | None
    """Names of the classes, where the source says them."""
    features: np.ndarray = field(repr=False)
    """float32 (N, D); NaN in the row of an image that cannot be read. Of all stages one after the other."""
    widths: tuple[int, ...]
    """D of each stage that is in them."""
    broken: dict[str, str]
    """Why images cannot be read, by name."""

    def __len__(self) -> int:
        return len(self.names)


def embed(
    model: Pretrained | str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    stage: str | int = "last",
    batch: int = 64,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    label_column: str | None = None,
    device: str | torch.device | None = None,
    **images: Any,
) -> Embeddings:
    """Compute pooled features of every image: `swin-mim embed` in memory, in this process.

    Args:
        model: a Swin, SimMIM or SwinClassifier, or whatever their `from_pretrained` loads.
        source: a folder of images, one image, a table, a packed or streamed data set, blue_marble.
        stage: "last": the mean over the last grid after the final norm, as a classifier's head gets it. From 1 on: that
            of a stage as `Swin.pyramid` gives it. "all": of all these, side by side.
        batch: images of one forward.
        precision: "auto" is bf16 on a GPU that has it, else fp32.
        label_column: of a table; None: the one that is evident.
        device: of a model that is loaded here; None: a GPU if there is one.
        images: settings of the source under the names of a pretraining's: split="test", column="photo",
            channels=("B4", "B3"), nodata=0, workers=8, streaming=True.

    Raises:
        UserError: a `ValueError` with the one line that the command would print; not one image can be read; a device
            for a model that has one.
    """
    _check_call(batch, precision, images.get("workers"))
    loaded, name = _loaded(model, device)
    outputs = feature_outputs(loaded, str(stage))
    data = data_config(os.fspath(source), loaded, name, images)
    opened = open_images(data)
    labels = labels_of(data, opened, label_column)
    widths = tuple(shape[0] for shape in outputs.shapes.values())
    features, errors = np.empty((len(opened), sum(widths)), np.float32), []

    def take(rows: Rows) -> None:
        np.concatenate(rows.values, axis=1, out=features[rows.start : rows.start + len(rows.errors)])
        errors.extend(rows.errors)

    reader = reader_of(outputs, data, opened, batch)
    collect(opened, reader, outputs, range(0, len(opened), batch), DTYPES[resolve_precision(precision)], take)
    names = [image_name(opened, index) for index in range(len(opened))]
    reasons = [reason for reason in errors if reason is not None]
    if len(reasons) == len(errors):
        raise none_read(len(names), os.fspath(source), (names[0], reasons[0]))
    broken = {name: reason for name, reason in zip(names, errors, strict=True) if reason is not None}
    return Embeddings(names, None if labels is None else list(labels), features, widths, broken)


def _check_call(batch: int, precision: str, workers: object) -> None:
    if batch < 1:
        raise UserError(f"batch {batch} must be at least 1")
    if precision not in ("auto", *DTYPES):
        raise UserError(f"precision {precision!r} must be one of auto, {', '.join(DTYPES)}")
    if isinstance(workers, int) and workers < 0:
        raise UserError(f"workers {workers} must be at least 0")


def _loaded(model: Pretrained | str | os.PathLike[str], device: str | torch.device | None) -> tuple[Pretrained, str]:
    """The model on its device, and its name for messages."""
    if isinstance(model, Pretrained):
        if device is not None:
            raise UserError(f"device {str(device)!r} is of a model that is loaded here: move this one with .to(...)")
        return model, type(model).__name__
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Swin.from_pretrained(model, pickles=True).to(place), os.fspath(model)


def data_config(source: str, model: Pretrained, name: str, given: dict[str, Any]) -> DataConfig:
    """Settings of a source beside a model, whose channels are read where none are named, with the gaps it knows.

    Args:
        name: of the model, for messages.
        given: of `DataConfig`, by their names; None stands for what is usual.

    Raises:
        UserError: a setting that there is not, or channels that the model does not take.
    """
    known = {key: value for key, value in given.items() if value is not None}
    if unknown := [key for key in known if key not in DataConfig.__dataclass_fields__]:
        raise UserError(f"there is no setting data.{unknown[0]}: docs/configuration.md lists them")
    chosen = {key: known.pop(key, None) for key in ("channels", "nodata", "mask_channel", "stack")}
    theirs = model.preprocessing
    if chosen["nodata"] is chosen["mask_channel"] is None and not packed_rasters(Path(os.path.expanduser(source))):
        chosen |= {"nodata": theirs.nodata, "mask_channel": theirs.mask_channel}
    known.setdefault("streaming", is_streamed(source))
    return DataConfig(source=source, **known, **channels_to_read(theirs, name, **chosen))


def embedding_job(
    model: Pretrained,
    places: tuple[str, str, Path],
    given: dict[str, Any],
    *,
    label_column: str | None,
    batch: int,
    precision: str,
    **settings: Any,
) -> Job:
    """Prepare what `swin-mim embed` does.

    Args:
        model: on the CPU, or on its device.
        places: MODEL and SOURCE as they were given, and where the result goes.
        given: settings of the source.
        precision: "fp32", or what autocast multiplies in.
        settings: stage; maps, the format of map files or None; map_mib, the max size of one; hashes of pooled images.

    Raises:
        UserError: the source cannot be opened, or has other channels than the model takes.
    """
    name, spec, out = places
    stage, maps = settings["stage"], settings["maps"]
    outputs = feature_outputs(model, stage, maps=maps is not None)
    data = data_config(spec, model, name, given)
    source = open_images(data)
    labels = labels_of(data, source, label_column)
    about: Manifest = {"model": digest(outputs.model), "preprocessing": repr(model.preprocessing), "stage": str(stage)}
    about |= {"labels": None if labels is None else sha256([repr(list(labels)).encode()])}
    image_bytes = 4 * sum(math.prod(shape) for shape in outputs.shapes.values())
    common: dict[str, Any] = {"images": data, "source": source, "outputs": outputs, "labels": labels}
    common |= {"batch": batch, "precision": precision}
    if maps is None:
        part = part_size(batch, image_bytes, most=PART_BYTES)
        common |= {"hashes": settings.get("hashes", False)}
        return Job(out, parts_beside(out), part=part, about=about, table_of=pooled_table, **common)
    part = part_size(batch, image_bytes, most=settings["map_mib"] * 2**20, batches=2**30)
    about |= {"maps": maps}
    return Job(out / "images.parquet", out, part=part, about=about, table_of=MapFiles(out, maps).table, **common)
