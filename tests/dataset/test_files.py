"""Reading files: formats, orientation, bit depths, and every fault by name."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piecewise_training.dataset import files
from piecewise_training.dataset.files import DataError, check_label, labels_from_colours, read_image, read_label


def write_png(path: Path, width: int, depth: int, colour: int, rows: list[bytes]) -> None:
    """A PNG with a bit depth that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "tif"])
def test_image_formats(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 6), (250, 10, 20)).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (8, 6))
    np.testing.assert_allclose(np.asarray(image)[3, 4], (250, 10, 20), atol=12)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_image_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}")
    image = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert image.shape == (6, 8, 3)
    assert image.min() >= 250


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str, mode: str) -> None:
    if (suffix, mode) in (("jpg", "P"), ("jpg", "RGBA"), ("png", "CMYK")):
        pytest.skip("no such files")
    image = Image.new("RGB", (8, 6))
    image.paste((255, 255, 255), (0, 0, 4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.convert(mode).save(tmp_path / f"a.{suffix}", exif=exif)
    upright = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert upright.shape == (8, 6, 3)
    assert upright[0].mean() > 200
    assert upright[-1].mean() < 50


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_of_labels(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.array([[0, 1, 2], [3, 4, 5]], np.uint8)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert read_label(tmp_path / f"a.{suffix}").tolist() == [[5, 4, 3], [2, 1, 0]]


def exif_data(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of tag, type, count and the four bytes of each entry."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0\0\0\0"


SIDEWAYS = (0x0112, 3, 1, b"\6\0\0\0")


ODD = [  # which Pillow reads, and cannot write again: four errors of four kinds
    (0x0100, 1, 1, b"\x08\0\0\0"),
    (0x010E, 5, 1, b"\x08\0\0\0"),
    (0x011A, 1, 1, b"\x08\0\0\0"),
    (0x011A, 11, 1, b"\xff\xff\xff\xff"),
]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_exif_data_do_not_keep_an_image_from_its_turn(
    tmp_path: Path, suffix: str, odd: tuple[int, int, int, bytes]
) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / f"a.{suffix}", exif=exif_data(*sorted([odd, SIDEWAYS])))
    assert read_image(tmp_path / f"a.{suffix}").size == (6, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_no_damage_gets_past_unnamed(tmp_path: Path, suffix: str) -> None:
    """A file cut or scribbled in anywhere is read, or refused by name; nothing else happens."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
    path = tmp_path / f"b.{suffix}"
    refusals = []
    for turn in range(240):
        entries = [SIDEWAYS, ODD[turn % 4]] if turn % 2 and suffix != "tif" else [SIDEWAYS]
        image.save(path, **({} if suffix == "bmp" else {"exif": exif_data(*sorted(entries))}))
        data = path.read_bytes()
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.5 else data)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd EXIF data
            try:
                read_image(path)
            except DataError as error:
                refusals.append(str(error))
    assert len(refusals) > 20
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_images_larger_than_pillow_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Image.new("L", (40, 30), 2).save(tmp_path / name)
    for pillows in (100, 700):  # which it refuses, and reads with a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        assert read_label(tmp_path / name).shape == (30, 40)
        assert read_image(tmp_path / name).size == (40, 30)
    monkeypatch.setattr(files, "MOST_PIXELS", 1000)
    with pytest.raises(DataError, match=rf"label .*{name} is broken, or larger than 0 megapixels. Replace it, or cut"):
        read_label(tmp_path / name)
    monkeypatch.setattr(files, "MOST_PIXELS", 1300)  # which Pillow reads with a warning
    read_label(tmp_path / name)
    assert Image.MAX_IMAGE_PIXELS == 700


def test_threads_leave_pillows_limit_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that overlap the second would find the first one's limit, and leave that for good."""
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    limit, opened, both = Image.MAX_IMAGE_PIXELS, Image.open, threading.Barrier(2)

    def slow(*args: Any) -> Image.Image:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        time.sleep(0.05 * (threading.current_thread().name == "second"))
        return opened(*args)

    monkeypatch.setattr(Image, "open", slow)
    threads = [threading.Thread(target=read_label, args=[tmp_path / "a.png"], name=n) for n in ("first", "second")]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "Permission denied. Give yourself the right to read it."),
        (errno.EMFILE, r"Too many open files. Raise the limit \(`ulimit -n`\) or lower the number of workers."),
        (errno.EIO, "Input/output error. Look after the disk or the network that it lies on, and try again."),
    ],
)
def test_a_file_that_cannot_be_read_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")

    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError, match=f"image .*a.png could not be read: {said}"):
        read_image(tmp_path / "a.png")


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"image .*a.png is a link to .*gone.png, which does not exist. Mend or remove"):
        read_image(tmp_path / "a.png")


def test_labels_from_palette_and_grey(tmp_path: Path) -> None:
    label = np.array([[0, 1], [2, 255]], np.uint8)
    grey, palette = Image.fromarray(label), Image.fromarray(label)
    palette.putpalette(bytes(range(256)) * 3)
    grey.save(tmp_path / "grey.png")
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        np.testing.assert_array_equal(read_label(tmp_path / f"{name}.png"), label)


def test_labels_of_few_bits(tmp_path: Path) -> None:
    """Pillow stretches grey values of 2 and 4 bits to 0..255; class indices must come out as they are."""
    write_png(tmp_path / "four.png", 4, 4, 0, [bytes([0x12, 0x3F])])
    write_png(tmp_path / "two.png", 4, 2, 0, [bytes([0b00011011])])
    Image.fromarray(np.array([[0, 3]], np.uint8)).convert("P").save(tmp_path / "palette.png", bits=2)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "one.png")
    assert read_label(tmp_path / "four.png").tolist() == [[1, 2, 3, 15]]
    assert read_label(tmp_path / "two.png").tolist() == [[0, 1, 2, 3]]
    assert read_label(tmp_path / "one.png").tolist() == [[1, 0]]


def test_colour_label_says_how_to_convert(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png is a colour image \(RGB\).*labels_from_colours"):
        read_label(tmp_path / "a.png")


def test_deep_files(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "grey.png")
    write_png(tmp_path / "rgb.png", 2, 16, 2, [bytes(12)])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("grey.png", "rgb.png", "float.tif"):
        with pytest.raises(DataError, match=f"image .*{name} has more than 8 bits a channel"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"label .*grey.png has more than 8 bits a pixel .*Convert it to"):
        read_label(tmp_path / "grey.png")


def test_labels_of_the_wrong_kind(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.jpg")
    Image.new("LA", (4, 4)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "a.tif")
    for name, message in (
        ("a.jpg", "a.jpg is a JPEG, which blurs class indices"),
        ("a.png", r"a.png has an alpha channel \(LA\)"),
        ("a.tif", r"a.tif has more than 8 bits a pixel \(I\)"),
    ):
        with pytest.raises(DataError, match=message):
            read_label(tmp_path / name)


def test_broken_files(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"image .*cut.jpg is broken or cut short"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match=r"label .*text.png is no image that Pillow can read"):
        read_label(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"image .*gone.png does not exist"):
        read_image(tmp_path / "gone.png")


def test_check_label() -> None:
    label = np.array([[0, 1], [7, 255]], np.uint8)
    check_label(Path("a.png"), label, (2, 2), None)
    check_label(Path("a.png"), label, (2, 2), 8)
    with pytest.raises(DataError, match=r"label a.png holds the value 7, but classes go from 0 to 6, and 255 is void"):
        check_label(Path("a.png"), label, (2, 2), 7)
    with pytest.raises(DataError, match=r"label a.png is 2 x 2 pixels, its image 4 x 3. Both must have the same size"):
        check_label(Path("a.png"), label, (3, 4), None)
    with pytest.raises(DataError, match=r"3 x 4 pixels, its image 4 x 3. If the image's EXIF data turn it on its side"):
        check_label(Path("a.png"), np.zeros((4, 3), np.uint8), (3, 4), None)


def test_labels_from_colours_errors() -> None:
    with pytest.raises(ValueError, match=r"`image` must be \(H, W, 3\) uint8; got \(2, 2\) uint8"):
        labels_from_colours(np.zeros((2, 2), np.uint8), [(0, 0, 0)])
    with pytest.raises(ValueError, match="`colours` must list at most 255 classes; got 256"):
        labels_from_colours(np.zeros((2, 2, 3), np.uint8), [(0, 0, 0)] * 256)


def test_labels_from_colours_of_any_integers() -> None:
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128)]
    image = np.array([[*colours, (9, 9, 9)]], np.uint8)
    for given in (colours, np.array(colours, np.uint8), np.array(colours), [np.uint8(colour) for colour in colours]):
        np.testing.assert_array_equal(labels_from_colours(image, given), [[0, 1, 2, 3, 255]])


@pytest.mark.parametrize("wrong", [[(0, 0, 256)], [(0, -1, 0)], [(0, 0)], [(0.5, 0, 0)], [], [7], [(0, 0, 0), (1, 1)]])
def test_labels_from_colours_that_are_none(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="`colours` must be rows of red, green and blue, integers from 0 to 255; got"):
        labels_from_colours(np.zeros((2, 2, 3), np.uint8), wrong)  # type: ignore[arg-type]


def test_labels_from_colours_that_stand_there_twice() -> None:
    with pytest.raises(ValueError, match="`colours` lists a colour twice, which could be either class"):
        labels_from_colours(np.zeros((2, 2, 3), np.uint8), [(1, 2, 3), (0, 0, 0), (1, 2, 3)])


def write_grey_tiff(path: Path, bits: int, white_is_zero: bool, fill_order: int, row: bytes) -> None:
    """A TIFF of a single row of four pixels, as Pillow does not write it."""
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (266, fill_order)]
    tags += [(273, 8 + 2 + 9 * 12 + 4), (278, 1), (279, len(row))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + row)


def test_labels_that_are_stored_in_reverse(tmp_path: Path) -> None:
    write_grey_tiff(tmp_path / "right.tif", 4, white_is_zero=False, fill_order=1, row=b"\x01\x23")
    np.testing.assert_array_equal(read_label(tmp_path / "right.tif"), [[0, 1, 2, 3]])
    write_grey_tiff(tmp_path / "few.tif", 4, white_is_zero=True, fill_order=1, row=b"\x01\x23")
    write_grey_tiff(tmp_path / "byte.tif", 8, white_is_zero=True, fill_order=1, row=b"\0\x01\x02\x03")
    write_grey_tiff(tmp_path / "bit.tif", 1, white_is_zero=True, fill_order=1, row=b"\x50")
    for name in ("few", "byte", "bit"):
        with pytest.raises(DataError, match=rf"label .*{name}.tif stores its values reversed \([L1];.*\)"):
            read_label(tmp_path / f"{name}.tif")


@pytest.mark.parametrize(("bits", "row"), [(2, b"\xd8"), (4, b"\x80\xc4"), (8, b"\0\x80\x40\xc0")])
def test_labels_whose_bits_run_the_other_way(tmp_path: Path, bits: int, row: bytes) -> None:
    write_grey_tiff(tmp_path / "a.tif", bits, white_is_zero=False, fill_order=2, row=row)
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), [[0, 1, 2, 3]])


@pytest.mark.parametrize(("bits", "row"), [(1, b"\x50"), (1, b"\xa0")])
def test_labels_of_one_bit_in_a_tiff(tmp_path: Path, bits: int, row: bytes) -> None:
    write_grey_tiff(tmp_path / "a.tif", bits, white_is_zero=False, fill_order=1, row=row)
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif")[0], [row[0] >> place & 1 for place in (7, 6, 5, 4)])


def test_a_jpeg_by_another_name(tmp_path: Path) -> None:
    """What a file is decides, not what it is called: the indices of both are altered."""
    label = Image.fromarray(np.random.default_rng(0).integers(0, 5, (40, 40), np.uint8))
    label.save(tmp_path / "a.png", format="JPEG")
    label.save(tmp_path / "a.tif", compression="jpeg")
    label.save(tmp_path / "a.jpg", format="PNG")
    with pytest.raises(DataError, match=r"label .*a.png is a JPEG, which blurs class indices. Make it again as PNG"):
        read_label(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"label .*a.tif is compressed as JPEG, which blurs class indices. Make it"):
        read_label(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_label(tmp_path / "a.jpg"), np.asarray(label))


def test_a_webp_holds_no_indices(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 1).save(tmp_path / "a.webp", lossless=True)
    with pytest.raises(DataError, match=r"label .*a.webp is a WebP, which holds colours only"):
        read_label(tmp_path / "a.webp")
