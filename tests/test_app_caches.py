"""The caches through the real command: what changed is encoded again, with a reason, and nothing else is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import CLIPS, SPARE, Project
from safetensors.torch import load_file, save_file

from simplewan.app import encoders
from simplewan.caches.groups import encode_groups
from simplewan.caches.keys import Item
from simplewan.caches.store import Store


def test_a_second_start_encodes_and_opens_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    first = project.start()
    assert len(first.probed) == 7
    assert first.text_names == first.latent_names == []  # the copy of a cache serves wherever it lies

    def fail(*_arguments: object) -> None:
        raise AssertionError("no model is needed")

    monkeypatch.setattr(encoders, "load_vae", fail)
    monkeypatch.setattr(encoders, "load_text_encoder", fail)
    second = project.start()
    assert second.probed == second.opened == second.text_names == second.latent_names == []


def test_an_edited_caption_encodes_one_text_and_says_which(project: Project) -> None:
    project.file("wide", "clip-004.txt").write_text("a green dog barks at a moon\n")
    work = project.start()
    assert work.text_names == ["wide/clip-004.mp4, caption 1"]
    assert work.latent_names == []
    notice = work.notice("Caching text", "1 of 8 are encoded again")
    assert notice.endswith("because prompt changed (1): wide/clip-004.mp4, caption 1")
    assert "1 encoded" in work.notice("text:", "already cached")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "components"),
    [
        ({"resolution": 80}, ("width", "height", "resize_width")),
        ({"crop": True, "crop_aspect": "square"}, ("width", "crop_left")),
    ],
    ids=["resolution", "crop"],
)
def test_another_size_encodes_that_datasets_latents_and_says_why(
    change: dict[str, Any], components: tuple[str, ...], project: Project
) -> None:
    before = dict(project.datasets[0])
    project.datasets[0] |= change
    work = project.start()
    assert work.text_names == []
    assert work.latent_names == [f"wide/{clip}.mp4" for clip in CLIPS["wide"]]
    notice = work.notice("Caching latents of wide", "5 of 5 are encoded again")
    assert all(component in notice for component in components)
    assert not any("Caching latents of other" in text for text in work.notices)
    project.datasets[0] = before
    assert project.start().latent_names == []  # nothing was thrown away


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_new_clip_encodes_itself_and_at_most_its_group(batch_size: int, project: Project, example: Path) -> None:
    project.settings["vae_batch_size"] = batch_size
    if batch_size > 1:
        project.start()
    project.add(example / "clips", "wide", SPARE)
    work = project.start()
    new = f"wide/{SPARE}.mp4"
    assert work.text_names == [f"{new}, caption 1"]
    if batch_size == 1:
        assert work.latent_names == [new]
        return
    # The groups that the new clip made or split, and none of the others.
    store = Store(project.folder / "cache" / "vae" / "wide")
    newest = [store.newest(f"wide/{clip}.mp4") for clip in (*CLIPS["wide"], SPARE)]
    planned = [Item(record.names[0], record.components, "80x48@5") for record in newest if record is not None]
    without = encode_groups([item for item in planned if item.name != new], batch_size=batch_size)
    kept = {old.keys for old in without}
    made = [group for group in encode_groups(planned, batch_size=batch_size) if group.keys not in kept]
    assert work.latent_names == sorted(item.name for group in made for item in group.items)
    assert new in work.latent_names
    assert len(work.latent_names) < len(planned)


def test_broken_clips_are_named_and_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.file("wide", "clip-007.mp4").write_bytes(b"this is no video" * 99)
    damage(project.file("wide", "clip-013.mp4"))
    work = project.start()
    assert "does not decode" in work.notice("clip-007.mp4")
    notice = work.notice("wide/clip-013.mp4 is left out")
    assert "is damaged" in notice
    again = project.start()
    assert again.notice("wide/clip-013.mp4 is left out") == notice
    assert again.notice("clip-007.mp4") == work.notice("clip-007.mp4")


def damage(path: Path) -> None:
    """Overwrite some of a later frame, which shows only when it is decoded."""
    import av

    with av.open(str(path)) as container:
        packet = sorted((p for p in container.demux(video=0) if p.size), key=lambda p: p.pts)[3]
    data = bytearray(path.read_bytes())
    for position in range(packet.pos + packet.size // 3, packet.pos + packet.size * 2 // 3):
        data[position] ^= 0x5A
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut off", "overwritten"])
def test_a_damaged_shard_is_noticed_and_encoded_again_to_the_same_bits(how: str, project: Project) -> None:
    before = project.records("vae/wide")
    (shard,) = (project.folder / "cache" / "vae" / "wide").glob("shard-*.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] if how == "cut off" else b"\0" * 64 + data[64:])
    work = project.start()
    assert work.notice(shard.name, "is damaged", "are encoded again")
    assert len(work.latent_names) == 5
    assert work.text_names == []
    assert project.records("vae/wide") == before
    assert not any("is damaged" in text for text in project.start().notices)


def test_a_touched_file_is_looked_at_and_not_encoded(project: Project) -> None:
    project.start()
    os.utime(project.file("wide", "clip-010.mp4"), (1, 1))
    work = project.start()
    assert work.probed == ["clip-010.mp4"]
    assert work.opened == ["clip-010.mp4"]  # hashed
    assert work.text_names == work.latent_names == []


@pytest.mark.slow
def test_another_vae_encodes_all_latents(project: Project, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(project.settings["pretrained_model_name_or_path"], model)
    project.settings["pretrained_model_name_or_path"] = str(model)
    assert project.start().latent_names == []  # the same model in another place
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = next(key for key in sorted(state) if key.startswith("encoder") and key.endswith("weight"))
    save_file({**state, name: state[name] + torch.full_like(state[name], 0.01)}, path, metadata={"format": "pt"})
    work = project.start()
    assert len(work.latent_names) == 7
    assert work.text_names == []
    assert "because vae changed (5)" in work.notice("Caching latents of wide")
    assert "because vae changed (2)" in work.notice("Caching latents of other")
