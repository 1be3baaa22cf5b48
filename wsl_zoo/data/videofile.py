"""Video files: their frames one by one, in order or at random, and a writer. PyAV does the work.

`pip install 'wsl-zoo[video]'` installs it. Nothing here keeps more than a few frames in memory.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Generator, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsl_zoo.data.manifest import DataError

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
# Of these codecs every packet that is not marked otherwise gives one frame, at the packet's time.
ONE_FRAME_PER_PACKET = ("h264", "hevc", "mpeg4", "mpeg2video", "mjpeg", "vp9", "av1")
CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
SLACK = 1.0  # s that a stream's last frame may be away from its stated end
ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that the installed FFmpeg has
ENCODER_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}


def pyav() -> Any:
    """Return the module `av`.

    Raises:
        ImportError: It is not installed; the message says how to.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("video files need PyAV: pip install 'wsl-zoo[video]'") from error
    return av


def _converter() -> Any:
    """Return `reformat(frame, width, height, format)` without threads of its own.

    The calls are many and small. Earlier releases of PyAV know no threads here.
    """
    reformat = pyav().video.reformatter.VideoReformatter().reformat
    single = "threads" in (reformat.__doc__ or "")
    return partial(reformat, threads=1) if single else reformat


class VideoFile:
    """The frames of a video file.

    Iteration gives (H, W, 3) uint8 RGB in display order, each time from the start, and does not
    disturb `read`. Frames are turned as the file asks for (quarter turns); of streams that change
    their size, later frames are scaled to that of the first. Sound is left alone.

    May be pickled: every process opens the file for itself. A forked process lacks the threads of
    its parent's decoders, and may wait for them forever: start workers by "spawn".

    Args:
        path: The file; its first video stream is read.
        threads: Of the decoder. More are faster in order and slower at random.

    Attributes:
        count: Number of frames, of at least 1.
        fps: Mean frames per second.
        size: (height, width).
        times: (count,) float64, seconds from the first frame on.

    Raises:
        DataError: The file is missing, empty, damaged or no video. Damage further on is found when
            the frame is reached, which the message names.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path = Path(path)
        self.threads = threads
        self._reading: _Frames | None = None
        if not self.path.is_file():
            raise DataError("Video", [f"{self.path} does not exist or is no file"])
        stamps, self._keys, unit, rate = self._index()
        self._pts = np.array(stamps, dtype=np.int64)
        self.count = len(stamps)
        self.times: np.ndarray = (self._pts - self._pts[0]) * float(unit)
        mean = (self.count - 1) / self.times[-1] if self.count > 1 else 25.0
        self.fps = float(rate or mean)
        height, width = self.read(0).shape[:2]
        self.size: tuple[int, int] = (height, width)
        self.close()

    def _index(self) -> tuple[list[int], list[int], Fraction, Fraction | None]:
        """Return times of all frames and of the key frames, their unit in s, and the mean rate."""
        av = pyav()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise self._error("holds no video stream")
                stream = container.streams.video[0]
                unit, rate, stated = stream.time_base, stream.average_rate, stream.frames
                name, tags = stream.codec_context.name, stream.metadata
                packets = [
                    (packet.pts, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size and not packet.is_discard
                ]
        except (av.error.FFmpegError, OSError) as error:
            raise self._error(f"is not a readable video ({_reason(error)})") from error
        if len(packets) < stated:
            raise self._error(f"is truncated: {len(packets)} of {stated} frames are there")
        stamps = {pts for pts, _ in packets}
        end = max((pts for pts in stamps if pts is not None), default=0) * float(unit or 0)
        if (length := _seconds(tags.get("DURATION", ""))) > end + SLACK:
            raise self._error(f"is truncated: it ends after {end:.1f} of {length:.1f} s")
        keys = sorted(pts for pts, is_key in packets if is_key and pts is not None)
        one_each = name in ONE_FRAME_PER_PACKET and None not in stamps
        # Cut out of another file, a stream may begin with frames that cannot be decoded.
        if not one_each or len(stamps) < len(packets) or self._first() != min(stamps, default=None):
            stamps = self._decoded()
        if not stamps:
            raise self._error("holds no frame")
        return sorted(stamps), keys, unit, rate

    def _decoded(self) -> set[int]:
        """Return the times of all frames by decoding them."""
        frames = _Frames(self)
        found: list[int] = []
        try:
            found.extend(frame.pts for frame in frames)
        except pyav().error.FFmpegError as error:
            raise self._undecodable(len(found), error) from error
        finally:
            frames.close()
        if None in found or len(set(found)) < len(found):
            raise self._error("does not say when its frames are shown: convert it to mp4")
        return set(found)

    def _first(self) -> int | None:
        frames = _Frames(self)
        try:
            return next((frame.pts for frame in frames), None)
        except pyav().error.FFmpegError as error:
            raise self._undecodable(0, error) from error
        finally:
            frames.close()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Generator[np.ndarray]:
        frames = _Frames(self)
        index = 0
        try:
            for frame in frames:
                if index == self.count or frame.pts != self._pts[index] or frame.is_corrupt:
                    break
                yield self._pixels(frames, frame)
                index += 1
        except pyav().error.FFmpegError as error:
            raise self._undecodable(index, error) from error
        finally:
            frames.close()
        if index < self.count:
            raise self._undecodable(index)

    def read(self, index: int) -> np.ndarray:
        """Return frame `index` in [0, count) as (H, W, 3) uint8, the same as iteration gives.

        Decodes from the key frame before it, or goes on from the frame that was read last.

        Raises:
            DataError: It cannot be decoded; the message names file and frame.
            IndexError: There is no such frame.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"{self.path} has frames 0 to {self.count - 1}, not {index}")
        wanted = int(self._pts[index])
        keys = self._keys[: bisect_right(self._keys, wanted)]
        try:
            at = self._reading.at if self._reading is not None else None
            near = at is not None and (not keys or keys[-1] <= at or at == self._pts[index - 1])
            if near and at is not None and at < wanted:
                found = self._forward(wanted)
                if found is not None:
                    return found
            for start in [*keys[:-3:-1], None]:  # where that is not far enough, from the start
                if self._reading is None or start is None:
                    self.close()
                    self._reading = _Frames(self)
                if start is not None:
                    self._reading.seek(start)
                found = self._forward(wanted)
                if found is not None:
                    return found
        except pyav().error.FFmpegError as error:
            self.close()
            raise self._undecodable(index, error) from error
        self.close()
        raise self._undecodable(index)

    def _forward(self, wanted: int) -> np.ndarray | None:
        """Decode up to the frame of this time; None if it does not come, or not whole."""
        frames = self._reading
        assert frames is not None
        for frame in frames:
            if frame.pts is not None and frame.pts >= wanted:
                whole = frame.pts == wanted and not frame.is_corrupt
                return self._pixels(frames, frame) if whole else None
        return None

    def _pixels(self, frames: _Frames, frame: Any) -> np.ndarray:
        quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
        height, width = getattr(self, "size", (None, None))
        if quarters % 2:
            height, width = width, height
        pixels: np.ndarray = frames.to_rgb(frame, width, height, "rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reading": None}

    def _error(self, what: str) -> DataError:
        return DataError("Video", [f"{self.path} {what}"])

    def _undecodable(self, index: int, error: Exception | None = None) -> DataError:
        reason = f" ({_reason(error)})" if error is not None else ""
        return self._error(f"is damaged or truncated: frame {index} cannot be decoded{reason}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _seconds(clock: str) -> float:
    """Read Matroska's `hh:mm:ss.fraction`, of one stream; 0 if it says nothing."""
    hours, minutes, seconds = found.groups() if (found := CLOCK.fullmatch(clock)) else (0, 0, 0)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


class _Frames:
    """An open file and its decoder: frames of PyAV from the start, or from where `seek` went.

    `at` is the time of the last frame given, or None after a seek.
    """

    def __init__(self, video: VideoFile) -> None:
        av = pyav()
        self.container = av.open(str(video.path))
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = video.threads
        self.stream.thread_type = "AUTO" if video.threads > 1 else "SLICE"
        self.to_rgb = _converter()
        self.at: int | None = None
        self._frames = _decode(self.container, self.stream)

    def __iter__(self) -> Iterator[Any]:
        for frame in self._frames:
            self.at = frame.pts
            yield frame

    def seek(self, pts: int) -> None:
        """Go to the key frame at or before this time."""
        self.container.seek(pts, stream=self.stream)
        self.at = None
        self._frames = _decode(self.container, self.stream)

    def close(self) -> None:
        self._frames.close()
        codec = self.stream.codec_context
        if codec.is_open:  # let its threads finish: one that logs waits for us, as we for it
            codec.flush_buffers()
        self.container.close()


def _decode(container: Any, stream: Any) -> Generator[Any]:
    # Apart from `_Frames`: a cycle would leave its threads to the garbage collector, which may run
    # in a process that was forked and has no such threads.
    for packet in container.demux(stream):
        yield from packet.decode()


class VideoWriter:
    """Writes frames as an mp4 (H.264 where the installed FFmpeg can, else MPEG-4 part 2; yuv420p).

    The file appears when the block ends without an error: until then its name is
    `.<name>.partial`. Sides of odd length get one more row or column, a copy of the last.

    Args:
        path: The file to write.
        size: (height, width) of the frames.
        fps: Frames per second.

    Raises:
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float) -> None:
        av = pyav()
        self.path = Path(path)
        self.size = size
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._container = av.open(str(self._partial), "w", format="mp4")
        codec = next(name for name in ENCODERS if _can_encode(name))
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream(
            codec, rate=rate, options=ENCODER_OPTIONS.get(codec, {})
        )
        self._pad = (size[0] % 2, size[1] % 2)
        self._stream.height, self._stream.width = (
            side + pad for side, pad in zip(size, self._pad, strict=True)
        )
        self._stream.pix_fmt = "yuv420p"
        self._to_yuv = _converter()
        self._frame = av.VideoFrame.from_ndarray

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 RGB.

        Raises:
            ValueError: It is of another size or type.
        """
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"expected {(*self.size, 3)} uint8, got {frame.shape} {frame.dtype}")
        if any(self._pad):
            rows, columns = self._pad
            frame = cv2.copyMakeBorder(frame, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
        rgb = self._frame(np.ascontiguousarray(frame), format="rgb24")
        self._mux(self._to_yuv(rgb, format="yuv420p"))

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._mux(None)
                self._container.close()
                self._partial.replace(self.path)
        finally:
            self._container.close()
            self._partial.unlink(missing_ok=True)


def _can_encode(name: str) -> bool:
    av = pyav()
    try:
        av.codec.Codec(name, "w")
    except ValueError:  # unknown to this build
        return False
    return True
