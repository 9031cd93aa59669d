"""Whole runs with data and caches in a bucket: a real server process, a proxy that fails, a run that goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projects import CLIPS, Project
from serving import Fault, Proxy, no_account, proxy, s3_server

from simplewan.caches.remote import RemoteShelf
from simplewan.cli import main
from simplewan.data.backends.s3 import S3Backend

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region_name": "us-east-1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with no_account() as patch, s3_server() as address:
        patch.setitem(RemoteShelf.__init__.__kwdefaults__, "first_delay_seconds", 0.005)
        yield address


@pytest.fixture
def relay(server: str) -> Iterator[Proxy]:
    with proxy(server) as made:
        yield made


@pytest.fixture
def project(example: Path, relay: Proxy, tmp_path: Path, fresh_accelerator: None) -> Project:
    """A project whose clips lie in a bucket, and so do its latents and texts."""
    project = Project(tmp_path, example / "model")
    bucket = f"bucket-{tmp_path.name.replace('_', '-').lower()}"[:60].rstrip("-")
    plain = S3Backend(bucket, endpoint=relay.target, region="us-east-1", access_key="key", secret_key="secret")
    plain._connection().call_s3("create_bucket", Bucket=bucket)
    for clip in CLIPS["wide"]:
        for ending in (".mp4", ".txt"):
            plain.write(f"clips/{clip}{ending}", example / "clips" / f"{clip}{ending}")
    place = {"type": "aws", "aws_bucket_name": bucket, "aws_endpoint_url": relay.address, **KEYS}
    data: dict[str, Any] = {key: value for key, value in project.datasets[0].items() if key != "instance_data_dir"}
    texts = {"id": "captions", "dataset_type": "text_embeds", "default": True, "aws_data_prefix": "cache/text"}
    latents = {"id": "latents", "dataset_type": "image_embeds", "aws_data_prefix": "cache/latents"}
    project.datasets = [
        {**data, **place, "aws_data_prefix": "clips", "image_embeds": "latents"},
        {**texts, **place},
        {**latents, **place},
    ]
    return project


def losses(project: Project) -> list[float]:
    return [event["loss"] for event in project.events if event["type"] == "metric"]


def test_data_and_caches_in_a_bucket_train_as_local_ones_do(project: Project, example: Path, relay: Proxy) -> None:
    project.settings["max_train_steps"] = 4
    first = project.start()
    there = losses(project)
    assert len(first.latent_names) == 5
    relay.seen.clear()
    again = project.start()
    assert losses(project) == there
    assert again.latent_names == again.text_names == again.probed == []
    assert not any("clips/" in path for method, path, _range in relay.seen if method == "GET" and "list" not in path)
    shutil.rmtree(project.folder / "cache" / "mirror")  # another machine: the records come from the bucket
    assert project.start().latent_names == []
    assert losses(project) == there

    local = Project(project.folder / "local", example / "model")
    local.settings["max_train_steps"] = 4
    for clip in CLIPS["wide"]:
        local.add(example / "clips", "wide", clip)
    local.datasets = [local.datasets[0], local.datasets[2]]
    local.start()
    assert losses(local) == there


def test_a_server_that_fails_midway_costs_nothing(
    project: Project, relay: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.faults += [Fault("status", times=2), Fault("cut", times=1, wanted="mp4"), Fault("drop", method="PUT")]
    assert len(project.start().latent_names) == 5  # tried again, and nobody was bothered
    project.datasets[0]["resolution"] = 80
    relay.faults.append(Fault("status", times=10_000, method="PUT", wanted="latents"))
    assert project.cache() == 2
    said = capsys.readouterr().err
    assert "start again when it answers; what was encoded is kept here until then" in said
    assert "secret" not in said
    relay.faults.clear()
    assert project.start().latent_names == []  # what was encoded was kept, and put there now


def test_a_bucket_that_is_not_there_is_named_at_once(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.datasets[0]["aws_bucket_name"] = "no-such-bucket"
    assert project.cache() == 2
    assert "no-such-bucket" in capsys.readouterr().err


def test_a_cache_that_does_not_answer_is_a_message_for_train_too(
    project: Project, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project.datasets[1]["aws_endpoint_url"] = "http://127.0.0.1:9"
    project.write()
    assert main(["train", "--config", str(project.folder / "config.json"), f"output_dir={project.folder}/out"]) == 2
    assert "its cache does not answer" in capsys.readouterr().err
