"""DICOM files against pydicom's own reading, and as channels and RGB by the rules of `open_dicom` and `dicom_rgb`."""

import io
import sys
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.dicom_files import dicom_rgb
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import decode_raster
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.raster import ChannelSpec, Raster
from swin_mim.data.decoding.rgb import decode_image
from swin_mim.errors import UserError

OWN = Path(pydicom.__file__).parent / "data" / "test_files"
SAME = (
    "ExplVR_BigEnd.dcm",
    "examples_overlay.dcm",
    "examples_ybr_color.dcm",
    "image_dfl.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "liver_1frame.dcm",
    "MR_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_RLE.dcm",
    "rtdose.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "SC_jpeg_no_color_transform_2.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
)
"""Files that come with pydicom, of which it decodes the first frame and nothing is rescaled."""

RAMP = np.arange(0, 4096, 2, dtype=np.uint16).reshape(32, 64)


def dicom(
    pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, frames: list[bytes] | None = None, **said: object
) -> bytes:
    """A file of pixels (H, W) or (H, W, 3), or of `frames` that are compressed; `said` are elements by their names."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in said.items():
        setattr(dataset, name, value)
    dataset.PixelData = encapsulate(frames) if frames else pixels.tobytes()
    dataset["PixelData"].VR = "OB" if frames else "OW"
    dataset.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    return buffer.getvalue()


def read(data: bytes, count: int = 1, **options: object) -> Raster:
    return decode_raster([(None, data)], ChannelSpec(count, **options))


def grey(data: bytes) -> np.ndarray:
    image = dicom_rgb(data, DecodeOptions())
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


@pytest.mark.parametrize("name", SAME)
def test_first_frames_are_those_of_pydicom(name: str) -> None:
    data = (OWN / name).read_bytes()
    wanted = pydicom.pixels.pixel_array(pydicom.dcmread(OWN / name), index=0)
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    assert kind_of(data[:HEAD]) == "DICOM"
    image = read(data, wanted.shape[2])
    np.testing.assert_array_equal(image.values, wanted)
    assert image.values.dtype == wanted.dtype.newbyteorder("=")
    assert decode_image(data).size == wanted.shape[1::-1]


def test_rescaled_numbers_are_floats_and_padding_is_missing() -> None:
    data = (OWN / "CT_small.dcm").read_bytes()
    stored = pydicom.dcmread(OWN / "CT_small.dcm").pixel_array
    image = read(data)
    np.testing.assert_array_equal(image.values[:, :, 0], stored.astype(np.float32) - 1024)
    assert image.values.dtype == np.float32
    pixels = RAMP.astype(np.int16) - 2000
    pixels[:3] = -2000
    image = read(dicom(pixels, PixelPaddingValue=-2000, RescaleSlope="0.5", RescaleIntercept="-10"))
    np.testing.assert_array_equal(image.values[:, :, 0], pixels * np.float32(0.5) - 10)
    np.testing.assert_array_equal(image.valid, pixels != -2000)
    # a range of it
    image = read(dicom(pixels, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500))
    np.testing.assert_array_equal(image.valid, pixels > -1500)
    assert image.values.dtype == np.int16


def test_what_is_darker_for_larger_numbers_is_turned_round() -> None:
    image = read(dicom(RAMP, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelPaddingValue=0))
    np.testing.assert_array_equal(image.values[:, :, 0], 4095 - RAMP)
    np.testing.assert_array_equal(image.valid, RAMP != 0)
    signed = (RAMP.astype(np.int16) - 2048) & 0xFFF  # 12 bits of a complement
    data = dicom(signed.astype(np.int16), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(data).values[:, :, 0], -1 - (RAMP.astype(np.int16) - 2048))
    assert (grey(dicom(RAMP, PhotometricInterpretation="MONOCHROME1")) == 255 - grey(dicom(RAMP))).all()


def test_bits_that_are_not_used_do_not_count() -> None:
    values = (RAMP << 2) | 0x4001  # an overlay below and above
    image = read(dicom(values.astype(np.uint16), BitsStored=12, HighBit=13))
    np.testing.assert_array_equal(image.values[:, :, 0], RAMP)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_frames_are_what_was_written(syntax: str, signed: bool) -> None:
    pixels = RAMP.astype(np.int16) - 2048 if signed else RAMP
    coded = {
        JPEGLosslessSV1: lambda: imagecodecs.ljpeg_encode(pixels.view(np.uint16), bitspersample=16),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(pixels.view(np.uint16)),
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"),
    }[syntax]()
    data = dicom(pixels, syntax, [bytes(coded)] * 3, NumberOfFrames=3)
    image = read(data)
    np.testing.assert_array_equal(image.values[:, :, 0], pixels)
    assert image.values.dtype == pixels.dtype


def test_a_palette_gives_its_colours() -> None:
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4)
    tables = np.random.default_rng(0).integers(0, 65536, (3, 16)).astype("<u2")
    said = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, table in zip(("Red", "Green", "Blue"), tables, strict=True)
        for part, value in (("Descriptor", [14, 2, 16]), ("Data", table[:14].tobytes()))
    }
    data = dicom(indices, PhotometricInterpretation="PALETTE COLOR", **said)
    wanted = tables.T[np.clip(indices.astype(int) - 2, 0, 13)]
    np.testing.assert_array_equal(read(data, 3).values, wanted)
    np.testing.assert_array_equal(np.asarray(dicom_rgb(data, DecodeOptions())), np.rint(wanted / 257))


def test_depth_goes_through_the_window_of_the_file_or_its_own_range() -> None:
    own = grey(dicom(RAMP))
    assert (own[0, 0], own[-1, -1]) == (0, 255)
    windowed = grey(dicom(RAMP, WindowCenter=[1000, 40], WindowWidth=[500, 80]))
    assert (windowed[RAMP < 750] == 0).all()
    assert (windowed[RAMP > 1250] == 255).all()
    assert abs(int(windowed.ravel()[500]) - 128) <= 1  # the pixel of 1000
    # a window is in the units of the file
    shifted = grey(dicom(RAMP, WindowCenter=0, WindowWidth=500, RescaleIntercept=-1000, RescaleSlope=1))
    np.testing.assert_array_equal(shifted, windowed)
    wanted = pydicom.pixels.apply_voi_lut(
        RAMP, pydicom.dcmread(io.BytesIO(dicom(RAMP, WindowCenter=1000, WindowWidth=500)))
    )
    np.testing.assert_allclose(windowed, wanted * (255 / 65535), atol=1)
    # padding takes no part of the range
    pixels = RAMP.astype(np.int16)
    pixels[:4] = -30000
    padded = grey(dicom(pixels, PixelPaddingValue=-30000))
    assert (padded[4, 0], padded[-1, -1], padded[:4].max()) == (0, 255, 0)
    # 8 bit stay as they are
    np.testing.assert_array_equal(grey(dicom(RAMP.astype(np.uint8))), RAMP.astype(np.uint8))


def test_what_an_enhanced_file_says_of_its_first_frame_counts() -> None:
    scale, window, groups = Dataset(), Dataset(), Dataset()
    scale.RescaleSlope, scale.RescaleIntercept = 2, -100
    window.WindowCenter, window.WindowWidth = 900, 1000
    groups.PixelValueTransformationSequence = Sequence([scale])
    groups.FrameVOILUTSequence = Sequence([window])
    data = dicom(RAMP, PerFrameFunctionalGroupsSequence=Sequence([groups]))
    np.testing.assert_array_equal(read(data).values[:, :, 0], RAMP * np.float32(2) - 100)
    expected = grey(dicom(RAMP, WindowCenter=900, WindowWidth=1000, RescaleSlope=2, RescaleIntercept=-100))
    np.testing.assert_array_equal(grey(data), expected)


def test_files_without_a_preamble_are_known() -> None:
    whole = dicom(RAMP)
    np.testing.assert_array_equal(read(whole[132:]).values[:, :, 0], RAMP)
    assert kind_of(whole[132 : 132 + HEAD]) == "DICOM"
    # whose preamble is that of a TIFF
    both = b"II*\0" + whole[4:]
    np.testing.assert_array_equal(read(both).values[:, :, 0], RAMP)
    assert decode_image(both).size == (64, 32)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, "60000 pixels|60000 x 60000"),
        ({"Rows": 64}, "first frame takes 8192 bytes, and 4096 are there"),
        ({"SamplesPerPixel": 2}, "2 samples of the kind 'MONOCHROME2'"),
        ({"PhotometricInterpretation": "ARGB"}, "of the kind 'ARGB', which is not read"),
        ({"BitsAllocated": 12}, "take 12 bits"),
        ({"BitsStored": 0}, "have 0 bits"),
        ({"Rows": None}, "no Rows"),
    ],
)
def test_what_is_not_read_is_refused_with_its_reason(said: dict[str, object], reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason):
        read(dicom(RAMP, **said))


def test_compressed_frames_are_what_the_header_says() -> None:
    larger = imagecodecs.jpeg2k_encode(np.zeros((400, 400), np.uint16), level=0, codecformat="j2k")
    with pytest.raises(BrokenImage, match=r"compressed frame is \(400, 400, 1\), and its header says \(32, 64, 1\)"):
        read(dicom(RAMP, JPEG2000Lossless, [bytes(larger)]))
    with pytest.raises(BrokenImage, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.100, which is not read"):
        read(dicom(RAMP, "1.2.840.10008.1.2.4.100", [bytes(99)]))
    coded = bytes(imagecodecs.jpegls_encode(RAMP))
    with pytest.raises(BrokenImage, match="JPEG-LS is cut off"):
        read(dicom(RAMP, JPEGLSLossless, [coded[: len(coded) // 2]]))


def test_deflated_elements_unpack_to_no_more_than_the_limit() -> None:
    start = dicom(RAMP, DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read(start).values[:, :, 0], RAMP)
    meta = start[: start.index(DeflatedExplicitVRLittleEndian.encode()) + 22]
    packer = zlib.compressobj(9, wbits=-15)
    bomb = meta + packer.compress(bytes(40 * 2**20)) + packer.flush()
    with pytest.raises(BrokenImage, match="unpack to more than 25165824 bytes"):
        read(bomb, max_pixels=2**20)


def test_the_limit_of_pixels_is_the_one_that_was_chosen() -> None:
    for pixels in (RAMP, RAMP.astype(np.uint8)):
        with pytest.raises(BrokenImage, match=r"more than 1000: raise data\.max_pixels"):
            read(dicom(pixels), max_pixels=1000)
        with pytest.raises(BrokenImage, match=r"more than 1000: raise data\.max_pixels"):
            dicom_rgb(dicom(pixels), DecodeOptions(max_pixels=1000))


def test_one_frame_of_many_takes_the_memory_of_one() -> None:
    frames = np.zeros((500, 128, 128), np.uint16)
    frames[0] = np.arange(128)
    dataset = pydicom.dcmread(io.BytesIO(dicom(frames[0], NumberOfFrames=500)))
    dataset.PixelData = frames.tobytes()
    dataset.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    data = buffer.getvalue()
    assert len(data) > 15 * 2**20
    tracemalloc.start()
    try:
        image = read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(image.values[:, :, 0], frames[0])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for decode in (read, decode_image):
        with pytest.raises(
            UserError, match=r"read by pydicom, which is not installed: pip install 'swin-mim\[dicom\]'"
        ):
            decode(data)
