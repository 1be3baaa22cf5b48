"""A video through a model: what is written is what `predict_image` says, frame by frame."""

import csv
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cases.stages import save
from wsl_zoo import pictures, video
from wsl_zoo.__main__ import main
from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.videofile import VideoFile, VideoWriter
from wsl_zoo.methods import FCAM, CAMClassifier
from wsl_zoo.metrics.split import Thresholds
from wsl_zoo.prediction import Prediction, predict_batch, stack_images
from wsl_zoo.video import ahead, draw, find_videos, predict_video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'wsl-zoo[video]'")

NAMES = ["ant", "bee", "cat"]
SMALL = {"num_classes": 3, "class_names": NAMES, "encoder": "test_resnet", "stride": 16}
DECODER = {"decoder_channels": [16, 8, 8, 8, 8]}
COUNT = 21


def fcam():
    return FCAM(decoder_args=DECODER, **SMALL)


METHODS = {
    "FCAM": fcam,  # one forward pass gives the map
    "CAM": lambda: CAMClassifier(**SMALL),
    "LayerCAM": lambda: CAMClassifier(cam="layercam", cam_layer=-3, **SMALL),  # needs gradients
}


def make(name):
    torch.manual_seed(0)
    model = METHODS[name]()
    with torch.no_grad():  # classes and maps that change from frame to frame
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.image_size = 48
    return model.eval()


@pytest.fixture(scope="module", params=METHODS)
def model(request):
    return make(request.param)


@pytest.fixture(scope="module")
def decoder():
    return make("FCAM")


def scene(index, height=50, width=70):
    """Blobs that move over a ground whose colour changes; (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    frame = np.full(
        (height, width, 3), (12 * index % 256, 90, (200 - 9 * index) % 256), dtype=np.uint8
    )
    frame[(y - 25) ** 2 + (x - 5 - 3 * index % width) ** 2 < 150] = (
        250,
        200,
        (30 + 10 * index) % 256,
    )
    return frame


def written(path, count=COUNT, size=(50, 70), fps=12.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, size, fps) as writer:
        for index in range(count):
            writer.write(scene(index, *size))
    return path


@pytest.fixture
def clip(tmp_path):
    return written(tmp_path / "my clip.mp4")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_every_row_is_what_predict_image_says(model, clip, tmp_path, batch):
    result = predict_video(model, clip, tmp_path / "out", batch=batch)
    assert result.frames == COUNT
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["my clip.csv", "my clip.mp4"]
    rows = rows_of(result.table)
    frames = list(VideoFile(clip))
    assert len(rows) == len(frames) == COUNT
    for index, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        expected = model.predict_image(frame)
        assert int(row["frame"]) == index
        assert float(row["time"]) == pytest.approx(index / 12.5, abs=1e-3)
        assert (int(row["label"]), row["class"]) == (expected.label, expected.class_name)
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=1e-5)
        box = [int(row[key]) for key in ("x0", "y0", "x1", "y1")]
        assert box == expected.boxes[0].tolist()
    assert len({(row["x0"], row["y0"], row["x1"], row["y1"]) for row in rows}) > 3


def test_the_video_shows_map_box_and_class(decoder, clip, tmp_path):
    result = predict_video(decoder, clip, tmp_path / "out")
    shown = VideoFile(result.video)
    assert (shown.count, shown.size) == (COUNT, (50, 70))
    assert shown.fps == pytest.approx(12.5)
    for frame, drawn in zip(VideoFile(clip), shown, strict=True):
        expected = frame.copy()
        draw(expected, decoder.predict_image(frame))
        lost = np.abs(expected.astype(int) - drawn).mean()  # by the encoder, mostly of colours
        assert lost < 12
        assert np.abs(frame.astype(int) - drawn).mean() > 2 * lost


def prediction(score_map, boxes, name="cat"):
    size = score_map.shape
    return Prediction(
        2, name, 0.875, np.zeros(3, np.float32), score_map, np.zeros(size, bool), boxes, 0.5
    )


def test_drawing_is_the_overlay_with_the_largest_box():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    score_map = rng.random((90, 120)).astype(np.float32)
    score_map[50, :3] = (0.0, 1.0, 0.5)
    boxes = np.array([[60, 40, 100, 80], [5, 70, 9, 75]])
    frame = image.copy()
    draw(frame, prediction(score_map, boxes))
    expected = pictures.overlay(image, score_map).astype(int)
    on_box = (frame == pictures.PREDICTED).all(axis=-1)
    rows, columns = np.nonzero(on_box)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (60, 40, 100, 80)
    assert on_box.sum() == 2 * 41 + 2 * 39  # one pixel wide, and no other box
    away = ~on_box
    away[:20, :70] = False  # the text
    assert np.abs(frame.astype(int) - expected)[away].max() <= 1
    assert (frame[:10, :30] == 0).any()
    assert (frame[:10, :30] > 200).any()
    other = image.copy()
    draw(other, prediction(score_map, boxes, "dog"))
    assert not np.array_equal(frame, other)


@pytest.mark.parametrize("size", [(4, 6), (20, 300)])
def test_text_fits_into_small_frames(size):
    frame = np.zeros((*size, 3), np.uint8)
    draw(frame, prediction(np.zeros(size, np.float32), np.zeros((0, 4), int), "длинное имя, é"))
    assert frame.shape == (*size, 3)


def test_frames_without_a_box_have_empty_cells(decoder, clip, tmp_path):
    try:
        decoder.thresholds = Thresholds(pixels=2.0)  # the validation liked an empty mask best
        result = predict_video(decoder, clip, tmp_path / "out")
    finally:
        decoder.thresholds = Thresholds()
    rows = rows_of(result.table)
    assert len(rows) == COUNT
    assert all(row[key] == "" for row in rows for key in ("x0", "y0", "x1", "y1"))
    assert all(row["class"] in NAMES for row in rows)


def test_odd_sizes_and_models_without_a_size_of_their_own(decoder, tmp_path, monkeypatch):
    import av

    path = tmp_path / "odd.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 51, 67, "rgb24"
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(scene(index, 51, 67), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.array_equal(VideoFile(path).read(3), scene(3, 51, 67))
    monkeypatch.setattr(decoder, "image_size", None)
    result = predict_video(decoder, path, tmp_path / "out")
    assert VideoFile(result.video).size == (52, 68)
    for index, row in enumerate(rows_of(result.table)):
        expected = decoder.predict_image(scene(index, 51, 67))
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=1e-5)
        assert int(row["x1"]) == expected.boxes[0][2] <= 66


def test_a_batch_is_what_its_images_are(model):
    images = [scene(index) for index in range(4)]
    probabilities, labels, maps = predict_batch(model, stack_images(model, images))
    for index, image in enumerate(images):
        own, label, own_map = predict_batch(model, stack_images(model, [image]))
        torch.testing.assert_close(probabilities[index : index + 1], own, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(maps[index : index + 1], own_map, atol=1e-5, rtol=1e-4)
        assert labels[index] == label[0]


def test_one_pass_per_frame_and_the_model_stays_as_it_was(decoder, clip, tmp_path, monkeypatch):
    seen = []
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda b: seen.append(len(b["image"])) or forward(b))
    try:
        decoder.train()
        predict_video(decoder, clip, tmp_path / "out", batch=8)
        assert decoder.training
    finally:
        decoder.eval()
    assert seen == [8, 8, 5]
    assert all(parameter.grad is None for parameter in decoder.parameters())


# Memory, errors, interruptions -------------------------------------------------------------------


class Tracked(np.ndarray):
    """Arrays of which those alive are counted."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("slow", ["writer", "model"])
def test_no_more_than_some_batches_are_alive(decoder, tmp_path, monkeypatch, slow):
    alive, counts = weakref.WeakSet(), []

    class Counting(VideoFile):
        def __iter__(self):
            for frame in super().__iter__():
                own = frame.view(Tracked)
                alive.add(own)
                counts.append(len(alive))
                yield own
                del own

    write, predict = VideoWriter.write, predict_batch

    def slowly(work):
        def run(*args):
            time.sleep(0.01)
            return work(*args)

        return run

    if slow == "writer":
        monkeypatch.setattr(VideoWriter, "write", slowly(write))
    else:
        monkeypatch.setattr(video, "predict_batch", slowly(predict))
    clip = Counting(written(tmp_path / "long.mp4", 120))
    assert predict_video(decoder, clip, tmp_path / "out", batch=4).frames == 120
    assert len(counts) == 120
    assert 4 < max(counts) <= video.STEPS * 4


def test_large_frames_make_small_batches(decoder, clip, tmp_path, monkeypatch):
    sizes = []

    def counted(model, raw):
        sizes.append(len(raw))
        return predict_batch(model, raw)

    monkeypatch.setattr(video, "predict_batch", counted)
    monkeypatch.setattr(video, "MEMORY", video.STEPS * 3 * 50 * 70 * 3 + 5)
    predict_video(decoder, clip, tmp_path / "out", batch=32)
    assert sizes == [3] * 7
    monkeypatch.setattr(video, "MEMORY", 1)
    assert predict_video(decoder, clip, tmp_path / "out").frames == COUNT


def nothing_left(folder):
    return [p.name for p in folder.rglob("*") if p.is_file()] == []


def test_damage_is_named_and_leaves_nothing(decoder, clip, tmp_path):
    clean = VideoFile(clip)
    broken = VideoFile(clip)
    broken._pts = clean._pts + (np.arange(COUNT) >= 13)  # frame 13 does not come
    with pytest.raises(DataError, match=r"my clip\.mp4 is damaged or truncated: frame 13 cannot"):
        predict_video(decoder, broken, tmp_path / "out", batch=4)
    assert nothing_left(tmp_path / "out")


def test_a_failing_model_names_the_frames(decoder, clip, tmp_path, monkeypatch):
    calls = []

    def failing(model, raw):
        calls.append(len(raw))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return predict_batch(model, raw)

    monkeypatch.setattr(video, "predict_batch", failing)
    with pytest.raises(RuntimeError, match=r"my clip\.mp4, frames 8 to 11: out of memory"):
        predict_video(decoder, clip, tmp_path / "out", batch=4)
    assert nothing_left(tmp_path / "out")


def test_a_full_disk_is_named_with_the_frame(decoder, clip, tmp_path, monkeypatch):
    def full(writer, frame):
        raise OSError("No space left on device")

    monkeypatch.setattr(VideoWriter, "write", full)
    with pytest.raises(OSError, match=r"my clip\.mp4, frame 0: No space left"):
        predict_video(decoder, clip, tmp_path / "out", batch=4)
    assert nothing_left(tmp_path / "out")


def test_an_interrupted_run_leaves_nothing_but_what_was_there(decoder, clip, tmp_path):
    out = tmp_path / "out"
    before = predict_video(decoder, clip, out)
    kept = (before.video.read_bytes(), before.table.read_bytes())
    threads = threading.active_count()

    def stop(done, count):
        assert (done, count) == (4, COUNT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped at frame 4 of 21, nothing was written"):
        predict_video(decoder, clip, out, batch=4, progress=stop)
    assert (before.video.read_bytes(), before.table.read_bytes()) == kept
    assert len(list(out.iterdir())) == 2
    assert threading.active_count() == threads


def test_a_video_is_not_overwritten_by_itself(decoder, clip):
    before = clip.read_bytes()
    with pytest.raises(ValueError, match="is the video itself: choose another folder"):
        predict_video(decoder, clip, clip.parent)
    assert clip.read_bytes() == before
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        predict_video(decoder, clip, clip.parent / "out", batch=0)


def test_ahead_makes_one_more_and_hands_errors_on():
    made = []

    def items():
        try:
            for index in range(5):
                made.append(index)
                yield index
            raise OSError("at the end")
        finally:
            made.append(threading.current_thread())

    seen = []

    def slowly():
        for item in ahead(items()):
            time.sleep(0.02)
            assert made[-1] == item + 1 or item >= 3  # the next one, and no more
            seen.append(item)

    with pytest.raises(OSError, match="at the end"):
        slowly()
    assert seen == [0, 1, 2, 3, 4]
    made.clear()
    running = ahead(items())
    assert next(running) == 0
    running.close()
    assert made[-1] is not threading.current_thread()
    assert not made[-1].is_alive()
    assert len(made) == 3


# The command line --------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, decoder):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return save(decoder, tmp_path / "run" / "checkpoints" / "best_loc.ckpt")


def predict(*args):
    return main(["predict", *map(str, args)])


def test_the_command_writes_into_the_run(decoder, checkpoint, clip, tmp_path, capsys):
    assert predict("--ckpt_path", checkpoint, "--video", clip, "--device", "cpu") == 0
    folder = tmp_path / "run" / "predictions"
    out = capsys.readouterr().out
    assert "21 frames in" in out
    assert "frames/s" in out
    assert str(folder / "my clip.mp4") in out
    for row, frame in zip(rows_of(folder / "my clip.csv"), VideoFile(clip), strict=True):
        expected = decoder.predict_image(frame)
        assert row["class"] == expected.class_name
        assert [int(row[key]) for key in ("x0", "y0", "x1", "y1")] == expected.boxes[0].tolist()
    assert VideoFile(folder / "my clip.mp4").count == COUNT


def test_several_and_folders_of_videos(checkpoint, tmp_path, capsys):
    shelf = tmp_path / "shelf"
    one, two = written(shelf / "a.mp4", 3), written(shelf / "deep" / "b.mp4", 4)
    (shelf / "a.mkv").write_bytes(one.read_bytes())
    (shelf / "notes.txt").write_text("no video")
    other = written(tmp_path / "c.mp4", 5)
    arguments = ["--video", shelf, other, "--maps.folder", tmp_path / "out", "--video_batch=2"]
    assert predict(f"--ckpt_path={checkpoint}", *arguments) == 0
    names = ["a_mkv", "a_mp4", "c", "deep/b"]
    found = sorted((tmp_path / "out").rglob("*.csv"))
    assert (
        sorted(p.relative_to(tmp_path / "out").with_suffix("").as_posix() for p in found) == names
    )
    assert [len(rows_of(path)) for path in found] == [3, 3, 5, 4]
    assert two.exists()
    assert capsys.readouterr().out.count("frames/s") == 4


def test_all_bad_videos_are_named_at_once(checkpoint, tmp_path, capsys):
    one, two = written(tmp_path / "a" / "x.mp4", 2), written(tmp_path / "b" / "x.mp4", 2)
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    args = [one, two, tmp_path / "bad.mp4", tmp_path / "empty", tmp_path / "gone.mp4"]
    assert predict("--ckpt_path", checkpoint, "--video", *args) == 1
    error = capsys.readouterr().err
    assert "4 problems" in error
    assert f"{one} and {two} would both be written as x_mp4" in error
    assert "bad.mp4 is not a readable video" in error
    assert "empty holds no video" in error
    assert "gone.mp4 does not exist" in error


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--video", "CLIP"], 2, "--ckpt_path"),
        (["--ckpt_path", "gone.ckpt", "--video", "CLIP"], 1, "there is no checkpoint gone.ckpt"),
        (["--ckpt_path", "CKPT", "--video"], 2, "expected at least one argument"),
        (["--ckpt_path", "CKPT", "--video", "CLIP", "--video_bach", "2"], 2, "unrecognized"),
        (["--ckpt_path", "CKPT", "--video", "CLIP", "--video_batch", "0"], 1, "at least 1"),
        (["--ckpt_path", "CKPT", "--images", "CLIP"], 1, "is a video: use --video"),
        (["--ckpt_path", "CKPT", "--vidoe", "CLIP"], 2, "Did you mean 'video'?"),
    ],
)
def test_wrong_usage_is_answered(args, status, message, checkpoint, clip, capsys):
    known = {"CKPT": str(checkpoint), "CLIP": str(clip)}
    try:
        got = predict(*(known.get(arg, arg) for arg in args))
    except SystemExit as stop:
        got = stop.code
    error = capsys.readouterr().err
    assert got == status
    assert message in error
    assert "Traceback" not in error


def test_other_commands_know_no_video(capsys):
    assert main(["fit", "--config", "cam/synthetic", "--video", "x.mp4"]) == 1
    assert "predict --ckpt_path CKPT --video FILE" in capsys.readouterr().err


def test_without_pyav_the_command_says_what_to_install(checkpoint, clip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert predict("--ckpt_path", checkpoint, "--video", clip) == 1
    assert "pip install 'wsl-zoo[video]'" in capsys.readouterr().err


def test_names_are_paths_below_the_folder(tmp_path):
    written(tmp_path / "v" / "a.b.mp4", 1)
    assert list(find_videos([str(tmp_path / "v")])) == ["a.b"]


def test_ctrl_c_ends_the_command(checkpoint, tmp_path):
    clip = written(tmp_path / "long.mp4", 1500, (240, 320))
    out = tmp_path / "out"
    code = (
        "import sys; from wsl_zoo import video; from wsl_zoo.__main__ import main\n"
        "video.SECONDS = 0\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["predict", "--ckpt_path", checkpoint, "--video", clip, "--maps.folder", out]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("long: 32 of 1500"), process.stderr.read()
    assert any(path.name.endswith(".partial") for path in out.iterdir())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "long.mp4: stopped at frame " in error
    assert "Traceback" not in error
    assert list(out.iterdir()) == []
