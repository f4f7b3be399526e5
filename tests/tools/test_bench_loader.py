"""`python -m tools.bench loader` on a few images."""

import numpy as np
import pytest
from PIL import Image

TINY = ["loader", "--batch", "4", "--image-size", "32", "--device", "cpu", "--threads", "1", "--repeats", "1"]


@pytest.fixture(scope="module")
def images(bench_modules, tmp_path_factory):
    return bench_modules.images.make_images(tmp_path_factory.mktemp("loader") / "images", 12)


def test_images_are_made_in_two_sizes_and_classes(bench, images):
    files = sorted(images.glob("*/*.jpg"))
    assert len(files) == 12
    assert {file.parent.name for file in files} == {"class0", "class1"}
    for number, file in enumerate(files):  # class after class
        with Image.open(file) as image:
            assert image.size == bench.images.SIZES[number // 6]


def test_without_the_demo_data_set_images_are_cut_from_a_computed_picture(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.images, "is_composite_there", lambda: False)
    monkeypatch.setattr(bench.images, "HEIGHT", 300)
    monkeypatch.setattr(bench.images, "WIDTH", 400)
    bench.images.picture.cache_clear()
    try:
        bench.images.make_images(tmp_path, 2, [(100, 80)])
        picture = np.asarray(bench.images.picture(), dtype=float)
    finally:
        bench.images.picture.cache_clear()
    assert len(list(tmp_path.glob("*/*.jpg"))) == 2
    assert "computed" in bench.images.picture_text()
    assert picture.shape == (300, 400, 3)
    assert 30 < picture.std() < 70
    near, far = (np.abs(picture[:, step:] - picture[:, :-step]).mean() for step in (1, 50))
    assert far > 2 * near  # neighbours are alike, as in a photograph


def test_all_systems_deliver_with_and_without_workers(report_of, images):
    report, tables = report_of(*TINY, "--source", str(images), "--images", "12", "--workers", "0,1")
    assert report["not_measured"] == {}
    rows = {(row["system"], row["workers"]): row for row in report["results"]}
    systems = ("torchvision", "datasets", "ours", "ours-jpeg", "ours-raw")
    assert set(rows) == {(system, workers) for system in systems for workers in (0, 1)}
    for (_, workers), row in rows.items():
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"][0])
        first, one = rows["torchvision", workers], rows[row["system"], 1]
        assert row["of_first"] == pytest.approx(row["images_per_second"] / first["images_per_second"])
        assert row["of_one_worker"] == pytest.approx(row["images_per_second"] / one["images_per_second"])
        assert (row["memory_per_worker_gb"] is None) == (workers == 0)
        assert workers == 0 or 0 < row["memory_of_files_gb"] < row["memory_per_worker_gb"]
    assert "of torchvision" in tables
    assert "Pillow" in report["decoder"]
    assert report["decoder"] in tables
    assert 0 < report["prepared"]["jpeg"]["bytes"] < report["prepared"]["raw"]["bytes"]
    assert "outside of the clock" in tables
    assert_pixels_are_near(report["pixels"])


def assert_pixels_are_near(pixels):
    assert set(pixels) == {"ours", "ours-jpeg", "ours-raw"}
    for entry in pixels.values():
        assert entry["images"] == 12
        assert 0 < entry["mean"] < 3  # levels of 255; another crop, or a flip, is far off
        assert entry["mean"] < entry["max"] < 128


def test_images_have_the_sizes_that_are_asked_for(bench, tmp_path):
    _, settings = bench.parse(["loader", "--sizes", "40x30,20x50"])
    source = bench.loader.open_source(str(bench.images.make_images(tmp_path, 3, settings.sizes)))
    assert {source.name(index): source.image(index).size for index in range(3)} == {
        "class0/00000.jpg": (40, 30),
        "class0/00002.jpg": (40, 30),
        "class1/00001.jpg": (20, 50),
    }


def test_a_part_of_a_large_folder_is_packed(bench, images, tmp_path):
    assert bench.images.some_of(images, 12, tmp_path / "links") == images
    part = bench.loader.open_source(str(bench.images.some_of(images, 3, tmp_path / "links")))
    assert part.paths == ["class0/00000.jpg", "class0/00010.jpg", "class1/00011.jpg"]
    assert part.content(2) == (images / "class1" / "00011.jpg").read_bytes()


def test_a_full_disk_is_said_before_the_work(bench, tmp_path):
    with pytest.raises(ValueError, match=r"MB free, and images and their packed copies take up to .*--images"):
        bench.images.check_disk(tmp_path, 10**12, 192, made=True)


def test_batches_of_all_are_alike(bench, images, tmp_path):
    _, settings = bench.parse(TINY)
    bench.images.prepare(images, tmp_path / "prepared", settings.image_size)
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
