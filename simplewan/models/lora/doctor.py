"""What a LoRA file is, whether it is sound, and what each tool will make of it. Imports torch; writes nothing.

For diffusers the answer comes from its own converter; for the other tools from the key names that they look for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simplewan.errors import some
from simplewan.flavours import HIGH, LOW, Flavour, recorded_flavour
from simplewan.models.lora.change import LORA, UNTRAINED, WHOLE, Change, untrained
from simplewan.models.lora.fit import misfit
from simplewan.models.lora.formats import DIFFUSERS, ORIGINAL
from simplewan.models.lora.read import ADAPTER_METADATA, LoraFile, examine_file
from simplewan.models.lora.skeleton import EITHER, Sizes, shapes_told, sizes_of
from simplewan.models.lora.verify import read_as_diffusers
from simplewan.recognition import told_by, told_expert, told_version

DEAD, NOT_FINITE, MISFIT, TOO_LARGE = "no effect", "not finite", "does not fit", "too large"
# Root mean square of what is added to the entries of a weight. Those of Wan's own linears are some hundredths, what
# training or distillation adds to them some thousandths.
MOST_ADDED = 1.0
LOADS, PARTLY, WEAKER, NOT = "loads", "loads in part", "loads, strength is wrong", "does not load"
_NAMES = {
    "diffusion_model.": "ComfyUI's prefix",
    "model.diffusion_model.": "ComfyUI's prefix for whole models",
    "transformer.": "diffusers' prefix",
    "transformer_2.": "diffusers' prefix of the low-noise expert",
    "base_model.model.": "PEFT's own prefix",
    "lora_unet_": "musubi's and kohya's prefix",
    "lora_unet__": "Wan-Fun's prefix",
    "lycoris_": "lycoris-lora's prefix",
    "": "bare names",
}


@dataclass(frozen=True)
class Layer:
    """One changed module. `norm` is that of the change (Frobenius), nan when something in it is not finite."""

    module: str
    kind: str
    rank: int | None
    alpha: float | None
    scale: float
    norm: float
    flag: str | None

    @property
    def block(self) -> str:
        """The block's number, or "-" outside of the blocks."""
        return self.module.split(".")[1] if self.module.startswith("blocks.") else "-"

    @property
    def place(self) -> str:
        """What it is in its block."""
        return self.module.split(".", 2)[2] if self.module.startswith("blocks.") else self.module


@dataclass(frozen=True)
class Verdict:
    """What a tool makes of the file, and why."""

    tool: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of a file. `faults` make it sick, `doubts` suspicious; `remarks` are worth knowing.

    `trained` is False of a LoRA that is as training begins with it. `expert` is None, too, for a model that has one.
    """

    path: Path
    format: str
    expert: str | None
    model: str
    metadata: Mapping[str, str]
    layers: tuple[Layer, ...]
    trained: bool
    dtypes: tuple[str, ...]
    faults: tuple[str, ...]
    doubts: tuple[str, ...]
    remarks: tuple[str, ...]
    tools: tuple[Verdict, ...]

    @property
    def healthy(self) -> bool:
        return not self.faults and not self.doubts

    def values(self, key: str) -> list[Any]:
        """The different values of `key` (rank, alpha, scale, kind) over the layers, sorted."""
        found = {getattr(layer, key) for layer in self.layers} - {None}
        return sorted(found)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": str(self.path),
            "healthy": self.healthy,
            "trained": self.trained,
            "format": self.format,
            "kinds": self.values("kind"),
            "expert": self.expert,
            "model": self.model,
            "dtypes": list(self.dtypes),
            "ranks": self.values("rank"),
            "alphas": [_number(value) for value in self.values("alpha")],
            "scales": [_number(value) for value in self.values("scale")],
            "faults": list(self.faults),
            "doubts": list(self.doubts),
            "remarks": list(self.remarks),
            "tools": {verdict.tool: {"outcome": verdict.outcome, "reason": verdict.reason} for verdict in self.tools},
            "layers": [
                {key: _number(value) if isinstance(value, float) else value for key, value in vars(layer).items()}
                for layer in self.layers
            ],
            "metadata": dict(self.metadata),
        }


def _number(value: float) -> float | None:
    """JSON knows no infinities and no nan."""
    return value if math.isfinite(value) else None


def diagnose(path: Path) -> Diagnosis:
    """Examine a file. Raises UserError when it is none of LoRAs."""
    file = examine_file(path)
    sizes = sizes_of(file.changes)
    shapes = shapes_told(file.changes) if file.changes and (sizes.width or not file.unknown) else {}
    layers = tuple(_layer(change, shapes) for change in file.changes)
    place = _place(file, sizes)
    trained = not untrained(file.changes)
    return Diagnosis(
        path=path,
        format=describe_format(file),
        expert=place.expert,
        model=place.model if file.changes else "nothing that is known here",
        metadata=file.metadata,
        layers=layers,
        trained=trained,
        dtypes=tuple(sorted(str(dtype).removeprefix("torch.") for dtype in file.dtypes)),
        faults=tuple(_faults(file, layers, sizes, trained=trained)),
        doubts=tuple(_doubts(layers)),
        remarks=tuple(_remarks(file, layers, place)),
        tools=tuple(verdicts(file)),
    )


@dataclass(frozen=True)
class _Place:
    """Where a file belongs: the model in words, and its expert. `is_single` is None where both may be."""

    model: str
    expert: str | None
    is_single: bool | None


def _place(file: LoraFile, sizes: Sizes) -> _Place:
    flavour = _flavour(file, sizes)
    expert = told_by(file.metadata, file.path) or (None if flavour is None else flavour.stage)
    if flavour is not None:
        is_single: bool | None = flavour.boundary is None
    elif sizes.has_experts is False:
        is_single = True
    elif expert is not None:
        is_single = False
    else:
        is_single = {"2.1": True, "2.2": False}.get(told_version(file.metadata.get("base_model", ""), file.path.stem))
    model = sizes.model
    if model == EITHER and is_single is not None:
        model = "Wan 2.1 14B" if is_single else "Wan 2.2 A14B"
    return _Place(model, None if is_single else expert, is_single)


def _flavour(file: LoraFile, sizes: Sizes) -> Flavour | None:
    """The flavour that the metadata name, unless the shapes contradict it."""
    flavour = recorded_flavour(file.metadata)
    expected = None if flavour is None else flavour.size
    return None if expected is not None and sizes.width not in (None, expected.width) else flavour


def describe_format(file: LoraFile) -> str:
    """The format in words: whose prefix, whose names, which factors."""
    if not file.changes:
        return "unknown"
    prefixes = ", ".join(_NAMES.get(prefix, prefix) for prefix in sorted(file.prefixes))
    names = "diffusers' names" if file.naming == DIFFUSERS else "Wan's own names"
    words = ", ".join(sorted(file.words))
    return f"{prefixes}, {names}, {words}"


def _layer(change: Change, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    finite = all(torch.isfinite(value).all() for value in change.tensors) and math.isfinite(change.scale)
    norm = change.norm() if finite else math.nan
    flag = None
    if not math.isfinite(norm):
        flag = NOT_FINITE
    elif misfit(change, shapes) is not None:
        flag = MISFIT
    elif norm == 0 and not change.acts:
        flag = DEAD
    elif _is_too_large(change, norm):
        flag = TOO_LARGE
    return Layer(change.module, change.kind, change.rank, change.alpha, change.scale, norm, flag)


def _is_too_large(change: Change, norm: float) -> bool:
    """Whether a trained product is beyond all weights. Whole differences may be of anything; a DoRA sets norms anew."""
    if change.kind == WHOLE or change.dora is not None or change.shape is None:
        return False
    return norm > MOST_ADDED * math.prod(change.shape) ** 0.5


def _doubts(layers: Sequence[Layer]) -> list[str]:
    named = [layer.module for layer in layers if layer.flag == TOO_LARGE]
    if not named:
        return []
    return [
        f"{len(named)} of {len(layers)} layers change by more than {MOST_ADDED:g} an entry (root mean square), where "
        f"weights are some hundredths: {some(named)}; most likely the learning rate was too high, and an earlier "
        "checkpoint is better"
    ]


def _faults(file: LoraFile, layers: Sequence[Layer], sizes: Sizes, *, trained: bool) -> list[str]:
    faults = file.faults()
    for flag, what in ((NOT_FINITE, "have weights that are not finite"), (MISFIT, "do not fit the model")):
        if named := [layer.module for layer in layers if layer.flag == flag]:
            faults.append(f"{len(named)} layers {what}: {some(named)}")
    # Published files carry differences of norms that are zero: those are as they should be.
    if not trained:
        faults.append(f"it {UNTRAINED}")
    elif dead := [layer.module for layer in layers if layer.flag == DEAD and layer.kind != WHOLE]:
        faults.append(f"{len(dead)} of {len(layers)} layers have no effect (their product is zero): {some(dead)}")
    if not layers:
        faults.append("it changes nothing of a Wan transformer")
    if (fault := sizes.fault()) is not None:
        faults.append(fault)
    if (other := _other_model(file, sizes)) is not None:
        faults.append(other)
    return faults


def _other_model(file: LoraFile, sizes: Sizes) -> str | None:
    """What in the metadata contradicts the shapes."""
    flavour = recorded_flavour(file.metadata)
    if flavour is None or _flavour(file, sizes) is not None:
        return None
    name, size = file.metadata["model_flavour"], flavour.size
    assert size is not None, "shapes contradict a published size alone"
    return f"its metadata speak of {name} ({size.width} wide), its weights are for a model {sizes.width} wide"


def _remarks(file: LoraFile, layers: Sequence[Layer], place: _Place) -> list[str]:
    remarks = []
    if still := [layer for layer in layers if layer.flag == DEAD and layer.kind == WHOLE]:
        remarks.append(f"{len(still)} whole differences are zero, as distillation files have them: no harm")
    if any(change.dora is not None for change in file.changes):
        remarks.append("it has dora_scale (DoRA): norms below are those before the magnitudes are set")
    low_high = told_expert(file.metadata.get("expert", "")), told_expert(file.path.stem)
    if None not in low_high and low_high[0] != low_high[1]:
        remarks.append(f"its metadata say {low_high[0]} noise, its name {low_high[1]} noise")
    if place.is_single and (told := told_by(file.metadata, file.path)) is not None:
        remarks.append(f"it speaks of {told} noise, and its model ({place.model}) has one expert")
    return remarks


def verdicts(file: LoraFile) -> list[Verdict]:
    """What the tools will do with the file."""
    if not file.changes:
        return []
    place = _place(file, sizes_of(file.changes))
    return [_diffusers(file, place), _comfyui(file), _musubi(file, place), _diffsynth(file), _lightx2v(file)]


def _advice(place: _Place, high: str, low: str) -> str:
    """What to do with a file that is of one expert; of one that may be of either, both."""
    if place.is_single:
        return ""
    if place.expert is not None:
        return high if place.expert == HIGH else low
    told = (f"{name}-noise file {advice}" for name, advice in ((HIGH, high), (LOW, low)) if advice)
    return ("if it is for an expert of 2.2: the " if place.is_single is None else "the ") + ", the ".join(told)


def _diffusers(file: LoraFile, place: _Place) -> Verdict:
    logger = logging.getLogger("diffusers.loaders.lora_pipeline")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        pairs = read_as_diffusers(file.path)
    except ValueError as error:
        return Verdict("diffusers", NOT, f"its converter refuses the file: {str(error)[:120]}")
    finally:
        logger.setLevel(level)
    lost = [change.module for change in file.changes if change.module not in pairs and _acts(change)]
    if lost:
        return Verdict("diffusers", PARTLY, f"{len(lost)} changes are dropped in silence: {some(lost)}")
    scaled = [change for change in file.changes if change.module in pairs and change.kind == LORA]
    # What it saves itself has the scale in the metadata, not in the tensors.
    configured = ADAPTER_METADATA in file.metadata and "alpha" not in file.words
    if wrong := [
        change.module
        for change in scaled
        if not _same_product(change, pairs[change.module], scale=change.scale if configured else 1.0)
    ]:
        return Verdict("diffusers", WEAKER, f"of {some(wrong)}")
    return Verdict("diffusers", LOADS, _advice(place, "", "with load_into_transformer_2=True"))


def _same_product(change: Change, pair: Mapping[str, torch.Tensor], *, scale: float = 1.0) -> bool:
    if change.dora is not None or "mid" in change.factors or not {"lora_A", "lora_B"} <= pair.keys():
        return False
    theirs = Change(change.module, LORA, {"down": pair["lora_A"], "up": pair["lora_B"]}).norm() * abs(scale)
    ours = change.norm()
    return math.isnan(ours) or math.isclose(theirs, ours, rel_tol=1e-2, abs_tol=1e-12)


def _acts(change: Change) -> bool:
    return any(bool(value.any()) for value in (*change.factors.values(), change.bias) if value is not None)


def _comfyui(file: LoraFile) -> Verdict:
    if not file.prefixes <= {"diffusion_model.", "lora_unet_", "lora_unet__"}:
        found = ", ".join(sorted(repr(prefix) for prefix in file.prefixes))
        return Verdict("ComfyUI", NOT, f"it looks for diffusion_model. or lora_unet_, the keys begin with {found}")
    if file.naming != ORIGINAL:
        return Verdict("ComfyUI", NOT, "it knows Wan's own names, these are diffusers'")
    if "diff_m" in file.words:
        return Verdict("ComfyUI", PARTLY, "diff_m (modulation) is passed over; export with --to comfyui")
    return Verdict("ComfyUI", LOADS)


def _musubi(file: LoraFile, place: _Place) -> Verdict:
    if file.prefixes != {"lora_unet_"} or file.naming != ORIGINAL:
        return Verdict("musubi", NOT, "its keys are lora_unet_ with Wan's own names; export with --to musubi")
    if not file.words <= {"lora_down", "lora_up", "alpha"}:
        extra = ", ".join(sorted(file.words - {"lora_down", "lora_up", "alpha"}))
        return Verdict("musubi", PARTLY, f"of {extra} only newer releases know LoHa and LoKr")
    return Verdict("musubi", LOADS, _advice(place, "with --lora_weight_high_noise", "with --lora_weight"))


def _merging_tool(tool: str, file: LoraFile, folded: str) -> Verdict:
    """DiffSynth and LightX2V look for bare or diffusion_model. names, and multiply pairs."""
    if not file.prefixes <= {"", "diffusion_model."} or file.naming != ORIGINAL:
        return Verdict(tool, NOT, "it looks for Wan's own names, bare or behind diffusion_model.: nothing matches")
    if any(change.kind not in (LORA, WHOLE) for change in file.changes):
        return Verdict(tool, NOT, "it knows no LyCORIS: merge, or export with --as-lora RANK")
    if any(change.dora is not None for change in file.changes):
        return Verdict(tool, WEAKER, "dora_scale is ignored")
    if any(change.scale != 1 for change in file.changes):
        return Verdict(tool, WEAKER, folded)
    return Verdict(tool, LOADS)


def _diffsynth(file: LoraFile) -> Verdict:
    verdict = _merging_tool("DiffSynth", file, "alpha is ignored: export with --to universal, which folds it in")
    if verdict.outcome == LOADS and any(change.kind == WHOLE or change.bias is not None for change in file.changes):
        return Verdict("DiffSynth", PARTLY, "diff, diff_b and diff_m are read by its LightX2V loader only")
    return verdict


def _lightx2v(file: LoraFile) -> Verdict:
    folded = "older releases ignore alpha: export with --to universal, which folds it in"
    return _merging_tool("LightX2V", file, folded)
