"""Training of models that are given a first frame: what they are given, and that it matters."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import losses, notices, start
from safetensors.torch import load_file
from tiny import save_tiny_image_model

from simplewan.app import roles
from simplewan.app.preparing import eval_batches
from simplewan.batches.batch import Batch
from simplewan.data.media import decode_frames
from simplewan.mini.clips import write_dataset
from simplewan.models.wan.conditioning import extra_channels

FLAVOURS = {"2.1": "i2v-14b-2.1", "2.2": "i2v-a14b-2.2-low", "ti2v": "ti2v-5b-2.2"}
ENDING = {"2.1": "", "2.2": "_low_noise", "ti2v": ""}


class Runs:
    """Runs over three drawn clips, and what the transformer was given in them."""

    def __init__(self, folder: Path, clips: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.clips = folder, clips
        self.calls: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []
        self.batches: list[Batch] = []
        self.notices: list[str] = []
        self.extra: list[dict[str, Any]] = []
        self.count = 0
        forward, to = roles.WanForward.__call__, Batch.to

        def noting(this: Any, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, **how: Any) -> Any:
            self.calls.append((latents.detach().clone(), timesteps.clone(), how))
            return forward(this, latents, timesteps, text, **how)

        def noting_batch(this: Batch, device: Any) -> Batch:
            self.batches.append(this)
            return to(this, device)

        patch.setattr(roles.WanForward, "__call__", noting)
        patch.setattr(Batch, "to", noting_batch)

    def __call__(self, kind: str, *overrides: str, steps: int = 2, **entry: Any) -> list[float]:
        """Train a tiny model of a kind; the losses of its steps. `calls` and `batches` are of the last run."""
        self.calls.clear()
        self.batches.clear()
        self.count += 1
        out, model = self.folder / f"out-{self.count}", self.folder / f"model-{kind}"
        if not model.exists():
            save_tiny_image_model(model, kind)  # type: ignore[arg-type]
        video = {"num_frames": 9, "min_frames": 9}
        data = [
            {"id": "clips", "type": "local", "dataset_type": "video", "video": video, **entry},
            {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True},
            *self.extra,
        ]
        data[0].setdefault("instance_data_dir", str(self.clips))
        (self.folder / "data.json").write_text(json.dumps(data))
        settings = {
            "model_flavour": FLAVOURS[kind],
            "pretrained_model_name_or_path": str(model),
            "data_backend_config": str(self.folder / "data.json"),
            "cache_dir": str(self.folder / f"cache-{kind}"),
            "output_dir": str(out),
            "resolution": 64,
            "max_train_steps": steps,
            "mixed_precision": "no",
            "learning_rate": 1e-3,
            "validation_disable": True,
        }
        (self.folder / "config.json").write_text(json.dumps(settings))
        assert start("train", "--config", str(self.folder / "config.json"), *overrides) == 0
        weights = load_file(out / f"pytorch_lora_weights{ENDING[kind]}.safetensors")
        assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
        self.notices = notices(out)
        return losses(out)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder, seed=5, count=3)
    return folder


@pytest.fixture
def runs(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> Runs:
    return Runs(tmp_path, clips, monkeypatch)


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_image_to_video_models_are_given_mask_and_first_frame(kind: str, runs: Runs) -> None:
    assert len(runs(kind)) == 2
    for (latents, timesteps, how), batch in zip(runs.calls, runs.batches, strict=True):
        assert batch.condition_BCFHW is not None and batch.first_frame_probabilities == ()
        assert latents.shape[1] == 36 and timesteps.shape == latents.shape[:1]
        assert torch.equal(latents[:, 16:], extra_channels(batch.condition_BCFHW.float()))
        # The VAE is causal: latent frame 0 of the condition is that of the clip, to the rounding of the cache.
        torch.testing.assert_close(batch.condition_BCFHW[:, :, 0], batch.latents_BCFHW[:, :, 0], atol=0.02, rtol=0.02)
        assert not torch.equal(batch.condition_BCFHW[:, :, 1:], batch.latents_BCFHW[:, :, 1:])
        image = how["encoder_hidden_states_image"]
        assert (image is None) == (kind == "2.2")
        assert image is None or image.shape[1] == 257


def held(runs: Runs) -> list[bool]:
    """Of each sample that was seen whether its first latent frame was given; all else is checked."""
    found = []
    for (latents, timesteps, _how), batch in zip(runs.calls, runs.batches, strict=True):
        timesteps_BF = timesteps if timesteps.ndim == 2 else timesteps[:, None].expand(-1, latents.shape[2])
        assert timesteps_BF.shape == (latents.shape[0], latents.shape[2])
        for sample, clean, times in zip(latents, batch.latents_BCFHW.float(), timesteps_BF, strict=True):
            is_clean = torch.equal(sample[:, 0], clean[:, 0])
            assert (times[0] == 0) == is_clean
            assert (times[1:] == times[-1]).all() and times[-1] > 0
            assert clean.shape[1] == 1 or not torch.equal(sample[:, 1:], clean[:, 1:])
            found.append(is_clean)
    return found


@pytest.mark.slow
def test_ti2v_is_trained_as_text_to_video_image_to_video_or_both(runs: Runs) -> None:
    runs("ti2v", "i2v_probability=1")
    assert held(runs) == [True, True]
    runs("ti2v", "i2v_probability=0")
    assert held(runs) == [False, False] and all(timesteps.ndim == 1 for _, timesteps, _ in runs.calls)
    first = runs("ti2v", steps=8)
    assert set(held(runs)) == {True, False}
    assert runs("ti2v", steps=8) == first
    video = {"num_frames": 9, "min_frames": 9}
    runs("ti2v", "i2v_probability=1", video={**video, "is_i2v": False})
    assert held(runs) == [False, False]
    runs("ti2v", "i2v_probability=0", video={**video, "is_i2v": True})
    assert held(runs) == [True, True]


def test_ti2v_may_be_given_one_timestep_a_sample(runs: Runs) -> None:
    per_frame = runs("ti2v", "i2v_probability=1")
    last = [timesteps[:, -1] for _, timesteps, _ in runs.calls]
    one = runs("ti2v", "i2v_probability=1", "wan_force_2_1_time_embedding=true")
    assert all(torch.equal(a, b) for a, (_, b, _) in zip(last, runs.calls, strict=True))
    assert per_frame != one


@pytest.mark.slow
def test_pictures_train_as_clips_of_one_frame(runs: Runs, tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, colour in enumerate(((200, 30, 30), (30, 60, 200))):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a red square")
    entry = {"dataset_type": "image", "instance_data_dir": str(pictures)}
    runs("ti2v", "i2v_probability=1", **entry)
    assert held(runs) == [False, False]  # there would be nothing left to learn
    assert all(latents.shape[2] == 1 for latents, _, _ in runs.calls)
    runs("2.2", **entry)
    assert all(latents.shape[1:3] == (36, 1) for latents, _, _ in runs.calls)
    assert any("copy" in notice for notice in runs.notices)


RENEWED = {"crop": True, "crop_style": "random", "crop_aspect": "square", "vae_cache_clear_each_epoch": True}


def begins_as_its_clip(batch: Batch, *, tolerance: float = 0.02) -> torch.Tensor:
    """Latent frame 0 of the condition, which is that of the clip."""
    assert batch.condition_BCFHW is not None
    first, own = batch.condition_BCFHW[:, :, 0], batch.latents_BCFHW[:, :, 0]
    torch.testing.assert_close(first, own, atol=tolerance, rtol=tolerance)
    return first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_a_crop_of_its_own_in_each_epoch_has_its_own_first_frame(kind: str, runs: Runs) -> None:
    runs(kind, steps=9, resolution=48, **RENEWED)
    seen: dict[str, list[torch.Tensor]] = {}
    shown: dict[str, list[torch.Tensor]] = {}
    for batch in runs.batches:
        seen.setdefault(batch.names[0], []).append(begins_as_its_clip(batch))
        if batch.image_embeds_BND is not None:
            shown.setdefault(batch.names[0], []).append(batch.image_embeds_BND)
    assert bool(shown) == (kind == "2.1")
    for found in (seen, shown) if shown else (seen,):
        assert any(not torch.equal(first, other) for first, *others in found.values() for other in others)


def link_first_frames(runs: Runs, *, scale: int = 1) -> dict[str, str]:
    """Pictures that are the clips' own first frames; what the dataset of the clips says of them."""
    from PIL import Image

    pictures = runs.folder / f"pictures-{scale}"
    pictures.mkdir()
    for clip in runs.clips.glob("*.mp4"):
        frame = Image.fromarray(decode_frames(clip)[0])
        frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST).save(
            pictures / f"{clip.stem}.png"
        )
    runs.extra = [{"id": "pictures", "dataset_type": "conditioning", "instance_data_dir": str(pictures)}]
    return {"conditioning_data": "pictures"}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2])
def test_a_linked_picture_is_cut_as_its_clip_is(scale: int, runs: Runs) -> None:
    linked = link_first_frames(runs, scale=scale)
    for crop in ({**RENEWED, "crop_style": "corner", "vae_cache_clear_each_epoch": False}, RENEWED):
        runs("2.2", steps=4, resolution=48, **crop, **linked)
        assert len({batch.names[0] for batch in runs.batches}) == 3
        for batch in runs.batches:
            begins_as_its_clip(batch, tolerance=0.02 * scale)
        assert not any("shape" in notice or "begin with their own" in notice for notice in runs.notices)


def said(runs: Runs, *words: str) -> str:
    """The one notice that has all these words."""
    [found] = [notice for notice in runs.notices if all(word in notice for word in words)]
    return found


@pytest.mark.slow
def test_pictures_begin_whole_files_only_and_what_is_not_usable_is_said(runs: Runs) -> None:
    from PIL import Image

    linked = link_first_frames(runs)
    first, second, third = sorted((runs.folder / "pictures-1").iterdir())
    more = runs.folder / "more"
    more.mkdir()
    Image.new("RGB", (200, 60), (9, 9, 99)).save(more / second.name)
    second.write_bytes(b"no picture")
    third.unlink()
    runs.extra.append({"id": "more", "dataset_type": "conditioning", "instance_data_dir": str(more)})
    video = {"num_frames": 5, "min_frames": 5, "extraction": "chunk"}
    runs("2.2", steps=8, video=video, conditioning_data=[*linked.values(), "more"])
    assert second.name in said(runs, "pictures: 1 of 2 files are left out")
    begin = said(runs, "have no picture in pictures and more")
    assert third.stem in begin and first.stem not in begin and second.stem not in begin
    within = said(runs, "do not start where their file does")
    assert first.stem in within and second.stem in within and third.stem not in within
    assert second.name in said(runs, "1 pictures in pictures and more have another shape")
    for batch in runs.batches:
        if second.stem not in batch.names[0]:
            begins_as_its_clip(batch)


def test_what_could_not_be_encoded_is_not_measured() -> None:
    samples = [SimpleNamespace(id=name, clip=SimpleNamespace(bucket="64x64@9")) for name in "abc"]
    caches = SimpleNamespace(latents=dict.fromkeys("abc"), failed={"a": "its first frame is damaged"})
    drawn: list[tuple[str, ...]] = []

    class Fetching:
        gathered = SimpleNamespace(evaluation=lambda _named: samples)

        def __init__(self) -> None:
            self.caches = caches

        def __call__(self, spec: Any) -> None:
            drawn.append(spec.names)

    validation = SimpleNamespace(eval_steps_interval=1, eval_dataset_id=None, num_eval_images=2)
    context: Any = SimpleNamespace(options=SimpleNamespace(validation=validation))
    fetch: Any = Fetching()
    eval_batches(context, fetch)
    assert drawn == [("b",), ("c",)]
