"""Clips that begin with a given picture, through the real commands on tiny models; the oracle is diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from runs import records, start
from tiny import save_tiny_image_model, save_tiny_model

from simplewan.app import encoders, rendering
from simplewan.data.media import decode_frames, write_mp4
from simplewan.models.wan.vae import encode
from simplewan.validation.sampling import Conditioning, initial_noise

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
FLAVOURS = {"2.1": "i2v-14b-2.1", "2.2": "i2v-a14b-2.2", "ti2v": "ti2v-5b-2.2", "t2v": "t2v-480p-1.3b-2.1"}
PROMPT, NEGATIVE = "a red circle moves left", "static, blurry, low quality, watermark, text"
WIDTH, HEIGHT, FRAMES, STEPS = 64, 32, 5, 6
GUIDANCE = {"2.1": [5.0], "2.2": [2.0, 4.0], "ti2v": [5.0]}


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], 3))
    values[..., 0] += np.linspace(0, 120, size[0], dtype=int)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {kind: save_tiny_image_model(folder / kind, kind) for kind in ("2.1", "2.2", "ti2v")}  # type: ignore[arg-type]
    return {**made, "t2v": save_tiny_model(folder / "t2v")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), seed=5, count=3)


def write_clips(folder: Path, *, seed: int, count: int) -> Path:
    """Clips of 64x64, each of blocks of its own colours that change, with captions."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        blocks = np.random.default_rng(seed + number).integers(0, 255, (9, 8, 8, 3), np.uint8)
        write_mp4(folder / f"clip-{number:03d}.mp4", blocks.repeat(8, axis=1).repeat(8, axis=2), 16)
        (folder / f"clip-{number:03d}.txt").write_text(f"a ball moves {number}")
    return folder


class Seen:
    """What went into the VAE to be decoded, and what the experts were given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.latents: list[torch.Tensor] = []
        self.calls: list[tuple[torch.Tensor, torch.Tensor, Conditioning, str]] = []
        self.loaded: list[str] = []
        decode, predict = rendering.decode, rendering.Turns.predict

        def noting(turns: Any, *call: Any) -> torch.Tensor:
            self.calls.append(call)
            return predict(turns, *call)

        patch.setattr(rendering, "decode", lambda vae, each: (self.latents.append(each), decode(vae, each))[1])
        patch.setattr(rendering.Turns, "predict", noting)
        for name in ("load_vae", "load_image_encoder"):
            self._count(patch, name)

    def _count(self, patch: pytest.MonkeyPatch, name: str) -> None:
        load = getattr(encoders, name)
        patch.setattr(encoders, name, lambda *given: (self.loaded.append(name), load(*given))[1])

    def clear(self) -> None:
        self.latents.clear()
        self.calls.clear()
        self.loaded.clear()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def sample(models: dict[str, Path], kind: str, *words: str) -> int:
    usual = {
        "model_flavour": FLAVOURS[kind],
        "pretrained_model_name_or_path": models[kind],
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "validation_resolution": f"{WIDTH}x{HEIGHT}",
        "validation_num_video_frames": FRAMES,
        "validation_num_inference_steps": STEPS,
        "output": "clips",
    }
    given = {word.split("=")[0] for word in words}
    return start("sample", *(f"{key}={value}" for key, value in usual.items() if key not in given), *words)


def by_diffusers(folder: Path, kind: str, image: Path) -> torch.Tensor:
    pipeline = WanImageToVideoPipeline.from_pretrained(folder)  # its scheduler has shift 5
    pipeline.set_progress_bar_config(disable=True)
    channels, stride = (48, 16) if kind == "ti2v" else (16, 8)
    return pipeline(
        Image.open(image),
        PROMPT,
        negative_prompt=NEGATIVE,
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE[kind][-1],
        guidance_scale_2=GUIDANCE[kind][0] if kind == "2.2" else None,
        latents=initial_noise((1, channels, 2, HEIGHT // stride, WIDTH // stride), seed=42),
        output_type="latent",
    ).frames


@pytest.mark.parametrize("kind", ["2.1", "2.2", "ti2v"])
def test_it_renders_what_diffusers_renders(
    kind: str, models: dict[str, Path], seen: Seen, capfd: pytest.CaptureFixture[str]
) -> None:
    """Six guided steps; differences of float32 rounding stay below 1e-4 of latents up to 5."""
    image = picture(Path("first.png"))
    guidance = f"validation_guidance={json.dumps(GUIDANCE[kind])}"
    words = (f"prompt={PROMPT}", "--input_image", str(image), guidance, "validation_shift=5", "--json")
    assert sample(models, kind, *words) == 0
    theirs = by_diffusers(models[kind], kind, image)
    torch.testing.assert_close(seen.latents[0], theirs, rtol=0, atol=1e-4)
    [record] = json.loads(capfd.readouterr().out)
    assert record["image"] == str(image)
    if kind == "2.2":
        assert list(dict.fromkeys(name for *_, name in seen.calls)) == ["high", "low"]
        assert record["experts"]["high"] + record["experts"]["low"] == STEPS and record["note"] is None
    other = picture(Path("other.png"), seed=1)
    assert (by_diffusers(models[kind], kind, other) - theirs).abs().max() > 1e-3  # the picture does matter


def test_clip_is_shown_the_whole_picture_and_much_that_is_cut_off_is_told(
    models: dict[str, Path], seen: Seen, capfd: pytest.CaptureFixture[str]
) -> None:
    image = picture(Path("tall.png"), (200, 300))
    assert sample(models, "2.1", f"prompt={PROMPT}", f"input_image={image}", "validation_num_inference_steps=1") == 0
    pipeline = WanImageToVideoPipeline.from_pretrained(models["2.1"])
    given = seen.calls[0][2]
    with torch.no_grad():
        assert given.image_embeds_BND is not None
        assert torch.equal(given.image_embeds_BND, pipeline.encode_image(Image.open(image), "cpu"))
    assert "tall.png: 200x300 is cut to the shape of 64x32, which leaves 33% of it" in capfd.readouterr().err


@pytest.mark.slow
def test_each_prompt_may_have_its_picture_and_a_video_gives_its_first_frame(
    models: dict[str, Path], seen: Seen, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = np.random.default_rng(2).integers(0, 255, (5, HEIGHT, WIDTH, 3), np.uint8)
    write_mp4("first.mp4", frames, 16)
    image = picture(Path("first.png"))
    pictures = ("input_image=first.mp4", f"input_image={image}")
    quick = ("validation_num_inference_steps=1", "validation_guidance=1", "--json")
    assert sample(models, "ti2v", "prompt=a cat", "prompt=a dog", *pictures, *quick) == 0
    records = json.loads(capfd.readouterr().out)
    assert [record["image"] for record in records] == ["first.mp4", str(image)]
    vae = WanImageToVideoPipeline.from_pretrained(models["ti2v"]).vae
    for latents, shown in zip(seen.latents, (decode_frames(Path("first.mp4"))[:1], decode_frames(image)), strict=True):
        pixels = torch.from_numpy(shown).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        torch.testing.assert_close(latents[:, :, :1], encode(vae, pixels), rtol=0, atol=0.02)  # of swscale's rounding
    # One for all; the sheet has the given picture beside the frames.
    seen.clear()
    assert sample(models, "ti2v", "prompt=a cat", "prompt=a dog", f"input_image={image}", *quick) == 0
    assert torch.equal(seen.latents[0][:, :, 0], seen.latents[1][:, :, 0])
    [first, _] = json.loads(capfd.readouterr().out)
    assert sample(models, "ti2v", "prompt=a cat", *quick) == 0
    [plain] = json.loads(capfd.readouterr().out)
    assert plain["image"] is None and seen.calls[-1][1].ndim == 1  # text to video
    with Image.open(first["sheet"]) as with_picture, Image.open(plain["sheet"]) as without:
        assert with_picture.size[0] * with_picture.size[1] > without.size[0] * without.size[1]


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> None:
    text = capfd.readouterr().err
    assert all(word in text for word in words), text
    assert "Traceback" not in text


def test_what_cannot_be_is_refused_by_name(models: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    image = picture(Path("first.png"))
    Path("broken.png").write_bytes(b"no picture")
    Path("notes.txt").write_text("x")
    for kind in ("2.1", "2.2"):
        assert sample(models, kind, "prompt=a cat") == 2
        refused(capfd, "input_image", "is needed", FLAVOURS[kind], "--input_image PATH")
    assert sample(models, "t2v", "prompt=a cat", f"input_image={image}") == 2
    refused(capfd, "input_image", "from text alone")
    assert sample(models, "2.1", "prompt=a cat", "input_image=nowhere.png", "input_image=notes.txt") == 2
    refused(capfd, "nowhere.png", "is not there", "notes.txt", "neither a picture nor a video")
    assert sample(models, "2.1", *(f"prompt={n}" for n in "abc"), *[f"input_image={image}"] * 2) == 2
    refused(capfd, "is given 2 times for 3 prompts")
    assert sample(models, "2.1", "prompt=a cat", "input_image=broken.png") == 2
    refused(capfd, "broken.png", "input_image")
    assert not Path("clips").exists()


@pytest.mark.slow
def test_a_library_may_name_pictures(models: dict[str, Path], seen: Seen, capfd: pytest.CaptureFixture[str]) -> None:
    Path("lists").mkdir()
    picture(Path("lists/beside.png"))
    here = picture(Path("here.png"), seed=1)
    library = {
        "one": {"prompt": "a cat", "image": "beside.png"},
        "two": {"prompt": "a dog", "image": str(here)},
    }
    file = Path("lists/prompts.json")
    file.write_text(json.dumps(library))
    quick = ("validation_num_inference_steps=1", "validation_guidance=1", "--json")
    for words in ((f"prompts={file}",), (f"user_prompt_library={file}",)):
        assert sample(models, "2.2", *words, *quick) == 0
        images = {record["name"].split("_")[0]: record["image"] for record in json.loads(capfd.readouterr().out)}
        assert images == {"one": "lists/beside.png", "two": "here.png"}
    wrong = {"a": {"prompt": "x", "image": "gone.png"}, "b": {"promt": "x"}, "c": {"prompt": "x", "image": 3}}
    file.write_text(json.dumps(wrong))
    assert sample(models, "2.2", f"user_prompt_library={file}") == 2
    refused(capfd, "a.image", "gone.png", "is not there", "b.promt", "did you mean prompt", "c.image", "is not a path")


def test_pictures_are_counted_as_prompts_are_rendered(
    models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.json").write_text(json.dumps({"validation": "a cat", "other": "a dog"}))
    library = ("validation_prompt=a cat", "user_prompt_library=prompts.json")
    pictures = [f"input_image={picture(Path(f'{n}.png'), seed=n)}" for n in range(3)]
    assert sample(models, "ti2v", *library, *pictures) == 2
    refused(capfd, "is given 3 times for 2 prompts")
    quick = ("validation_num_inference_steps=1", "validation_guidance=1", "--json")
    assert sample(models, "ti2v", *library, *pictures[:2], *quick) == 0
    assert [record["image"] for record in json.loads(capfd.readouterr().out)] == ["0.png", "1.png"]


def test_a_picture_belongs_to_the_prompt_of_its_own_file(
    models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    image = str(picture(Path("here.png")))
    Path("one.json").write_text(json.dumps({"fox": {"prompt": "a cat", "image": image}}))
    Path("two.json").write_text(json.dumps({"fox": "a dog"}))
    quick = ("validation_num_inference_steps=1", "validation_guidance=1", "--json")
    for order in ("one", "two"), ("two", "one"):
        assert sample(models, "ti2v", *(f"prompts={name}.json" for name in order), *quick) == 0
        images = {record["prompt"]: record["image"] for record in json.loads(capfd.readouterr().out)}
        assert images == {"a cat": image, "a dog": None}
    assert sample(models, "2.2", "prompts=one.json", "prompts=two.json") == 2
    refused(capfd, "input_image is needed")


def test_a_broken_picture_of_a_library_is_named_by_its_place(
    models: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    Path("one.json").write_text(json.dumps({"fox": {"prompt": "a cat", "image": "broken.png"}}))
    for key in ("prompts", "user_prompt_library"):
        assert sample(models, "ti2v", f"{key}=one.json") == 2
        said = capfd.readouterr().err
        assert "one.json: fox.image = 'broken.png'" in said and "input_image" not in said


class Run:
    """A training run over three clips that validates once, at its end; and what it said."""

    def __init__(self, folder: Path, models: dict[str, Path], clips: Path) -> None:
        self.folder, self.models, self.clips = folder, models, clips
        self.extra: list[dict[str, Any]] = []
        self.count = 0
        self.events: list[dict[str, Any]] = []

    def __call__(self, kind: str, *overrides: str, flavour: str | None = None, code: int = 0, **settings: Any) -> None:
        self.count += 1
        out = self.folder / f"out-{self.count}"
        video = {"num_frames": 9, "min_frames": 9}
        entry = {"id": "clips", "type": "local", "dataset_type": "video", "video": video}
        data = [{**entry, "instance_data_dir": str(self.clips)}, *self.extra]
        for each in self.extra:
            if each.get("dataset_type") == "conditioning":
                data[0]["conditioning_data"] = each["id"]
        (self.folder / "data.json").write_text(json.dumps(data))
        config = {
            "model_flavour": flavour or FLAVOURS[kind],
            "pretrained_model_name_or_path": str(self.models[kind]),
            "data_backend_config": str(self.folder / "data.json"),
            "cache_dir": str(self.folder / f"cache-{kind}"),
            "output_dir": str(out),
            "resolution": 64,
            "max_train_steps": 1,
            "mixed_precision": "no",
            "vae_dtype": "fp32",
            "disable_benchmark": True,
            "validation_step_interval": 1,
            "validation_resolution": f"{WIDTH}x{HEIGHT}",
            "validation_num_video_frames": FRAMES,
            "validation_num_inference_steps": 2,
            "validation_guidance": 1,
            **settings,
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        assert start("train", "--config", str(self.folder / "config.json"), *overrides) == code
        kinds = ("validation", "error", "notice", "eval_loss")
        self.events = records(out, *kinds) if (out / "events.jsonl").exists() else []

    @property
    def rendered(self) -> dict[str, str]:
        """Name -> prompt, of the clips whose files are there."""
        done = [record for record in self.events if record["type"] == "validation"]
        assert all(Path(record["video"]).is_file() and Path(record["sheet"]).is_file() for record in done)
        assert not [record for record in self.events if record["type"] == "error"]
        return {record["name"]: record["prompt"] for record in done}

    @property
    def said(self) -> str:
        return "\n".join(record["message"] for record in self.events if record["type"] == "notice")

    def captions(self, *names: str) -> dict[str, str]:
        return {name: (self.clips / f"{name}.txt").read_text().splitlines()[0].strip() for name in names}


@pytest.fixture
def run(tmp_path: Path, models: dict[str, Path], clips: Path) -> Run:
    return Run(tmp_path, models, clips)


def names_of(clips: Path) -> list[str]:
    return sorted(path.stem for path in clips.glob("*.mp4"))


def condition_of(models: dict[str, Path], kind: str, image: np.ndarray) -> torch.Tensor:
    """The latents of a frame alone: what a condition has at frame 0, and what is held."""
    vae = WanImageToVideoPipeline.from_pretrained(models[kind]).vae
    return encode(vae, torch.from_numpy(image).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1)


def middle(frame: np.ndarray) -> np.ndarray:
    """64x64 cut to 64x32 from the middle."""
    return frame[16:48]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_prompts_of_i2v_take_first_frames_of_the_data_in_turn(
    kind: str, run: Run, seen: Seen, models: dict[str, Path], clips: Path
) -> None:
    library = Path("library.json")
    picture(Path("own.png"))
    library.write_text(json.dumps({"own": {"prompt": "a cat", "image": "own.png"}, "b": "a dog", "c": "a ball"}))
    settings = {"validation_prompt": PROMPT, "user_prompt_library": str(library), "num_eval_images": 2}
    run(kind, **settings)
    assert set(run.rendered) == {"validation", "own", "b", "c"}
    names = names_of(clips)
    assert f"take the first frames of clips/{names[0]}.mp4, clips/{names[1]}.mp4" in run.said
    frames = [middle(decode_frames(clips / f"{name}.mp4", num_frames=1)[0]) for name in names[:2]]
    expected = [
        frames[0],
        decode_frames(Path("own.png"))[0],
        frames[0],
        frames[1],
    ]  # number i mod 2, or its own
    conditions = [given.condition_BCFHW for *_, given, _ in seen.calls[::2]]
    for condition, frame in zip(conditions, expected, strict=True):
        assert condition is not None and condition.shape[2] == 2
        torch.testing.assert_close(condition[:, :, :1], condition_of(models, kind, frame), rtol=0, atol=0.05)
    assert all((given.image_embeds_BND is not None) == (kind == "2.1") for *_, given, _ in seen.calls)
    # Encoded before training, by models that the caches loaded; not again by the next run.
    assert seen.loaded.count("load_vae") == 1 and seen.loaded.count("load_image_encoder") == (kind == "2.1")
    seen.clear()
    run(kind, **settings)
    assert seen.loaded == [] and len(run.rendered) == 4


@pytest.mark.slow
def test_without_prompts_i2v_renders_only_what_is_asked_for(run: Run, clips: Path) -> None:
    run("2.2", flavour="i2v-a14b-2.2-low")
    assert run.rendered == {}
    names = names_of(clips)
    run("2.2", flavour="i2v-a14b-2.2-low", validation_using_datasets=True, num_eval_images=2)
    assert run.rendered == run.captions(*names[:2])
    notes = [record.get("note") for record in run.events if record["type"] == "validation"]
    assert notes == ["single expert"] * 2
    run("2.2", flavour="i2v-a14b-2.2-low", validation_using_datasets=True, wan_validation_load_other_stage=True)
    assert len(run.rendered) == 3
    assert [record.get("note") for record in run.events if record["type"] == "validation"] == [None] * 3


@pytest.mark.slow
def test_a_named_dataset_gives_frames_and_is_what_the_loss_is_measured_on(
    run: Run, seen: Seen, models: dict[str, Path], tmp_path: Path
) -> None:
    held_back = tmp_path / "held"
    write_clips(held_back, seed=9, count=2)
    entry = {"type": "local", "dataset_type": "eval", "video": {"num_frames": 9, "min_frames": 9}}
    run.extra = [
        {**entry, "id": "held", "instance_data_dir": str(held_back)},
        {**entry, "id": "other", "instance_data_dir": str(run.clips)},
    ]
    measured = {"validation_using_datasets": True, "eval_dataset_id": "held", "eval_steps_interval": 1}
    run("ti2v", **measured, validation_prompt=PROMPT)
    names = names_of(held_back)
    assert set(run.rendered) == {"validation", *names}
    assert 'dataset "other": is not used: eval_dataset_id is held' in run.said
    frame = middle(decode_frames(held_back / f"{names[0]}.mp4", num_frames=1)[0])
    for latents in seen.latents[:2]:  # the prompt, and the first clip's own caption
        torch.testing.assert_close(latents[:, :, :1], condition_of(models, "ti2v", frame), rtol=0, atol=0.05)
    loss = [record["loss"] for record in run.events if record["type"] == "eval_loss"]
    run("ti2v", **{**measured, "eval_dataset_id": "other"}, validation_disable=True)
    other = [record["loss"] for record in run.events if record["type"] == "eval_loss"]
    assert loss and other and loss[0] != other[0]
    run("ti2v", **{**measured, "eval_dataset_id": "clips"}, validation_disable=True)
    assert [record["loss"] for record in run.events if record["type"] == "eval_loss"] == other  # the same files


def test_an_eval_dataset_that_is_not_there_is_an_error_at_load(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("t2v", eval_dataset_id="clip", code=2)
    refused(capfd, "eval_dataset_id", 'did you mean "clips"?')


def test_a_picture_that_does_not_decode_ends_a_run_before_anything_is_encoded(
    run: Run, seen: Seen, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken.png").write_bytes(b"no picture")
    Path("library.json").write_text(json.dumps({"own": {"prompt": "a cat", "image": "broken.png"}}))
    run("2.2", user_prompt_library="library.json", code=2)
    refused(capfd, "library.json", "own.image", "broken.png", "is not a picture that can be read")
    assert seen.loaded == []


@pytest.mark.slow
def test_ti2v_renders_text_to_video_unless_asked(run: Run, seen: Seen) -> None:
    run("ti2v", validation_prompt=PROMPT)
    assert set(run.rendered) == {"validation"} and all(timesteps.ndim == 1 for _, timesteps, *_ in seen.calls)
    seen.clear()
    run("ti2v", validation_prompt=PROMPT, validation_using_datasets=True, num_eval_images=1)
    assert len(run.rendered) == 2 and all(timesteps.ndim == 2 for _, timesteps, *_ in seen.calls)


@pytest.mark.slow
def test_text_to_video_takes_the_captions_alone(run: Run, seen: Seen, clips: Path) -> None:
    picture(Path("own.png"))
    Path("library.json").write_text(json.dumps({"own": {"prompt": "a cat", "image": "own.png"}}))
    run("t2v", user_prompt_library="library.json", validation_using_datasets=True)
    names = names_of(clips)
    assert run.rendered == {"own": "a cat", **run.captions(*names)}
    assert "takes no picture, their captions alone are used" in run.said and "those of the prompts own" in run.said
    assert all(given.condition_BCFHW is None for *_, given, _ in seen.calls)


@pytest.mark.slow
def test_linked_pictures_are_the_first_frames(
    run: Run,
    seen: Seen,
    models: dict[str, Path],
    clips: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = names_of(clips)
    for number, name in enumerate(names):
        picture(pictures / f"{name}.png", (64, 64), seed=10 + number)
    linked = {"id": "pictures", "type": "local", "dataset_type": "conditioning", "instance_data_dir": str(pictures)}
    run.extra = [linked, {"id": "seen", "type": "local", "dataset_type": "conditioning_image_embeds"}]
    run("2.2", validation_using_datasets=True, num_eval_images=1)
    assert set(run.rendered) == {names[0]}
    condition = seen.calls[0][2].condition_BCFHW
    expected = condition_of(models, "2.2", middle(decode_frames(pictures / f"{names[0]}.png")[0]))
    assert condition is not None
    torch.testing.assert_close(condition[:, :, :1], expected, rtol=0, atol=0.05)
    assert 'dataset "seen": is not used: i2v-a14b-2.2 takes no CLIP embeddings' in run.said
    capfd.readouterr()
    assert start("cache", "--config", "config.json", "--list", "--json") == 0
    stores = {Path(store["place"]).name: store for store in json.loads(capfd.readouterr().out)["stores"]}
    assert stores["validation"]["used_records"] == 1
    assert all(store["missing_records"] == store["stale_records"] == 0 for store in stores.values())
