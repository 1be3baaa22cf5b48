"""Videos written here are read back: every frame carries its number, so order cannot be faked."""

import gc
import pickle
import sys
import weakref
from fractions import Fraction

import numpy as np
import pytest
from torch.utils.data import DataLoader

from wsl_zoo.data.manifest import DataError
from wsl_zoo.data.videofile import VideoFile, VideoWriter

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'wsl-zoo[video]'")

KINDS = [
    ("libx264", "mp4"),  # frames are stored in another order than they are shown
    ("libx264", "mkv"),
    ("libx264", "ts"),
    ("mpeg4", "mp4"),
    ("mpeg4", "avi"),
    ("mjpeg", "avi"),
    ("libvpx", "webm"),  # its packets may hold no frame
    ("gif", "gif"),
]
FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}
COUNT, BLOCK = 40, 8


def numbered(index, height=48, width=64):
    """A frame whose upper blocks spell its number, black and white; (H, W, 3) uint8."""
    frame = np.full((height, width, 3), (40, 120, 200), dtype=np.uint8)
    for bit in range(8):
        frame[:16, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (index >> bit & 1)
    return frame


def number(frame):
    bits = [frame[4:12, bit * BLOCK + 2 : (bit + 1) * BLOCK - 2].mean() > 127 for bit in range(8)]
    return sum(value << bit for bit, value in enumerate(bits))


def written(path, codec="libx264", count=COUNT, size=(48, 64), stamps=None, rate=25, **options):
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "9"} | options)
        stream.height, stream.width = size
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index, *size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[index], 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path):
    return written(tmp_path / "clip.mp4")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("codec", "ending"), KINDS)
def test_every_frame_comes_once_and_in_order(codec, ending, threads, tmp_path):
    video = VideoFile(written(tmp_path / f"a.{ending}", codec), threads)
    frames = list(video)
    assert [number(frame) for frame in frames] == list(range(COUNT))
    assert video.count == len(video) == COUNT
    assert video.size == (48, 64)
    assert video.fps == pytest.approx(25, abs=0.2)
    assert video.times == pytest.approx(np.arange(COUNT) / 25, abs=0.011)
    assert all(f.shape == (48, 64, 3) and f.dtype == np.uint8 for f in frames)
    assert frames[3][30:].mean(axis=(0, 1)) == pytest.approx((40, 120, 200), abs=20)  # RGB


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("codec", "ending"), KINDS)
def test_random_access_equals_iteration(codec, ending, threads, tmp_path):
    video = VideoFile(written(tmp_path / f"a.{ending}", codec), threads)
    frames = list(video)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(COUNT), range(COUNT), range(COUNT - 1, -1, -1), [7, 7, 8, 17, 18, 9]]
    with video:
        for order in orders:
            for index in order:
                assert np.array_equal(video.read(int(index)), frames[index]), index
    assert np.array_equal(video.read(5), frames[5])  # it opens again


def test_reading_does_not_disturb_iteration(clip):
    video = VideoFile(clip)
    seen = []
    for index, frame in enumerate(video):
        seen.append(number(frame))
        assert number(video.read(COUNT - 1 - index)) == COUNT - 1 - index
    assert seen == list(range(COUNT))


def test_going_on_decodes_no_frame_twice(clip, monkeypatch):
    video = VideoFile(written(clip, g="1000"))
    video.read(0)
    decoded = []
    pixels = video._forward
    monkeypatch.setattr(video, "_forward", lambda pts: decoded.append(pts) or pixels(pts))
    frames = video._reading
    for index in range(1, COUNT):
        assert number(video.read(index)) == index
    assert video._reading is frames  # neither opened nor sought anew
    assert len(decoded) == COUNT - 1


@pytest.mark.parametrize("index", [-1, COUNT, COUNT + 100])
def test_there_are_no_other_frames(clip, index):
    with pytest.raises(IndexError, match=rf"clip\.mp4 has frames 0 to 39, not {index}"):
        VideoFile(clip).read(index)


def test_pickling_takes_no_open_file_along(clip):
    video = VideoFile(clip)
    expected = video.read(20)
    data = pickle.dumps(video)
    assert len(data) < 10_000
    copy = pickle.loads(data)
    assert np.array_equal(copy.read(20), expected)
    assert (copy.count, copy.fps, copy.size) == (video.count, video.fps, video.size)
    assert np.array_equal(video.read(21), copy.read(21))


class Frames:
    def __init__(self, path):
        self.video = VideoFile(path)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return number(self.video.read(index))


def test_workers_of_a_loader_read_for_themselves(clip):
    frames = Frames(clip)
    assert frames[13] == 13  # the parent's file is open and in the middle
    loader = DataLoader(frames, 4, num_workers=2, multiprocessing_context="forkserver")
    assert [int(i) for batch in loader for i in batch] == list(range(COUNT))
    assert frames[14] == 14


def test_no_more_than_a_frame_is_kept(clip):
    alive, most = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    for frame in map(lambda f: f.view(Frame), VideoFile(clip)):
        alive.add(frame)
        most = max(most, len(alive))
    del frame
    gc.collect()
    assert most <= 2
    assert not alive


def test_times_are_those_of_the_file(tmp_path):
    stamps = [0, 1, 5, 6, 20]
    path = written(tmp_path / "a.mp4", count=5, stamps=stamps, rate=10)
    video = VideoFile(path)
    assert video.times == pytest.approx(np.array(stamps) / 10)
    assert [number(frame) for frame in video] == [0, 1, 2, 3, 4]
    assert number(video.read(3)) == 3


def test_one_frame_is_a_video(tmp_path):
    video = VideoFile(written(tmp_path / "a.mp4", count=1))
    assert (video.count, len(list(video))) == (1, 1)
    assert video.fps > 0
    assert number(video.read(0)) == 0


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_frames_are_turned_as_the_file_asks(clip, degrees, turns):
    upright = VideoFile(clip).read(5)
    data = bytearray(clip.read_bytes())
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = np.array([cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 14], dtype=">i4")
    matrix[:8] <<= 16
    matrix[8] = 1 << 30
    at = data.index(b"tkhd") + 4 + 40
    assert data[at : at + 4] == b"\x00\x01\x00\x00"  # the unit matrix
    data[at : at + 36] = matrix.tobytes()
    clip.write_bytes(data)
    video = VideoFile(clip)
    expected = np.rot90(upright, turns)  # clockwise by `degrees`
    assert video.size == expected.shape[:2]
    np.testing.assert_array_equal(video.read(5), expected)
    np.testing.assert_array_equal(next(iter(video)).shape, expected.shape)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        codecs = [stream.codec_context, av.CodecContext.create("mjpeg", "w")]
        for codec, height, width in zip(codecs, (48, 96), (64, 128), strict=True):
            codec.height, codec.width, codec.pix_fmt = height, width, "yuvj420p"
            codec.time_base = Fraction(1, 25)
        for index in range(6):
            codec = codecs[index // 3]
            height, width = codec.height, codec.width
            frame = numbered(index).repeat(height // 48, 0).repeat(width // 64, 1)
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = index, Fraction(1, 25)
            for packet in codec.encode(shown):
                packet.stream = stream
                container.mux(packet)
    video = VideoFile(path)
    assert video.size == (48, 64)
    assert [number(frame) for frame in video] == list(range(6))
    assert number(video.read(4)) == 4


# What is no good --------------------------------------------------------------------------------


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 500)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    for name, reason in (
        ("gone.mp4", "does not exist"),
        ("", "is no file"),
        ("empty.mp4", "is not a readable video"),
        ("text.mp4", "is not a readable video"),
        ("sound.wav", "holds no video stream"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            VideoFile(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "ending", "reason"),
    [
        ("libx264", "mp4", "is not a readable video"),  # its index is at the end
        ("mpeg4", "avi", r"is truncated: \d+ of 40 frames are there"),
        ("libx264", "mkv", r"is truncated: it ends after \d\.\d of 5\.0 s"),
    ],
)
def test_truncated_files_are_named(codec, ending, reason, tmp_path):
    path = written(tmp_path / f"a.{ending}", codec, rate=8)
    with av.open(str(path)) as container:
        middle = [packet.pos for packet in container.demux(video=0) if packet.size][20]
    path.write_bytes(path.read_bytes()[:middle])
    with pytest.raises(DataError, match=reason) as caught:
        VideoFile(path)
    assert str(path) in str(caught.value)


def test_a_file_that_ends_where_its_index_does_not(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "9"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(COUNT):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: (data.index(b"mdat") + len(data)) // 2])
    with pytest.raises(DataError, match=r"a\.mp4 is (damaged or )?truncated"):
        list(VideoFile(path))


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_in_the_middle_is_named_with_its_frame(tmp_path, threads):
    path = written(tmp_path / "a.mp4", "mpeg4")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    at, size = packets[18]  # a key frame
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    video = VideoFile(path, threads)
    seen = []
    message = r"a\.mp4 is damaged or truncated: frame 18 cannot be decoded"
    with pytest.raises(DataError, match=message):
        seen.extend(number(frame) for frame in video)
    assert seen == list(range(18))
    with pytest.raises(DataError, match=message):
        video.read(18)
    assert number(video.read(17)) == 17
    assert number(video.read(30)) == 30


def test_without_pyav_the_message_says_what_to_install(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for make in (lambda: VideoFile(clip), lambda: VideoWriter(clip, (8, 8), 25)):
        with pytest.raises(ImportError, match=r"pip install 'wsl-zoo\[video\]'"):
            make()


# Writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (49, 64), (48, 65), (49, 71)])
@pytest.mark.parametrize("fps", [25, 30000 / 1001, 8.5])
def test_what_is_written_is_read_back(tmp_path, size, fps):
    path = tmp_path / "out.mp4"
    frames = [numbered(index, *size) for index in range(COUNT)]
    with VideoWriter(path, size, fps) as writer:
        for frame in frames:
            writer.write(frame)
    video = VideoFile(path)
    height, width = size
    assert video.size == (height + height % 2, width + width % 2)
    assert video.fps == pytest.approx(fps, rel=1e-6)
    for index, frame in enumerate(video):
        assert number(frame) == index
        assert np.abs(frame[:height, :width].astype(int) - frames[index]).mean() < 6
        assert np.abs(frame[20:, -1].astype(int) - (40, 120, 200)).mean() < 10  # no black seam
    assert index == COUNT - 1
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_without_an_encoder_of_h264_it_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr("wsl_zoo.data.videofile.ENCODERS", ("no such encoder", "mpeg4"))
    with VideoWriter(tmp_path / "out.mp4", (48, 64), 25) as writer:
        for index in range(COUNT):
            writer.write(numbered(index))
    assert [number(frame) for frame in VideoFile(tmp_path / "out.mp4")] == list(range(COUNT))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "out.mp4"

    def interrupted():
        with VideoWriter(path, (48, 64), 25) as writer:
            writer.write(numbered(0))
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frame", [numbered(0, 64, 48), numbered(0)[..., 0], numbered(0).astype(float)]
)
def test_frames_that_do_not_fit_are_refused(tmp_path, frame):
    with (
        pytest.raises(ValueError, match=r"expected \(48, 64, 3\) uint8, got"),
        VideoWriter(tmp_path / "out.mp4", (48, 64), 25) as writer,
    ):
        writer.write(frame)
    assert list(tmp_path.iterdir()) == []
