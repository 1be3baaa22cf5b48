import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from wsl_zoo.data.manifest import (
    SHOWN_PROBLEMS,
    DataError,
    Record,
    class_names_of,
    parse_boxes,
    parse_label,
    read_image,
    read_manifest,
    read_mask,
    read_rows,
    read_size,
    suggestion,
    validate,
)

TWO = ["cat", "dog"]


def picture(path, width=12, height=8, mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value if mode != "RGB" else (value, 0, 0)).save(path)
    return path


def manifest(folder, text):
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    assert all(problem in str(caught.value) for problem in caught.value.problems[:SHOWN_PROBLEMS])
    return caught.value.problems


def pair(folder):
    """A valid data set of two classes in two splits."""
    return {
        "train": [
            Record(picture(folder / "a.png"), 0, place="line 2"),
            Record(picture(folder / "b.png"), 1, place="line 3"),
        ],
        "val": [Record(picture(folder / "c.png"), 1, place="line 4")],
    }


# Reading


def test_a_manifest_with_every_column(tmp_path):
    path = manifest(
        tmp_path,
        "split,image,label,mask,boxes,group\n"
        "train, x/a.png ,dog,m/a.png; m/b.png,0 1 2.5 3;4 5 6 7,patient 1\n"
        "train,x/b.png,cat,,,\n"
        "valpx,x/c.png,dog\n",
    )
    splits, names = read_manifest(path)
    assert names == ["cat", "dog"]
    assert list(splits) == ["train", "valpx"]
    assert splits["train"][0] == Record(
        tmp_path / "x/a.png",
        1,
        masks=(tmp_path / "m/a.png", tmp_path / "m/b.png"),
        boxes=((0, 1, 2.5, 3), (4, 5, 6, 7)),
        group="patient 1",
        place="labels.csv, line 2",
    )
    assert splits["train"][1] == Record(tmp_path / "x/b.png", 0, place="labels.csv, line 3")
    assert not splits["train"][1].has_mask
    assert splits["valpx"] == [Record(tmp_path / "x/c.png", 1, place="labels.csv, line 4")]


def test_root_and_classes_may_be_given(tmp_path):
    path = manifest(tmp_path, "split,image,label\ntrain,a.png,dog\ntrain,b.png,0\n")
    splits, names = read_manifest(path, tmp_path / "elsewhere", ["dog", "cat", "cow"])
    assert names == ["dog", "cat", "cow"]
    assert [(r.image, r.label) for r in splits["train"]] == [
        (tmp_path / "elsewhere/a.png", 0),
        (tmp_path / "elsewhere/b.png", 0),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_numbers_are_those_of_an_editor(tmp_path, newline, mark):
    lines = [
        "split,image,label,group",  # 1
        "train,a.png,cat,",
        "",
        '"train","b.png","dog","two',  # 4, goes on in 5
        'lines"',
        "",
        "",
        "train,c.png,cow,",  # 8
        '"val","d.png",,"three',  # 9, goes on in 10 and 11
        "more",
        'lines"',
        "val,e.png,dogg,",  # 12
    ]
    path = manifest(tmp_path, mark + newline.join(lines).encode())
    assert [line for line, _ in read_rows(path)] == [2, 4, 8, 9, 12]
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert problems_of(read_manifest, path, class_names=TWO) == [
        "labels.csv, line 8: unknown class 'cow'",
        "labels.csv, line 9: empty label",
        "labels.csv, line 12: unknown class 'dogg' (did you mean 'dog'?)",
    ]


def test_all_bad_cells_come_at_once(tmp_path):
    path = manifest(
        tmp_path,
        "split,image,label,boxes\n"
        "train,a.png,2,\n"
        ",,1,\n"
        "train,b.png,0,1 2 3\n"
        "train,c.png,0,1 2 3 x\n"
        "train,d.png,-1,\n"
        "train,e.png,1,1,2,3,4\n"
        "train,f.png,1,5 5 2 9\n"
        "train,g.png,1,0 0 nan 9\n"
        "train,h.png,1,0 0 2 9,,\n",
    )
    assert problems_of(read_manifest, path, class_names=TWO) == [
        "labels.csv, line 2: label 2 is out of range: with 2 classes it must be in [0, 1]",
        "labels.csv, line 3: empty split, image",
        "labels.csv, line 4: a box needs four numbers 'x0 y0 x1 y1', got '1 2 3'",
        "labels.csv, line 5: could not convert string to float: 'x'",
        "labels.csv, line 6: label -1 is out of range: with 2 classes it must be in [0, 1]",
        "labels.csv, line 7: more cells than the header has columns: '2,3,4'",
        "labels.csv, line 8: a box needs finite x0 <= x1 and y0 <= y1, got '5 5 2 9'",
        "labels.csv, line 9: a box needs finite x0 <= x1 and y0 <= y1, got '0 0 nan 9'",
        # What is wrong with the files of the good rows stands in the same message.
        f"labels.csv, line 10: image {tmp_path / 'h.png'} does not exist",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["column 'split' is missing", "column 'image' is missing"]),
        ("split,image,lable\n", ["column 'label' is missing", "(did you mean 'label'?)"]),
        ("split;image;label\n", ["unknown column 'split;image;label'"]),
        ("split,image,label,image\n", ["column 'image' stands there 2 times"]),
        ("split,image,label\ntrain,'a,0\ntrain,\"b,0\ntrain,c,0\n", ["unexpected end of data"]),
        ("split,image,label\ntrain,\xe9.png,0\n".encode("latin-1"), ["not in UTF-8"]),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, text, expected):
    found = "\n".join(problems_of(read_manifest, manifest(tmp_path, text)))
    for part in expected:
        assert part in found


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing.csv.*\n.*does not exist"):
        read_rows(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"]),
        (["0", "2", "1", "2"], ["0", "1", "2"]),
        (["0", "2", "2"], ["0", "1", "2"]),
        (["1", "b"], ["1", "b"]),
        (["²", "²"], ["²"]),
        (["--1"], ["--1"]),
        (["0", "4000000000", "", "1"], ["0", "1", "2"]),  # not four billion classes
        ([], []),
    ],
)
def test_class_names_of_a_manifest(labels, names):
    assert class_names_of([(2, {"label": label}) for label in labels]) == names


def test_labels():
    assert parse_label("dog", TWO) == 1
    assert parse_label("1", TWO) == 1
    assert parse_label("1", ["1", "0"]) == 0  # a name comes before a number
    for text in ("2", "-1", "x", "1.0", "²", ""):
        with pytest.raises(ValueError, match=r"out of range|unknown class"):
            parse_label(text, TWO)


def test_boxes_may_be_separated_by_commas_and_lack_extent():
    assert parse_boxes("1,2,3,4; 5 6 5 6") == ((1, 2, 3, 4), (5, 6, 5, 6))
    with pytest.raises(ValueError, match="four numbers"):
        parse_boxes("1 2 3 4 5")


def test_suggestions_are_near_or_absent():
    assert suggestion("malignat", ["benign", "malignant"]) == " (did you mean 'malignant'?)"
    assert suggestion("x", ["benign", "malignant"]) == ""


# Validation


def test_a_valid_data_set_passes(tmp_path):
    splits = pair(tmp_path)
    mask = picture(tmp_path / "m.png", mode="L")
    splits["val"].append(Record(picture(tmp_path / "d.png"), 0, (mask,), boxes=((0, 0, 12, 8),)))
    for verify in ("header", "decode", "none"):
        validate(splits, TWO, verify=verify)


def test_every_problem_is_reported_at_once(tmp_path):
    whole = (picture(tmp_path / "whole.png", 300, 200)).read_bytes()
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    splits = pair(tmp_path)
    small = picture(tmp_path / "small.png", 11, 8, "L")
    splits["train"] += [
        Record(tmp_path / "gone.png", 0, place="line 5"),
        Record(text, 0, place="line 6"),
        Record(empty, 0, place="line 7"),
        Record(tmp_path / "cut.png", 0, place="line 8"),
        Record(picture(tmp_path / "d.png"), 0, (small, tmp_path / "no.png"), place="line 9"),
        Record(picture(tmp_path / "e.png"), 0, (text,), ignore=small, place="line 10"),
        Record(picture(tmp_path / "f.png"), 3, place="line 11"),
        Record(picture(tmp_path / "g.png"), -1, place="line 12"),
        Record(
            picture(tmp_path / "h.png"),
            0,
            boxes=((0, 0, 13.5, 8), (-1, -1, 13, 9)),
            place="line 13",
        ),
        Record(
            picture(tmp_path / "i.png"), 0, boxes=((-2, 0, 2, 8), (0, 0, 2, 10)), place="line 14"
        ),
    ]
    splits["val"].append(Record(tmp_path / "a.png", 0, place="line 15"))
    splits["test"] = []
    classes = [*TWO, "cow"]
    found = problems_of(validate, splits, classes, verify="decode", what="Set")
    expected = [
        "class 'cow' (label 2) has no training image",
        "line 11: label 3 is out of range: with 3 classes it must be in [0, 2]",
        "line 12: label -1 is out of range: with 3 classes it must be in [0, 2]",
        "line 15: a.png stands in splits 'train' and 'val' (first: line 2)",
        "split 'test' is empty",
        f"line 5: image {tmp_path / 'gone.png'} does not exist",
        f"line 6: {text} is not a readable image",
        f"line 7: {empty} is not a readable image",
        f"line 8: {tmp_path / 'cut.png'} is not a readable image",
        f"line 9: mask {tmp_path / 'no.png'} does not exist",
        "line 9: mask small.png is 11x8 pixels, its image d.png is 12x8",
        f"line 10: {text} is not a readable image",
        "line 10: mask small.png is 11x8 pixels, its image e.png is 12x8",
        "line 13: box (0, 0, 13.5, 8) leaves its image h.png of 12x8 pixels",
        "line 14: box (-2, 0, 2, 8) leaves its image i.png of 12x8 pixels",
        "line 14: box (0, 0, 2, 10) leaves its image i.png of 12x8 pixels",
    ]
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


def test_how_much_of_a_file_is_checked(tmp_path):
    splits = pair(tmp_path)
    whole = picture(tmp_path / "whole.png", 300, 200).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    validate(splits, TWO, verify="header")
    assert "line 2" in problems_of(validate, splits, TWO, verify="decode")[0]
    (tmp_path / "b.png").write_text("no image")
    assert "line 3" in problems_of(validate, splits, TWO, verify="header")[0]
    validate(splits, TWO, verify="none")
    (tmp_path / "c.png").unlink()
    assert "line 4" in problems_of(validate, splits, TWO, verify="none")[0]


def test_an_image_in_two_splits_or_twice_in_one(tmp_path):
    splits = pair(tmp_path)
    splits["train"].append(Record(tmp_path / "x" / ".." / "a.png", 0, place="line 9"))
    splits["val"].append(Record(tmp_path / "b.png", 1))
    (tmp_path / "x").mkdir()
    assert problems_of(validate, splits, TWO) == [
        "line 9: a.png stands in 'train' twice (first: line 2)",
        f"{tmp_path / 'b.png'}: b.png stands in splits 'train' and 'val' (first: line 3)",
    ]


def test_splits_may_share_images_by_protocol_but_not_repeat_them(tmp_path):
    splits = pair(tmp_path)
    shared = [frozenset({"valcl", "valpx"})]
    splits["valcl"] = splits.pop("val")
    splits["valpx"] = list(splits["valcl"])
    validate(splits, TWO, shared=shared)
    assert len(problems_of(validate, splits, TWO)) == 1
    splits["valcl"] = splits["valcl"] * 2
    assert problems_of(validate, splits, TWO, shared=shared) == [
        "line 4: c.png stands in 'valcl' twice (first: line 4)"
    ]
    splits["valcl"] = splits["valcl"][:1]
    splits["valpx"] = [splits["train"][0], *splits["valpx"] * 2]
    assert problems_of(validate, splits, TWO, shared=shared) == [
        "line 2: a.png stands in splits 'train' and 'valpx' (first: line 2)",
        "line 4: c.png stands in 'valpx' twice (first: line 4)",
    ]


def test_only_prediction_goes_without_labels(tmp_path):
    record = Record(picture(tmp_path / "a.png"), -1)
    validate({"predict": [record]}, [])
    assert "out of range" in problems_of(validate, {"test": [record]}, TWO)[0]


def test_a_long_list_of_problems_is_cut_for_the_eye_only():
    error = DataError("Set", [f"problem {i}" for i in range(SHOWN_PROBLEMS + 7)])
    assert len(error.problems) == SHOWN_PROBLEMS + 7
    lines = str(error).splitlines()
    assert lines[0] == f"Set: {SHOWN_PROBLEMS + 7} problems"
    assert lines[1] == "  - problem 0"
    assert lines[-1] == "  ... and 7 more"
    assert len(lines) == SHOWN_PROBLEMS + 2
    assert str(DataError("Set", ["x"])) == "Set: 1 problem\n  - x"
    again = pickle.loads(pickle.dumps(error))  # a worker process hands it over like this
    assert str(again) == str(error)


# Files


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_images_of_any_mode_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    source = Image.new("RGB", (5, 3), (255, 255, 255))
    source.paste((0, 0, 0), (0, 0, 2, 3))
    image = source.convert(mode)
    if "A" in mode:
        image.putalpha(Image.new("L", (5, 3), 7))
    image.save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == np.asarray(source)).all()
    assert read_size(path) == (5, 3)


def test_colours_keep_their_order(tmp_path):
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.save(tmp_path / "a.bmp")
    assert read_image(tmp_path / "a.bmp")[0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name)[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_truncated_files_are_named_wherever_they_end(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for part in np.linspace(0, 0.9, 25):
        path.write_bytes(whole[: int(part * len(whole))])
        for function in (read_image, lambda p: read_size(p, decode=True)):
            with pytest.raises(DataError, match=rf"a\.{ending} is not a readable image"):
                function(path)


def masked(tmp_path, image, name="m.png"):
    image.save(tmp_path / name)
    shape = (image.size[1], image.size[0])
    return read_mask(Record(tmp_path / "a.png", 0, (tmp_path / name,)), shape)


EXPECTED = np.array([[0, 1, 1], [0, 0, 1]], dtype=np.uint8)
IDS = np.array([[0, 1, 255], [0, 0, 7]], dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "RGB", "RGBA", "LA"])
def test_any_value_above_zero_is_foreground(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(IDS.astype(np.uint16) * 256)
    elif mode == "1":
        image = Image.fromarray(IDS > 0)
    else:
        image = Image.fromarray(IDS).convert(mode)
    if "A" in mode:  # transparency says nothing
        image.putalpha(Image.fromarray(np.array([[255, 0, 9], [255, 0, 0]], np.uint8)))
    assert image.mode == mode
    mask = masked(tmp_path, image)
    assert mask.dtype == np.uint8
    assert (mask == EXPECTED).all()


def test_one_channel_above_zero_is_enough(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1, 0], pixels[0, 2, 1], pixels[1, 2, 2] = 1, 1, 1
    assert (masked(tmp_path, Image.fromarray(pixels)) == EXPECTED).all()


@pytest.mark.parametrize(
    "palette",
    [
        [(0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 192)],  # as VOC and DAVIS
        [(255, 255, 255), (0, 0, 0), (10, 20, 30), (0, 0, 0)],  # as a colour-reducing editor may
    ],
)
def test_palette_masks_count_by_their_colours_as_opencv_reads_them(tmp_path, palette):
    indices = np.random.default_rng(0).integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([value for colour in palette for value in colour])
    mask = masked(tmp_path, image)
    read = cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_GRAYSCALE)
    assert (mask == (read > 0)).all()
    assert 0 < mask.mean() < 1


def test_masks_are_united_and_what_is_ignored_yields_to_them(tmp_path):
    def save(name, rows):
        Image.fromarray(np.array(rows, np.uint8) * 200).save(tmp_path / name)
        return tmp_path / name

    one, two = save("1.png", [[1, 0, 0, 0]]), save("2.png", [[0, 1, 0, 0]])
    ignore = save("i.png", [[1, 0, 1, 0]])
    image = tmp_path / "a.png"
    assert read_mask(Record(image, 0, (one, two), ignore=ignore), (1, 4)).tolist() == [
        [1, 1, 255, 0]
    ]
    assert read_mask(Record(image, 0, empty_mask=True), (1, 4)).tolist() == [[0, 0, 0, 0]]
    assert Record(image, 0, empty_mask=True).has_mask


def test_a_mask_that_cannot_be_used_is_named(tmp_path):
    mask = picture(tmp_path / "m.png", 5, 4, "L")
    record = Record(tmp_path / "a.png", 0, (mask,))
    assert problems_of(read_mask, record, (5, 4)) == [f"{mask} is 5x4 pixels, its image 4x5"]
    mask.write_bytes(mask.read_bytes()[:30])
    assert problems_of(read_mask, record, (4, 5))[0].startswith(f"{mask} is not a readable image")
