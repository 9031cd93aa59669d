"""Parts of a model from real folders and files, and what people are told when they do not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    DryRunError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from tiny import Model, save_tiny_model

from simplewan.errors import UserError
from simplewan.flavours import find_flavour
from simplewan.models.keys import to_original
from simplewan.models.wan import checking
from simplewan.models.wan.hub import download
from simplewan.models.wan.loading import check_files, load_text_encoder, load_transformer, load_vae
from simplewan.models.wan.sources import fingerprint

MINI, HIGH, LOW = (find_flavour(name) for name in ("t2v-mini-high", "t2v-a14b-2.2-high", "t2v-a14b-2.2-low"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), two_experts=True)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(path: Path, **values: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | values))


def problems_of(model: Model, flavour=MINI) -> str:
    with pytest.raises(UserError) as raised:
        check_files(model, flavour)
    return str(raised.value)


def test_high_is_transformer_and_low_is_transformer_2(folder: Path) -> None:
    model = Model(pretrained_model_name_or_path=str(folder))
    for flavour, expert, subfolder in ((HIGH, "high", "transformer"), (LOW, "low", "transformer_2")):
        check_files(model, flavour)
        loaded = load_transformer(model, flavour, expert, torch.float32).state_dict()
        written = load_file(next((folder / subfolder).glob("*.safetensors")))
        assert all(torch.equal(loaded[key], value) for key, value in written.items())


def test_bf16_keeps_what_diffusers_keeps_in_float32(folder: Path) -> None:
    transformer = load_transformer(Model(str(folder)), MINI, "high", torch.bfloat16)
    assert transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    for kept in ("scale_shift_table", "blocks.0.norm2.weight", "condition_embedder.time_embedder.linear_1.weight"):
        assert transformer.get_parameter(kept).dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_a_transformer_from_a_folder_without_subfolders(folder: Path, copy: Path) -> None:
    weights = (copy / "transformer_2").rename(copy / "mine")
    model = Model(
        str(folder), pretrained_transformer_model_name_or_path=str(weights), pretrained_transformer_subfolder="none"
    )
    loaded = load_transformer(model, MINI, "high", torch.float32)
    other = load_transformer(Model(str(folder)), LOW, "low", torch.float32)
    assert torch.equal(loaded.proj_out.weight, other.proj_out.weight)


def test_a_single_file_in_original_names_keeps_float32_where_diffusers_does(folder: Path, tmp_path: Path) -> None:
    weights = load_file(next((folder / "transformer").glob("*.safetensors")))
    file = tmp_path / "wan2.2_t2v_high_noise.safetensors"
    save_file({f"model.diffusion_model.{to_original(key)}": value for key, value in weights.items()}, file)
    model = Model(str(folder), pretrained_transformer_model_name_or_path=str(file))
    check_files(model, MINI)
    from_file = load_transformer(model, MINI, "high", torch.bfloat16)
    from_folder = load_transformer(Model(str(folder)), MINI, "high", torch.bfloat16)
    for key, value in from_folder.state_dict().items():
        assert value.dtype == from_file.state_dict()[key].dtype, key
        assert torch.equal(value, from_file.state_dict()[key]), key
    buffers = dict(from_file.named_buffers())
    for key, value in from_folder.named_buffers():  # the rotary tables, which no file holds
        assert value.dtype == buffers[key].dtype == torch.float32, key
        assert torch.equal(value, buffers[key]), key


def test_vae_and_text_encoder_load(folder: Path) -> None:
    model = Model(str(folder))
    assert load_vae(model, MINI, torch.float32).config.z_dim == 16
    tokenizer, encoder = load_text_encoder(model, MINI, torch.float32)
    assert encoder(tokenizer("a red ball", return_tensors="pt").input_ids).last_hidden_state.shape == (1, 4, 32)


@pytest.mark.parametrize("damaged", ["tokenizer/tokenizer.json", "text_encoder/model.safetensors"])
def test_a_damaged_text_part_is_named(copy: Path, damaged: str) -> None:
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:100])
    with pytest.raises(UserError, match=f"has a {damaged.split('/')[0]} that cannot be read"):
        load_text_encoder(Model(str(copy)), MINI, torch.float32)


def test_what_is_loaded_is_not_trusted_either(copy: Path) -> None:
    """As of a hub, of which nothing was seen before."""
    for part, load in (("transformer", lambda: load_transformer(Model(str(copy)), MINI, "high", torch.float32)),
                       ("vae", lambda: load_vae(Model(str(copy)), MINI, torch.float32))):  # fmt: skip
        file = next((copy / part).glob("*.safetensors"))
        state = load_file(file)
        name, _ = state.popitem()
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"lacks 1 tensors, {re.escape(name)} among them"):
            load()


def test_the_files_of_the_variant_are_those_that_are_looked_at(copy: Path) -> None:
    """Beside them the others, which are not read."""
    name = "diffusion_pytorch_model.{}safetensors"
    for part in ("transformer", "vae"):
        state = load_file(copy / part / name.format(""))
        save_file(
            {key: value.half() for key, value in state.items()}, copy / part / name.format("fp16."), {"format": "pt"}
        )
        state.popitem()
        save_file(state, copy / part / name.format(""), {"format": "pt"})
    check_files(Model(str(copy), variant="fp16"), MINI)
    loaded = load_transformer(Model(str(copy), variant="fp16"), MINI, "high", torch.float32)
    assert torch.equal(loaded.proj_out.weight, loaded.proj_out.weight.half().float())
    assert "lacks 1 tensors" in problems_of(Model(str(copy)))


def test_an_fp8_folder_of_another_size_than_its_configuration(copy: Path) -> None:
    file = next((copy / "transformer").glob("*.safetensors"))
    state = {key: value for key, value in load_file(file).items() if not key.startswith("blocks.1.")}
    save_file({key: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for key, v in state.items()}, file)
    assert "are 32 wide, 1 blocks, and its config.json says 32 wide, 2 blocks" in problems_of(Model(str(copy)))


def test_the_wrong_size_is_refused_with_found_and_expected(copy: Path) -> None:
    edit_config(copy / "transformer/config.json", num_attention_heads=40, attention_head_dim=128, num_layers=40)
    text = problems_of(Model(str(copy)), find_flavour("t2v-480p-1.3b-2.1"))
    assert "14B (5120 wide, 40 blocks), expected 1.3B (1536 wide, 30 blocks)" in text
    checking.check_files(Model(str(copy)), MINI)  # of any size; the weights are still small, which this does not see


def test_all_problems_at_once(copy: Path) -> None:
    edit_config(copy / "transformer/config.json", in_channels=36)
    edit_config(copy / "vae/config.json", z_dim=48)
    next((copy / "text_encoder").glob("*.safetensors")).unlink()
    (copy / "tokenizer/tokenizer_config.json").unlink()
    text = problems_of(Model(str(copy)))
    assert "in_channels 36, expected 16" in text
    assert "z_dim 48, expected 16" in text
    assert "lacks weights" in text
    assert "has no tokenizer/tokenizer_config.json" in text


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "one-00001-of-00002.safetensors", "b": "one-00002-of-00002.safetensors"}}
    (copy / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "one-00001-of-00002.safetensors" in problems_of(Model(str(copy)))


def test_a_folder_that_is_not_there_and_a_flavour_without_repository(tmp_path: Path) -> None:
    assert "is not there" in problems_of(Model(str(tmp_path / "nowhere")))
    assert "this flavour has no repository" in problems_of(Model())


def test_an_unreachable_hub_names_the_local_alternative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="path of a local copy"):
        download("nobody/nothing-of-the-kind", ["*.json"], key="pretrained_model_name_or_path")


def answer(kind: type[Exception], behind: Exception | None = None, *, status: int = 404) -> Exception:
    """An error as the hub's library raises it; one that only tells that nothing was found has its reason behind it."""
    if issubclass(kind, HfHubHTTPError):
        made: Exception = kind(
            "the hub says no", response=SimpleNamespace(headers={}, request=None, status_code=status)
        )
    else:
        made = kind("what the system says")
    made.__cause__ = behind
    return made


@pytest.mark.parametrize(
    ("error", "key", "told"),
    [
        (answer(RevisionNotFoundError), "revision", "is no revision of owner/model"),
        (answer(DryRunError, answer(RepositoryNotFoundError)), "part", "nor a repository that can be read"),
        (answer(DryRunError, ConnectionError("no route")), "part", "the hub is out of reach (no route)"),
        (answer(HfHubHTTPError, status=503), "part", "the hub is out of reach (the hub says no)"),
        (answer(LocalEntryNotFoundError), "part", "the hub is out of reach"),
        (OSError(28, "No space left on device"), "part", "No space left on device"),
        (PermissionError(13, "Permission denied"), "part", "cannot be downloaded to"),
        (FileNotFoundError(2, "No such file"), "part", "cannot be downloaded to"),
    ],
)
def test_what_the_hub_or_the_disk_denies_is_told(
    error: Exception, key: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deny(*_arguments: object, local_files_only: bool = False, **_keys: object) -> Path:
        raise answer(LocalEntryNotFoundError) if local_files_only else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", deny)
    with pytest.raises(UserError) as raised:
        download("owner/model", ["*.json"], key="part", revision="v9")
    (problem,) = raised.value.problems
    assert problem.key == key and told in problem.message
    assert ("out of reach" in problem.message) == ("out of reach" in told)


def test_what_was_downloaded_before_does_when_the_hub_denies_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def deny(*_arguments: object, local_files_only: bool = False, **_keys: object) -> Path:
        if local_files_only:
            return tmp_path
        raise answer(DryRunError, answer(RepositoryNotFoundError))

    monkeypatch.setattr("huggingface_hub.snapshot_download", deny)
    assert download("owner/model", ["*.json"], key="part") == tmp_path


def test_a_fingerprint_is_of_the_contents_alone(folder: Path, copy: Path) -> None:
    assert fingerprint(folder / "vae") == fingerprint(copy / "vae")
    assert fingerprint(folder / "transformer") != fingerprint(folder / "transformer_2")
    edit_config(copy / "vae/config.json", latents_mean=[0.0] * 16)
    assert fingerprint(folder / "vae") != fingerprint(copy / "vae")


def test_a_fingerprint_of_large_files_sees_size_head_and_tail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from simplewan.models.wan import sources

    monkeypatch.setattr(sources, "WHOLE_FILE_BYTES", 2**20)
    contents = bytearray(3 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(contents)
    seen = {fingerprint(tmp_path)}
    for place in (0, len(contents) - 1):
        changed = contents.copy()
        changed[place] = 1
        (tmp_path / "model.safetensors").write_bytes(changed)
        seen.add(fingerprint(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(contents + b"\0")
    assert len(seen | {fingerprint(tmp_path)}) == 4


def test_a_model_that_is_not_there_is_told_once(tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError) as caught:
        check_files(Model(str(nowhere)), LOW, with_other_stage=True)
    assert len(caught.value.problems) == 1
