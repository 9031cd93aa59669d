"""Whether the LoRAs that training starts from are of the experts that they are given to. No torch.

Imports headers, recognition and the catalogue. A file tells by its metadata, else by its name; it is asked before
anything is cached or loaded, since the LoRA of the other expert trains without a complaint.
"""

from __future__ import annotations

from collections.abc import Mapping

from simplewan.flavours import Flavour, other_model
from simplewan.headers import read_header
from simplewan.options.catalogue import Options
from simplewan.options.experts import adapter_of, has_own
from simplewan.options.paths import Paths
from simplewan.options.sources import Findings
from simplewan.recognition import told_by


def check_starts(
    options: Options, where: Mapping[str, str], config: str, flavour: Flavour, paths: Paths, findings: Findings
) -> None:
    """Refuse the LoRA of the other expert, and warn of one of another model."""
    if options.model.model_type != "lora":
        return
    for expert in flavour.trained_experts:
        start = adapter_of(options, flavour, expert).init_lora
        if start is None or not paths(start).is_file():  # one that is not there is told with the other files
            continue
        own = f"init_lora_{expert}"
        key = own if has_own(flavour, expert) and own in where else "init_lora"
        place, file = where.get(key, config), paths(start)
        try:
            header = read_header(file)
        except (OSError, ValueError) as error:
            findings.problem(place, f"cannot be read: {error}", key=key, value=str(start), fix="name a LoRA file")
            continue
        metadata = {} if header is None else header.metadata
        told = told_by(metadata, file)
        if flavour.boundary is not None and told not in (None, expert):
            findings.problem(
                place,
                f"is of the {told}-noise expert, and would start the {expert}-noise one",
                key=key,
                value=str(start),
                fix=f"name it with init_lora_{told}"
                if flavour.trains_both
                else f"train that expert, with model_flavour={flavour.model_name}-{told}, or name a LoRA of this one",
            )
        elif (other := other_model(metadata, flavour)) is not None:
            findings.warn(f"{place}: {key} {start} was trained for {other.name}, and starts {flavour.name}")
