"""SIGKILL at exact points of caching, training, saving and ending: what is resumed ends with the same bits."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killing import Point, attempt, half_a_folder, half_a_line, train, train_with_small_flushes
from runs import records

from simplewan.caches.shards import digest
from simplewan.caches.store import Store
from simplewan.checkpoints import CheckpointStore
from simplewan.events import silent

KILLED = -signal.SIGKILL
QUIET = ("validation_disable=true", "eval_steps_interval=0", "checkpoint_step_interval=100")
Train = Callable[..., int]


@pytest.fixture
def run(example: Path, tmp_path: Path) -> Train:
    """Train in a process of its own; the exit code, `KILLED` when it died at `point`."""

    def train_in_process(output: str, *arguments: str, point: Point | None = None) -> int:
        environ = {"SIMPLEWAN_CACHE": str(example.parents[1])}
        return attempt(
            train, "example=mini", f"output_dir={tmp_path / output}", *arguments, point=point, environ=environ
        )

    return train_in_process


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on where it was stopped."""
    measured = [(record["step"], record["role"], record["loss"]) for record in records(folder, "eval_loss")]
    return {
        "weights": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.glob("pytorch_lora_weights_*.safetensors")
        },
        "losses": [(record["step"], record["loss"], record["grad_norm"]) for record in records(folder, "metric")],
        "fixed samples": measured,
        "clips": sorted((record["step"], record["name"]) for record in records(folder, "validation")),
        "saved": sorted({record["step"] for record in records(folder, "checkpoint")}),
        "checkpoints": sorted(path.name for path in folder.glob("*checkpoint-*")),
        "clip files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("validation/*/*")
        },
        "left over": [path.name for path in folder.rglob(".*") if path.name != ".lock"],
    }


def save_three(folder: str) -> None:
    """Save checkpoints 1 to 3, keeping two."""
    checkpoints = CheckpointStore(Path(folder), limit=2, emit=silent)
    for step in (1, 2, 3):
        checkpoints.save(step, parts(step), record={"seed": 42})


def parts(step: int) -> dict[str, dict]:
    return {"weights": {"a": torch.full((3,), float(step))}, "position": {"step": step}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "newest"),
    [
        (Point("simplewan.checkpoints.store:write_part", call=5), 2),
        (Point("simplewan.checkpoints.store:write_part", call=6, after=True), 2),
        (Point("simplewan.checkpoints.store:write_json", call=3, match="manifest.json"), 2),
        (Point("simplewan.checkpoints.store:write_json", call=3, match="manifest.json", after=True), 2),
        (Point("simplewan.checkpoints.store:CheckpointStore.rotate", call=3), 3),
        (Point("shutil:rmtree", match=".trash", last_act=half_a_folder), 3),
    ],
    ids=["first part", "parts written", "before the manifest", "before the rename", "renamed", "half rotated"],
)
def test_a_killed_save_leaves_whole_checkpoints_alone(point: Point, newest: int, tmp_path: Path) -> None:
    assert attempt(save_three, str(tmp_path), point=point, environ={}) == KILLED
    checkpoints = CheckpointStore(tmp_path, limit=2, emit=silent)
    found = checkpoints.find("latest")
    assert found == (checkpoints.path(newest), newest)
    assert checkpoints.read(found[0], "weights")["a"].tolist() == [newest] * 3
    assert all(checkpoints.verify(checkpoints.path(step)) == step for step in checkpoints.steps())
    assert not list(tmp_path.glob(".*"))
    checkpoints.rotate(newest)
    assert checkpoints.steps() == [newest - 1, newest]


BOTH_POINTS = (
    Point("simplewan.models.placement:FileBlocks.__call__", call=1),
    Point("simplewan.models.placement:Shelf.park", call=5),  # with one of its two shelves written
    Point("simplewan.models.placement:Placement.park", call=2, after=True),
    Point("simplewan.models.placement:Shelf.fetch", call=2),
    Point("simplewan.checkpoints.store:write_part", match="low.optimizer"),
    Point("simplewan.objectives.supervised:SupervisedFlowMatching.loss", call=3),
    Point("simplewan.app.hooks:FinishHook.at_end"),
)


@pytest.mark.slow
def test_two_experts_that_are_killed_anywhere_end_as_if_they_never_were(run: Train, tmp_path: Path) -> None:
    arguments = (*QUIET, "model_flavour=t2v-mini", "max_train_steps=12", "expert_share=0.5", "expert_run_steps=2")
    arguments = (*arguments, "idle_expert=disk", "checkpoint_step_interval=1", "lora_rank_high=4", "train_batch_size=2")
    assert run("straight", *arguments) == 0
    for point in BOTH_POINTS:
        assert run("killed", *arguments, point=point) == KILLED, point
    assert run("killed", *arguments) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


@pytest.mark.slow
def test_a_kill_between_micro_batches_changes_no_bit(run: Train, tmp_path: Path) -> None:
    arguments = (*QUIET, "max_train_steps=3", "checkpoint_step_interval=1", "train_batch_size=2")
    arguments = (*arguments, "gradient_accumulation_steps=2", "lora_dropout=0.2")
    assert run("straight", *arguments) == 0
    loss = "simplewan.objectives.supervised:SupervisedFlowMatching.loss"
    assert run("killed", *arguments, point=Point(loss, call=3, after=True)) == KILLED
    assert run("killed", *arguments) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


FULL = (
    *("max_train_steps=6", "train_batch_size=2", "gradient_accumulation_steps=2"),
    *("checkpoint_step_interval=1", "checkpoints_total_limit=2"),
    *("eval_steps_interval=2", "num_eval_images=1", "eval_timesteps=2"),
    *("validation_step_interval=2", "validation_num_inference_steps=1", "validation_num_video_frames=5"),
)
# In the order in which one run meets them, each in an attempt of its own.
POINTS = {
    "before the first loss on fixed samples": Point("simplewan.app.hooks:EvalHook._measure"),
    "between a clip and its sheet": Point("simplewan.validation.runner:save_png", call=2),
    "before a loss": Point("simplewan.objectives.supervised:SupervisedFlowMatching.loss", call=4),
    "before a manifest": Point("simplewan.checkpoints.store:write_json", match="manifest.json", call=1),
    "before a checkpoint's rename": Point("simplewan.checkpoints.store:write_json", match="manifest.json", after=True),
    "after a checkpoint's rename": Point("simplewan.checkpoints.store:CheckpointStore.save", after=True),
    "in a line of the log": Point(
        "simplewan.reporting.records:EventLog.__call__", match="Metric(step=3", last_act=half_a_line
    ),
    "half rotated": Point("shutil:rmtree", match=".trash", last_act=half_a_folder),
    "before a planned loss on fixed samples": Point("simplewan.app.hooks:EvalHook._measure"),
    "between a sheet and its record": Point("simplewan.validation.runner:save_png", call=4, after=True),
    "before the last validation": Point("simplewan.validation.runner:Validator.run"),
    "in the final weights": Point("simplewan.models.lora.write:sort_metadata", match="safetensors"),
    "before the end is marked": Point("simplewan.app.hooks:mark_finished"),
    "while the end is marked": Point("simplewan.data.atomic:sync", match="finished.json"),
}


@pytest.mark.slow
def test_a_run_that_is_killed_everywhere_ends_as_if_it_never_was(run: Train, tmp_path: Path) -> None:
    assert run("straight", *FULL) == 0
    for name, point in POINTS.items():
        assert run("killed", *FULL, point=point) == KILLED, name
    assert run("killed", *FULL) == 0
    expected = outcome(tmp_path / "straight")
    assert expected["checkpoints"] == ["checkpoint-5", "checkpoint-6"]
    assert expected["saved"] == [1, 2, 3, 4, 5, 6]
    assert len(expected["clip files"]) == 2 * 3 * 4
    assert outcome(tmp_path / "killed") == expected


CACHING = (
    Point("simplewan.mini.example:clips.write_dataset", after=True),
    Point("simplewan.data.index:Index.put_digest", call=7),
    Point("simplewan.caches.shards:sync", call=1),  # a shard of texts has its temporary name
    Point("simplewan.caches.shards:sync", call=4, after=True),  # the second one has its own
    Point("simplewan.app.encoders:VaeEncoder.__call__", call=3, after=True),
    Point("simplewan.caches.shards:sync", call=1, match="tmp"),
    Point("simplewan.caches.store:Store.put", call=2, after=True),
)


def cached(folder: Path) -> dict[str, str]:
    """The digest of every record below a folder of caches, by its key."""
    found = {}
    for place in {path.parent for path in folder.rglob("*.safetensors")}:
        store = Store(place)
        found.update({key: digest(store.get(key).contiguous()) for key in store.keys()})  # noqa: SIM118
    return found


@pytest.mark.slow
def test_caches_that_were_killed_hold_the_same_bits(tmp_path: Path) -> None:
    arguments = (*QUIET, "max_train_steps=1", "example=mini")
    cache, out = tmp_path / "cache", tmp_path / "out"  # the same for both runs: the LoRA names its base model

    def start(point: Point | None = None, function: Train = train_with_small_flushes) -> int:
        environ = {"SIMPLEWAN_CACHE": str(cache)}
        return attempt(function, *arguments, f"output_dir={out}", point=point, environ=environ)

    assert start(function=train) == 0
    expected, expected_records = outcome(out), cached(cache / "examples" / "mini" / "cache")
    shutil.rmtree(cache)
    shutil.rmtree(out)
    sizes = []
    for point in CACHING:
        assert start(point) == KILLED, point
        sizes.append(len(cached(cache / "examples" / "mini" / "cache")))
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[3] > sizes[2] == 0
    assert start() == 0
    assert cached(cache / "examples" / "mini" / "cache") == expected_records
    assert outcome(out) == expected
    assert [path.name for path in cache.rglob(".*")] == [".mini.lock"]


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_is_not_taken_for_the_finished_one(run: Train, tmp_path: Path) -> None:
    arguments = (*QUIET, "max_train_steps=2", "checkpoint_step_interval=1", "train_batch_size=2")
    out = tmp_path / "out"
    assert run("out", *arguments) == 0
    first = outcome(out)
    # Back to step 1 with another rate; killed while the data is looked at: the log and the checkpoints still agree.
    other = (*arguments, "learning_rate=0.1")
    back = (*other, "resume_from_checkpoint=checkpoint-1")
    assert run("out", *back, point=Point("simplewan.app.gathering:scan")) == KILLED
    assert [record["step"] for record in records(out, "metric")] == [1]
    assert CheckpointStore(out, limit=0, emit=silent).steps() == [1]
    # Killed after the last checkpoint, before the final weights: those of the first run are still there.
    assert run("out", *other, point=Point("simplewan.app.hooks:FinishHook.at_end")) == KILLED
    assert outcome(out)["weights"] == first["weights"]
    assert run("out", *other) == 0
    assert outcome(out)["weights"] != first["weights"]
    shutil.rmtree(out)
    assert run("out", *arguments) == 0
    assert outcome(out) == first
