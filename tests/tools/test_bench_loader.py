"""`bench.py loader` on a few images."""

import pytest
from PIL import Image

TINY = ["loader", "--batch", "4", "--image-size", "32", "--device", "cpu", "--threads", "1", "--repeats", "1"]


@pytest.fixture(scope="module")
def images(bench_modules, tmp_path_factory):
    return bench_modules.loader.make_images(tmp_path_factory.mktemp("loader") / "images", 12)


def test_images_are_made_in_two_sizes_and_classes(bench, images):
    files = sorted(images.glob("*/*.jpg"))
    assert len(files) == 12
    assert {file.parent.name for file in files} == {"class0", "class1"}
    for number, file in enumerate(files):  # class after class
        with Image.open(file) as image:
            assert image.size == bench.loader.SIZES[number // 6]


def test_all_systems_deliver_with_and_without_workers(report_of, images):
    report, tables = report_of(*TINY, "--source", str(images), "--images", "12", "--workers", "0,1")
    assert report["not_measured"] == {}
    rows = {(row["system"], row["workers"]): row for row in report["results"]}
    assert set(rows) == {(system, workers) for system in ("ours", "torchvision", "datasets") for workers in (0, 1)}
    for (_, workers), row in rows.items():
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"][0])
        assert (row["memory_per_worker_gb"] is None) == (workers == 0)
    assert "torchvision" in tables
    assert "Pillow" in report["decoder"]
    assert report["decoder"] in tables


def test_batches_of_all_are_alike(bench, images, tmp_path):
    _, settings = bench.parse(TINY)
    for opens in bench.loader.SYSTEMS.values():
        stream = opens(images, tmp_path, 0, settings, bench.settings.check(settings))()
        batch = next(stream)
        assert batch.shape == (4, 3, 32, 32)
        assert str(batch.dtype) == "torch.float32"
        assert -3 < batch.mean() < 3
        assert bench.loader.consume([batch, batch]) == 8
        stream.close()


def test_a_folder_without_classes_is_not_torchvisions(report_of, images, tmp_path):
    for file in images.glob("*/*.jpg"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    report, _ = report_of(
        *(*TINY, "--source", str(tmp_path), "--images", "8", "--workers", "0", "--systems", "ours,torchvision")
    )
    assert [row["system"] for row in report["results"]] == ["ours"]
    assert "class folder" in report["not_measured"]["torchvision, 0 workers"]
