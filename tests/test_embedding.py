"""Features of an image-text encoder: made once, of what they depend on, in bounded memory."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cases.image_text import FakeEncoder
from wsl_zoo import embedding
from wsl_zoo.data.dataset import RecordSource
from wsl_zoo.data.manifest import Record
from wsl_zoo.data.transforms import Sample
from wsl_zoo.embedding import EmbeddingCache, encode_source, fingerprint

COLOURS = np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [100, 100, 10], [0, 90, 90]])


class Colours:
    """Images of one colour that are no files; refuses two readers at a time."""

    has_masks = has_boxes = False

    def __init__(self, colours=COLOURS, path="colour-{}", slow=False):
        self.colours, self.path, self.slow = colours, path, slow
        self.loads, self.reading = [], threading.Lock()

    def __len__(self):
        return len(self.colours)

    def load(self, index, *, annotations):
        assert not annotations
        assert self.reading.acquire(blocking=False), "two threads read one source"
        try:
            if self.slow:
                time.sleep(0.002)
            self.loads.append(index)
            image = np.full((2 + index, 3, 3), self.colours[index], np.uint8)
            return Sample(image, path=self.path.format(index), size=image.shape[:2])
        finally:
            self.reading.release()


def expected(colours=COLOURS, bias=0.01):
    features = colours / 255 + bias
    return torch.tensor(features / np.linalg.norm(features, axis=1, keepdims=True)).float()


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_images_are_encoded_in_their_order(batch_size, threads):
    source, encoder, seen = Colours(slow=True), FakeEncoder(), []
    found = encode_source(source, encoder, batch_size, threads, lambda *args: seen.append(args))
    torch.testing.assert_close(found, expected(), rtol=0, atol=1e-6)
    assert sorted(source.loads) == list(range(5))
    assert max(encoder.batches) == min(batch_size, 5)
    assert sum(encoder.batches) == 5
    assert seen[-1] == (5, 5)
    assert len(seen) == -(-5 // batch_size)
    assert threading.get_ident() not in encoder.threads


def test_no_more_than_two_batches_are_in_memory():
    source = Colours(np.repeat(COLOURS, 8, axis=0))
    encoder, ahead = FakeEncoder(), []
    inner = encoder.encode_images

    def watched(image):
        ahead.append(len(source.loads) - sum(encoder.batches))
        return inner(image)

    encoder.encode_images = watched
    encode_source(source, encoder, batch_size=4)
    assert max(ahead) <= 8
    assert len(ahead) == 10


def test_an_image_that_cannot_be_read_stops_it():
    source = Colours()
    source.load = lambda index, annotations: 1 / 0
    with pytest.raises(ZeroDivisionError):
        encode_source(source, FakeEncoder(), 2)


def files(folder, count=3):
    records = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(np.full((4, 4, 3), COLOURS[i], np.uint8)).save(path)
        records.append(Record(path, 0))
    return RecordSource(records)


def test_nothing_is_made_twice(tmp_path):
    for _ in range(2):
        source, encoder = files(tmp_path), FakeEncoder()
        for i in range(3):
            os.utime(tmp_path / f"{i}.png", (1, 1))
        cache = EmbeddingCache(encoder, tmp_path / "cache", batch_size=2)
        images, texts = cache.images("train", source), cache.texts(["red", "blue blue"])
        torch.testing.assert_close(images, expected(COLOURS[:3]), rtol=0, atol=1e-6)
        torch.testing.assert_close(texts[1], expected(np.array([[0, 0, 510]]))[0])
    assert encoder.batches == encoder.texts == []
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert names == ["reports", "train"]


class Stop(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("whole_batches", [0, 1, 3, 4])
def test_what_was_stopped_goes_on_from_the_last_part(tmp_path, monkeypatch, whole_batches):
    monkeypatch.setattr(embedding, "PART", 4)
    source = Colours(np.repeat(COLOURS, 2, axis=0))  # 10 images: parts of 4, 4 and 2, 5 batches
    stopped, inner = FakeEncoder(), FakeEncoder()

    def encode_images(image):
        if len(stopped.batches) == whole_batches:
            raise Stop
        stopped.batches.append(len(image))
        return inner.encode_images(image)

    stopped.encode_images = encode_images
    with pytest.raises(Stop):
        EmbeddingCache(stopped, tmp_path, batch_size=2).images("train", source)
    assert len(list(tmp_path.iterdir())) == whole_batches // 2
    encoder, seen = FakeEncoder(), []
    cache = EmbeddingCache(encoder, tmp_path, batch_size=2)
    found = cache.images("train", source, progress=lambda *args: seen.append(args))
    torch.testing.assert_close(found, expected(np.repeat(COLOURS, 2, axis=0)), rtol=0, atol=1e-6)
    assert sum(encoder.batches) == 10 - 4 * (whole_batches // 2)
    assert seen[-1] == (10, 10)
    (file,) = tmp_path.iterdir()
    assert torch.equal(torch.from_numpy(np.load(file)), found)


def test_texts_are_kept_by_parts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART", 2)
    texts = ["red", "blue", "green red", "green", "blue blue"]
    encoder = FakeEncoder()
    encode, calls = encoder.encode_texts, []

    def twice(texts, batch_size):
        calls.append(texts)
        if len(calls) == 3:
            raise Stop
        return encode(texts, batch_size)

    encoder.encode_texts = twice
    with pytest.raises(Stop):
        EmbeddingCache(encoder, tmp_path).texts(texts)
    found = EmbeddingCache(encoder, tmp_path).texts(texts)
    assert calls == [texts[:2], texts[2:4], texts[4:], texts[4:]]
    assert torch.equal(found, FakeEncoder().encode_texts(texts))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_part_that_another_process_removes_is_made_anew(tmp_path, monkeypatch):
    """It is removed when the whole is there: both have the same."""
    monkeypatch.setattr(embedding, "PART", 2)
    source, encoder = Colours(), FakeEncoder()
    other = EmbeddingCache(FakeEncoder(), tmp_path)
    inner, done = encoder.encode_images, []

    def encode_images(image):
        if not done:
            done.append(other.images("train", source))
        return inner(image)

    encoder.encode_images = encode_images
    found = EmbeddingCache(encoder, tmp_path).images("train", source)
    assert torch.equal(found, done[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_no_image_at_all(tmp_path):
    cache = EmbeddingCache(FakeEncoder(), tmp_path)
    assert cache.images("train", Colours(COLOURS[:0])).shape == (0, 3)
    assert cache.texts([]).shape == (0, 3)


def test_what_features_depend_on_makes_others(tmp_path):
    source = files(tmp_path)
    cache = EmbeddingCache(FakeEncoder(), tmp_path / "cache")
    cache.images("train", source)
    cache.texts(["red"])

    def made(action):
        before = len(list((tmp_path / "cache").iterdir()))
        action()
        return len(list((tmp_path / "cache").iterdir())) - before

    assert made(lambda: cache.images("train", source)) == 0
    assert made(lambda: cache.images("val", source)) == 1
    assert made(lambda: cache.texts(["red", "blue"])) == 1
    assert made(lambda: cache.texts(["red blue"])) == 1
    other = EmbeddingCache(FakeEncoder(bias=0.5), tmp_path / "cache")
    assert made(lambda: other.images("train", source)) == 1
    assert made(lambda: other.texts(["red"])) == 1


def test_the_fingerprint_of_files_reads_none_of_them(tmp_path):
    source = files(tmp_path)
    source.load = None
    first = fingerprint(source)
    assert fingerprint(source) == first
    seen = {first, fingerprint(RecordSource(source.records[::-1]))}
    seen.add(fingerprint(RecordSource(source.records[:2])))
    os.utime(tmp_path / "1.png", (5, 5))
    seen.add(fingerprint(source))
    with (tmp_path / "1.png").open("ab") as file:
        file.write(b"more")
    os.utime(tmp_path / "1.png", (5, 5))
    seen.add(fingerprint(source))
    assert len(seen) == 5


def test_the_fingerprint_of_images_that_are_no_files_is_of_their_pixels():
    first = fingerprint(Colours())
    assert fingerprint(Colours()) == first
    other = COLOURS.copy()
    other[3, 1] += 1
    assert fingerprint(Colours(other)) != first
    assert fingerprint(Colours(COLOURS[::-1])) != first
    assert fingerprint(Colours(path="other-{}")) != first


@pytest.mark.parametrize("path", ["{file}/{{:06d}}", "{file}#{{}}"], ids=["rows", "frames"])
def test_rows_and_frames_of_a_file_go_by_the_file(tmp_path, path):
    file = tmp_path / "all.h5"
    file.write_bytes(b"abc")
    path = path.format(file=file)
    first = fingerprint(Colours(path=path))
    assert fingerprint(Colours(COLOURS + 1, path)) == first  # its pixels are not asked for
    known = Colours(path=path)
    known.paths = [path.format(i) for i in range(5)]
    assert fingerprint(known) == first
    assert known.loads == []
    os.utime(file, (5, 5))
    assert fingerprint(known) != first


def test_no_batch(tmp_path):
    with pytest.raises(ValueError, match="batch_size=0 must be >= 1"):
        EmbeddingCache(FakeEncoder(), tmp_path, 0)
