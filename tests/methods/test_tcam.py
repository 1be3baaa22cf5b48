import pytest
import torch
from pytorch_lightning import Callback

from tests.cases import tiny_data, trainer
from tests.methods.clips import Shots
from tests.methods.test_fcam import model_of
from wsl_zoo.cams.temporal import temporal_max
from wsl_zoo.methods import FCAM, TCAM

DIRECTIONS = ["before", "after", "both", "instant"]


class Steps(Callback):
    """Keeps loss terms and class maps of every training step."""

    def __init__(self):
        self.losses, self.cams, self.frames = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.cams.append(batch["cam"])
        self.frames.append(batch["index"])


def trained(model, tmp_path, data, epochs=2):
    steps = Steps()
    trainer(tmp_path, max_epochs=epochs, limit_val_batches=0, callbacks=[steps]).fit(model, data)
    return steps


@pytest.mark.parametrize("changes", [{"neighbors": 0}, {"neighbors": 3, "direction": "instant"}])
def test_without_neighbours_it_is_fcam_with_that_sampler(stage1, tmp_path, changes):
    ours = trained(model_of(stage1, TCAM, **changes), tmp_path, Shots())
    fcam = model_of(stage1, FCAM, sampler="weighted", size_weight=0.01, step_size=15, gamma=0.9)
    theirs = trained(fcam, tmp_path, Shots())
    assert ours.losses == theirs.losses
    pooled = trained(model_of(stage1, TCAM, neighbors=1), tmp_path, Shots())
    assert any(not torch.equal(a, b) for a, b in zip(pooled.cams, ours.cams, strict=True))


def maps_of_all(stage1, data):
    """The seeder's maps of all frames, one after the other."""
    model = model_of(stage1, FCAM)
    maps = [model.seed_maps(data.on_after_batch_transfer(b, 0)) for b in data.whole_images("train")]
    return torch.cat(maps)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("n", [1, 2])
def test_seeds_come_from_the_pooled_maps_of_the_shot(stage1, tmp_path, direction, n):
    data = Shots()
    steps = trained(model_of(stage1, TCAM, neighbors=n, direction=direction), tmp_path, data, 1)
    own = maps_of_all(stage1, data)
    expected = temporal_max(own, data.shots(), n, direction)
    assert torch.equal(expected, own) == (direction == "instant")
    (cam,), (frames,) = steps.cams, steps.frames
    assert len(frames) == 4  # one frame of every shot
    torch.testing.assert_close(data.cams[frames], expected[frames], atol=2e-3, rtol=0)
    resized = torch.nn.functional.interpolate(expected[frames][:, None], (32, 32), mode="bilinear")
    torch.testing.assert_close(cam, resized[:, 0], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("direction", "offsets"),
    [("before", (-1, 0)), ("after", (0, 1)), ("both", (-1, 0, 1)), ("instant", (0,))],
)
def test_only_the_maps_that_seeds_come_from_are_read(stage1, tmp_path, direction, offsets):
    data, epochs = Shots(length=12, step=1), 2
    read = []
    loader = data.whole_images
    data.whole_images = lambda split, only=None: read.append(only) or loader(split, only)
    model = model_of(stage1, TCAM, direction=direction)
    steps = trained(model, tmp_path, data, epochs)
    drawn = torch.cat(steps.frames).tolist()
    assert data.drawn(epochs) == sorted(set(drawn))
    wanted = {t + j for t in drawn for j in offsets if (t + j) // 12 == t // 12}
    assert read == [sorted(wanted)]
    assert len(wanted) < len(data)


def test_pooled_maps_follow_the_geometry_of_the_frame(stage1, tmp_path):
    """A flipped frame gets flipped maxima."""
    data = Shots(hflip=1.0)
    steps = trained(model_of(stage1, TCAM, neighbors=2), tmp_path, data, 1)
    (cam,), (frames,) = steps.cams, steps.frames
    small = data.cams[frames][:, None]
    resized = torch.nn.functional.interpolate(small, (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(cam, resized.flip(-1), atol=1e-5, rtol=0)


def test_a_moving_square_gets_seeds_at_all_its_places(stage1):
    data = Shots()
    cams = torch.stack([torch.from_numpy(data.load(i, annotations=True).mask) for i in range(4)])
    pooled = temporal_max(cams.float(), [range(4)], 2)
    model = model_of(stage1, TCAM, neighbors=2, sampler_args={"ksz": 1, "fg": 3, "max_p": 1.0})
    found = torch.zeros(32, 32)
    for seed in range(60):
        seeds = model.sampler(pooled[3:], torch.Generator().manual_seed(seed))
        assert int((seeds == 1).sum()) == 3
        assert (pooled[3:][seeds == 1] == 1).all()  # the region holds all seeds
        found += (seeds == 1)[0]
    for frame in (1, 2, 3):
        assert found[cams[frame] == 1].sum() > 20
    assert found[cams[0] == 1].sum() < 60  # but for the overlap with the next place
    assert found[:, :8].sum() == 0  # where only frame 0 has it


def test_the_published_defaults():
    model = TCAM()
    assert (model.sampler.fg, model.sampler.bg, model.sampler.ksz) == (1, 1, 3)
    assert (model.sampler.max_p, model.sampler.min_p, model.sampler.roi) == (0.6, 0.1, "all")
    assert model.sampler.roi_shape == "mask"
    h = model.hparams
    assert (h["neighbors"], h["direction"], h["crf_weight"], h["size_weight"]) == (
        1, "before", 2e-9, 0.01,
    )  # fmt: skip
    assert (h["lr"], h["step_size"], h["gamma"]) == (0.01, 15, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbors": -1}, "neighbors=-1"),
        ({"direction": "left"}, "direction='left' must be one of before, after, both, instant"),
        ({"cam_source": "live"}, r'cam_source="live" knows no neighbours \(neighbors=1\)'),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TCAM(**arguments)


def test_live_maps_go_without_neighbours():
    assert TCAM(cam_source="live", neighbors=0).hparams["cam_source"] == "live"


def test_single_images_are_refused_but_without_neighbours(stage1, tmp_path):
    run = trainer(tmp_path, limit_val_batches=0)
    with pytest.raises(ValueError, match="SyntheticData is no data set of videos; set neighbors"):
        run.fit(model_of(stage1, TCAM), tiny_data())
    trainer(tmp_path, limit_val_batches=0).fit(model_of(stage1, TCAM, neighbors=0), tiny_data())


def test_videos_are_judged_by_corloc(stage1, tmp_path):
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(model_of(stage1, TCAM), Shots())
    metrics = run.callback_metrics
    assert metrics["val/corloc_class_oracle"] >= metrics["val/corloc_oracle"]
    assert "val/corloc" not in metrics  # no threshold was chosen before
