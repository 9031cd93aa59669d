"""Whether the LoRAs that training starts from are of the experts that they are given to. No torch.

Imports headers, recognition and the catalogue. A file tells by its metadata, else by its name; it is asked before
anything is cached or loaded, since the LoRA of the other expert trains without a complaint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simplewan.flavours import Flavour, other_model
from simplewan.headers import read_safetensors
from simplewan.options.catalogue import Options
from simplewan.options.experts import adapter_of, key_of
from simplewan.options.paths import Paths
from simplewan.options.sources import Findings
from simplewan.recognition import told_by, told_expert


def check_starts(
    options: Options, where: Mapping[str, str], config: str, flavour: Flavour, paths: Paths, findings: Findings
) -> None:
    """Refuse what is no LoRA file, and the LoRA of the other expert; warn of one of another model."""
    if options.model.model_type != "lora":
        return
    for expert in flavour.trained_experts:
        start = adapter_of(options, flavour, expert).init_lora
        if start is None or not paths(start).exists():  # one that is not there is told with the other files
            continue
        key, file = key_of(options, flavour, expert, "init_lora"), paths(start)
        place = where.get(key, config)
        try:
            metadata = _metadata(file, expert)
        except _NoFile as fault:
            findings.problem(place, str(fault), key=key, value=str(start), fix=fault.fix)
            continue
        told = told_by(metadata, file)
        message, fix = _misplaced(key, expert, told, flavour)
        if message:
            findings.problem(place, message, key=key, value=str(start), fix=fix)
        elif (other := other_model(metadata, flavour)) is not None:
            findings.warn(f"{place}: {key} {start} was trained for {other.name}, and starts {flavour.name}")


class _NoFile(Exception):
    """What is named cannot be read as a LoRA file; carries the fix."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def _metadata(file: Path, expert: str) -> Mapping[str, str]:
    if file.is_dir():
        found = sorted(file.glob("*.safetensors"))
        own = [path for path in found if len(found) == 1 or told_expert(path.stem) == expert]
        raise _NoFile("is a folder", f"name {own[0]}" if len(own) == 1 else "name the file in it")
    try:
        return read_safetensors(file).metadata
    except (OSError, ValueError) as error:
        raise _NoFile(f"cannot be read: {error}", "name a LoRA file (.safetensors)") from error


def _misplaced(key: str, expert: str, told: str | None, flavour: Flavour) -> tuple[str, str]:
    """That a LoRA of the expert that it tells is named by the wrong option, and the fix; empty if it is not."""
    if flavour.trains_both and key == "init_lora":
        fix = f"name it with init_lora_{told}" if told else "name it with init_lora_high or init_lora_low"
        return f"is the LoRA of one expert, and {flavour.name} trains both", fix
    if flavour.boundary is None or told in (None, expert):
        return "", ""
    fix = f"train that expert, with model_flavour={flavour.model_name}-{told}, or name a LoRA of this one"
    if flavour.trains_both:
        fix = f"name it with init_lora_{told}"
    return f"is of the {told}-noise expert, and would start the {expert}-noise one", fix
