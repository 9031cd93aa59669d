"""The data layer through the real commands: mixing, regularisation, evaluation, new crops, lists, caches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from projects import CLIPS, SPARE, Project
from test_app_caches import damage
from tiny import save_tiny_image_model

from simplewan.caches.store import Store
from simplewan.cli import main


def dataset_of(name: str) -> str:
    return name.partition("/")[0]


def counts(project: Project, steps: int, **keys: Any) -> Counter[str]:
    """How often each dataset is drawn in the first steps."""
    project.settings["max_train_steps"] = steps
    project.datasets[1] |= keys
    work = project.start()
    return Counter(dataset_of(name) for spec in work.drawn[:steps] for name in spec.names)


@pytest.mark.slow
def test_datasets_are_mixed_by_probability_and_evenly(project: Project) -> None:
    assert counts(project, 14) == {"wide": 10, "other": 4}
    assert counts(project, 12, probability=0.5) == {"wide": 10, "other": 2}
    project.settings["data_backend_sampling"] = "uniform"
    even = counts(project, 14, probability=1.0)
    assert even.total() == 14 and 6 <= even["wide"] <= 8  # an epoch of seven: a lot says who gets the odd one


def test_a_dataset_comes_and_goes_at_its_steps(project: Project) -> None:
    project.settings["max_train_steps"] = 8
    project.datasets[0] |= {"end_step": 3}
    project.datasets[1] |= {"start_step": 4, "repeats": 3}
    drawn = [dataset_of(spec.names[0]) for spec in project.start().drawn[:8]]
    assert drawn == ["wide"] * 3 + ["other"] * 5


def test_a_dataset_comes_and_goes_with_epochs(project: Project) -> None:
    project.settings["max_train_steps"] = 12
    project.datasets[0] |= {"end_epoch": 1}
    project.datasets[1] |= {"start_epoch": 2}
    drawn = project.start().drawn[:12]
    assert [dataset_of(spec.names[0]) for spec in drawn] == ["wide"] * 5 + ["other"] * 7


def test_a_run_that_outlasts_its_datasets_is_refused_before_it_starts(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in project.datasets[:2]:
        entry["end_step"] = 3
    project.settings["max_train_steps"] = 12
    project.write()
    assert main(["train", "--config", str(project.folder / "config.json"), f"output_dir={project.folder}/out"]) == 2
    assert "end_step 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto-weighting", "uniform"])
def test_a_run_that_is_made_longer_comes_to_later_datasets_as_a_long_one_does(mode: str, project: Project) -> None:
    project.settings |= {"max_train_steps": 12, "checkpoint_step_interval": 6, "data_backend_sampling": mode}
    project.datasets[1] |= {"start_step": 9}
    project.start()
    losses = [event["loss"] for event in project.events if event["type"] == "metric"]
    project.settings["max_train_steps"] = 6
    assert not any(name.startswith("other/") for spec in project.start().drawn[:6] for name in spec.names)
    project.settings["max_train_steps"] = 12
    assert not any("begins anew" in notice for notice in project.start(anew=False).notices)
    assert [event["loss"] for event in project.events if event["type"] == "metric"] == losses


@pytest.mark.slow
def test_buckets_have_their_own_batch_sizes(project: Project) -> None:
    project.settings |= {"bucket_batch_sizes": {"@5": 2}, "max_train_steps": 3}
    work = project.start()
    assert {len(spec.names) for spec in work.drawn} == {2}
    project.settings["bucket_batch_sizes"] = {"832x480": 2}
    assert project.start().notice("bucket_batch_sizes", 'there is no bucket "832x480"')


@pytest.mark.slow
def test_what_is_never_drawn_is_not_encoded(project: Project) -> None:
    project.forget()
    project.datasets[1]["probability"] = 0
    work = project.start()
    assert sorted(map(dataset_of, work.latent_names)) == ["wide"] * 5
    assert not any(name.startswith("other/") for name in work.text_names)
    project.datasets[1] |= {"probability": 1, "start_step": 100}
    assert project.start().latent_names == []


@pytest.mark.slow
def test_regularisation_data_pulls_back_to_the_base(project: Project) -> None:
    """On its own it leaves a fresh adapter exactly where it was: base and adapter predict the same."""
    project.settings |= {"max_train_steps": 3, "train_batch_size": 2}
    project.datasets[1] |= {"disabled": True}
    project.start()
    plain = [event["loss"] for event in project.events if event["type"] == "metric"]
    project.datasets[0] |= {"is_regularisation_data": True}
    work = project.start()
    kept = [event["loss"] for event in project.events if event["type"] == "metric"]
    assert min(plain) > 0
    assert kept == [0.0, 0.0, 0.0]
    assert all(spec.bucket.endswith(" regularisation") for spec in work.drawn)


def test_regularisation_data_shares_no_batch_with_other_data(project: Project) -> None:
    project.settings |= {"max_train_steps": 6, "train_batch_size": 2}
    project.datasets[1] |= {"is_regularisation_data": True}
    for spec in project.start().drawn:
        assert len({dataset_of(name) for name in spec.names}) == 1


def test_an_evaluation_set_is_measured_and_not_trained_on(project: Project) -> None:
    project.settings |= {"eval_steps_interval": 1, "num_eval_images": 8, "max_train_steps": 2}
    project.datasets[1] |= {"dataset_type": "eval"}
    work = project.start()
    drawn = Counter(dataset_of(name) for spec in work.drawn for name in spec.names)
    assert drawn == {"other": 2, "wide": 4}  # measured with the same two, twice; two draws are ahead
    assert [event for event in project.events if "eval" in event["type"]]


@pytest.mark.slow
def test_random_crops_are_drawn_anew_in_each_epoch_and_resumed_runs_draw_the_same(project: Project) -> None:
    project.datasets[1] |= {"disabled": True}
    project.datasets[0] |= {
        "crop": True,
        "crop_aspect": "square",
        "crop_style": "random",
        "vae_cache_clear_each_epoch": True,
        "resolution": 48,
    }
    project.settings |= {"max_train_steps": 15, "checkpoint_step_interval": 5, "eval_steps_interval": 5}
    whole = project.start()
    crops: dict[str, set[tuple[Any, Any]]] = {}
    for item in (item for group in whole.latents for item in group):
        place = item.components["crop_left"], item.components["crop_top"]
        crops.setdefault(item.name.partition(", crop")[0], set()).add(place)
    assert len(crops) == 5
    assert all(len(places) >= 3 for places in crops.values())  # three epochs, and what is drawn ahead
    assert whole.latent_names[:3] == [f"wide/clip-001.mp4{suffix}" for suffix in ("", ", crop 2", ", crop 3")]
    values = [event for event in project.events if event["type"] in ("metric", "eval")]
    losses = [(event["step"], event["loss"]) for event in values]
    project.settings["max_train_steps"] = 10
    assert project.start().latent_names == []
    project.settings["max_train_steps"] = 15
    assert project.start(anew=False).latent_names == []
    again = [event for event in project.events if event["type"] in ("metric", "eval")]
    assert [(event["step"], event["loss"]) for event in again] == losses
    # The cut of an epoch is what is trained on: with one cut for all epochs the first epoch is the same, no other is.
    project.datasets[0]["vae_cache_clear_each_epoch"] = False
    project.start()
    fixed = [event["loss"] for event in project.events if event["type"] == "metric"]
    trained = [event["loss"] for event in values if event["type"] == "metric"]
    assert fixed[:5] == trained[:5]
    assert fixed[5:10] != trained[5:10]


@pytest.mark.slow
def test_a_file_that_fails_is_put_on_a_list_and_left_alone(project: Project) -> None:
    damage(project.file("wide", "clip-013.mp4"))
    project.settings["delete_problematic_images"] = True
    work = project.start()
    listed = project.folder / "cache" / "vae" / "wide" / "problematic_files.txt"
    assert str(listed) in work.notice("left alone from now on")
    assert listed.read_text().startswith("clip-013.mp4\tis damaged")
    again = project.start()
    assert again.latent_names == []
    assert "clip-013.mp4 (is damaged" in again.notice("are left out", "broken file")
    assert project.file("wide", "clip-013.mp4").exists()
    listed.unlink()  # look at it again
    assert "wide/clip-013.mp4 is left out" in " ".join(project.start().notices)
    assert "listed in problematic_files.txt" in project.start().notice("are left out", "broken file")
    shutil.copy(project.file("wide", "clip-001.mp4"), project.file("wide", "clip-013.mp4"))  # mended
    assert not any("clip-013" in text for text in project.start().notices)


@pytest.mark.slow
def test_datasets_may_share_a_cache_of_latents(project: Project) -> None:
    project.datasets.append({"id": "latents", "dataset_type": "image_embeds", "cache_dir": str(project.folder / "all")})
    for entry in project.datasets[:2]:
        entry["image_embeds"] = "latents"
    assert len(project.start().latent_names) == 7
    assert len(Store(project.folder / "all")) == 7
    assert project.start().latent_names == []


@pytest.mark.slow
def test_packed_caches_train_to_the_same_losses(project: Project) -> None:
    project.settings["max_train_steps"] = 3
    project.start()
    plain = [event["loss"] for event in project.events if event["type"] == "metric"]
    plain_bytes = sum(path.stat().st_size for path in (project.folder / "cache" / "text").glob("shard-*"))
    project.settings["compress_disk_cache"] = True
    assert project.start().latent_names == []  # what is there serves
    shutil.rmtree(project.folder / "cache")
    assert len(project.start().latent_names) == 7
    assert [event["loss"] for event in project.events if event["type"] == "metric"] == plain
    packed = sum(path.stat().st_size for path in (project.folder / "cache" / "text").glob("shard-*"))
    assert packed < plain_bytes


def reported(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out)
    return {Path(store["place"]).name: store for store in document["stores"]}


@pytest.mark.slow
def test_the_cache_command_fills_lists_checks_and_prunes(
    project: Project, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.forget()
    assert project.cache("--json") == 0
    stores = reported(capsys)
    assert (stores["wide"]["records"], stores["other"]["records"], stores["text"]["records"]) == (5, 2, 8)
    assert all(store["missing"] == store["stale"] == [] for store in stores.values())
    assert project.start().latent_names == []  # training finds all of it

    project.file("wide", "clip-001.txt").write_text("another caption")
    project.file("wide", "clip-004.mp4").unlink()
    project.datasets[1]["resolution"] = 80
    project.add(example / "clips", "wide", SPARE)
    assert project.cache("--list", "--json") == 0
    stores = reported(capsys)
    assert stores["wide"]["missing"] == [f"wide/{SPARE}.mp4"]
    assert {(s["names"][0], s["reason"]) for s in stores["wide"]["stale"]} == {
        ("wide/clip-004.mp4", "its source is gone from the dataset")
    }
    assert len(stores["other"]["stale"]) == len(stores["other"]["missing"]) == 2
    assert all("resize_width" in record["reason"] for record in stores["other"]["stale"])
    assert ("wide/clip-001.mp4, caption 1", "prompt changed") in {
        (s["names"][0], s["reason"]) for s in stores["text"]["stale"]
    }
    assert project.cache("--list") == 0
    text = capsys.readouterr().out
    assert "its source is gone from the dataset: 1: wide/clip-004.mp4" in text
    (told,) = [line for line in text.splitlines() if "made with other settings" in line]
    assert told.startswith("  made with other settings, perhaps for another configuration: 2 records")
    assert "    other " in text and "resize_width" in text.split("    other ")[1].splitlines()[0]

    sources = sorted(path.name for path in (project.folder / "wide").iterdir())
    assert project.cache("--prune") == 2  # all of the other dataset's records are of another size
    assert "2 of 2 records are stale, more than half" in capsys.readouterr().err
    assert project.cache("--prune", "--force", "--json") == 0
    stores = reported(capsys)
    assert (stores["wide"]["records"], stores["other"]["records"]) == (1, 2)
    assert sorted(path.name for path in (project.folder / "wide").iterdir()) == sources
    assert project.cache() == 0
    assert "to be encoded" not in capsys.readouterr().out
    assert project.cache("--verify", "--json") == 0
    assert all(store["damaged"] == [] for store in reported(capsys).values())


def test_one_folder_for_texts_and_latents_holds_nothing_stale(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in project.datasets:
        entry["cache_dir" if entry["id"] == "captions" else "cache_dir_vae"] = str(project.folder / "all")
    project.settings |= {"vae_batch_size": 4, "text_encoder_batch_size": 2}
    assert project.cache("--json") == 0
    (store,) = reported(capsys).values()
    assert (store["stale"], store["missing"], store["used_records"]) == ([], [], 15)
    assert project.cache("--prune", "--json") == 0
    assert reported(capsys)["all"]["records"] == 0


def test_pruning_leaves_what_others_may_use(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.settings |= {"validation_disable": False, "validation_prompt": "a red ball"}
    project.cache()
    before = len(Store(project.folder / "cache" / "text"))
    project.settings["validation_prompt"] = "a blue ball"  # as another configuration would
    project.datasets[1]["id"] = "else"
    for clip in CLIPS["other"]:
        project.file("other", f"{clip}.txt").write_text("of another dataset")
    project.cache()
    capsys.readouterr()
    assert project.cache("--prune", "--json") == 0
    pruned = reported(capsys)["text"]
    assert (pruned["records"], pruned["records_of_others"]) == (0, 3)
    assert len(Store(project.folder / "cache" / "text")) == before + 2


def test_a_damaged_record_is_found_set_aside_and_made_anew(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.cache()
    shard = next((project.folder / "cache" / "vae" / "wide").glob("shard-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 0xFF
    shard.write_bytes(data)
    capsys.readouterr()
    assert project.cache("--verify", "--json") == 1
    stores = reported(capsys)
    assert len(stores["wide"]["damaged"]) == 1
    assert stores["wide"]["damaged"][0]["names"][0].startswith("wide/clip-")
    assert stores["other"]["damaged"] == []
    assert project.cache("--json") == 0
    assert reported(capsys)["wide"]["records"] == 5
    assert project.cache("--verify") == 0


@pytest.mark.parametrize("arguments", [["--prune", "--verify"], ["--verfy"], ["--json=perhaps"]])
def test_wrong_arguments_of_the_cache_command(
    arguments: list[str], project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.cache(*arguments) == 2
    assert "command line" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "flavour"), [("2.1", "i2v-14b-2.1"), ("2.2", "i2v-a14b-2.2-high")])
def test_first_frames_are_cached_for_image_to_video(
    kind: str, flavour: str, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    project.forget()
    model = save_tiny_image_model(tmp_path / "model", kind)
    project.settings |= {"pretrained_model_name_or_path": str(model), "model_flavour": flavour}
    pictures = project.folder / "pictures"
    pictures.mkdir()
    Image.new("RGB", (120, 100), (200, 30, 30)).save(pictures / "clip-001.png")
    project.datasets.append({"id": "pictures", "dataset_type": "conditioning", "instance_data_dir": str(pictures)})
    project.datasets[0]["conditioning_data"] = "pictures"
    assert project.cache("--json") == 0
    captured = capsys.readouterr()
    assert "4 clips have no picture in pictures and begin with their own" in captured.err
    latents = Store(project.folder / "cache" / "vae" / "wide")
    conditions = {r.names[0]: latents.get(r.key) for r in map(latents.record, latents.keys()) if "first" in r.names[0]}
    assert len(conditions) == 5
    assert conditions["wide/clip-001.mp4, first frame"].shape == conditions["wide/clip-004.mp4, first frame"].shape
    kinds = {kind for store in json.loads(captured.out)["stores"] for kind in store["kinds"]}
    assert kinds == {"condition", "latents", "text"} | ({"image"} if flavour.endswith("2.1") else set())
    embeds = project.folder / "cache" / "conditioning_image_embeds" / "wide"
    assert embeds.exists() == (kind == "2.1")
    if kind == "2.1":
        store = Store(embeds)
        assert {tuple(store.get(key).shape)[:1] for key in store.keys()} == {(257,)}  # noqa: SIM118
        own, shared = str(project.folder / "own"), str(project.folder / "shared")
        project.datasets.append({"id": "seen", "dataset_type": "conditioning_image_embeds", "cache_dir": shared})
        project.datasets[1]["conditioning_image_embeds"] = "seen"
        project.datasets[0]["cache_dir_conditioning_image_embeds"] = own
        assert project.cache() == 0
        capsys.readouterr()
        assert (len(Store(own)), len(Store(shared))) == (5, 2)
    Image.new("RGB", (120, 100), (30, 200, 30)).save(pictures / "clip-001.png")
    project.cache("--list", "--json")
    stores = json.loads(capsys.readouterr().out)["stores"]
    changed = [store for store in stores if store["missing"]]
    assert len(changed) == (2 if kind == "2.1" else 1)
    for store in changed:
        assert store["missing"] == ["wide/clip-001.mp4, first frame"]
        assert [record["reason"] for record in store["stale"]] == ["content changed"]
