"""`simpletuner lora doctor`: each file examined, as a document for programs or a page of text for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from simplewan.app.lora_files import find_loras, read_each
from simplewan.errors import Problem
from simplewan.models.lora.doctor import Diagnosis, Layer, diagnose
from simplewan.reporting.quiet import quiet_loading_bars

# What of a block is shown in which column; the names are diffusers', the heads Wan's own.
_COLUMNS = {
    "attn1.to_q": "q",
    "attn1.to_k": "k",
    "attn1.to_v": "v",
    "attn1.to_out.0": "o",
    "attn2.to_q": "cross q",
    "attn2.to_k": "cross k",
    "attn2.to_v": "cross v",
    "attn2.to_out.0": "cross o",
    "attn2.add_k_proj": "k_img",
    "attn2.add_v_proj": "v_img",
    "ffn.net.0.proj": "ffn 0",
    "ffn.net.2": "ffn 2",
}
_OTHERS = "others"


def doctor(places: Sequence[Path]) -> tuple[list[Diagnosis], list[Problem]]:
    """Examine the files, and those in the folders; the problems are of those that are not there, or no LoRAs."""
    quiet_loading_bars()
    files, absent = read_each(places, lambda place: find_loras([place]))
    found, others = read_each(dict.fromkeys(chain.from_iterable(files)), diagnose)
    return found, absent + others


def page(found: Diagnosis, *, layers: bool = False) -> str:
    """What people read; with `layers` every layer too, not only those with a flag."""
    state = "healthy"
    if found.faults:
        state = "SICK" if found.trained else "NOT TRAINED"
    elif found.doubts:
        state = "SUSPICIOUS"
    lines = [f"{found.path}", f"  {state}"]
    lines += [f"  ! {fault}" for fault in (*found.faults, *found.doubts)]
    facts = {
        "format": found.format,
        "for": found.model + (f", the {found.expert}-noise expert" if found.expert else ""),
        "kinds": _span(found.values("kind")) + f", {len(found.layers)} layers, {', '.join(found.dtypes)}",
        "rank": _span(found.values("rank")),
        "alpha": _span(found.values("alpha")),
        "scale": _span(found.values("scale")),
        **{key: found.metadata[key] for key in ("model_flavour", "base_model", "step") if key in found.metadata},
    }
    lines += [f"  {key:<14}{value}" for key, value in facts.items()]
    lines += [f"  note: {remark}" for remark in found.remarks]
    if found.tools:
        lines.append("  what will happen in")
        for verdict in found.tools:
            lines.append(f"    {verdict.tool:<11}{verdict.outcome}{': ' if verdict.reason else ''}{verdict.reason}")
    if found.layers:
        lines += ["  norm of the change by block", *(f"    {row}" for row in norm_table(found.layers))]
    shown = [layer for layer in found.layers if layers or (layer.flag and found.trained)]
    if shown:
        lines += ["  layers", *(f"    {_line(layer)}" for layer in shown)]
    return "\n".join(lines)


def norm_table(layers: Sequence[Layer]) -> list[str]:
    """Norms, a row a block and a column a kind of module; * marks what has a flag, - what is not changed."""
    cells: dict[str, dict[str, list[Layer]]] = {}
    for layer in layers:
        cells.setdefault(layer.block, {}).setdefault(_COLUMNS.get(layer.place, _OTHERS), []).append(layer)
    used = {column for row in cells.values() for column in row}
    columns = [column for column in (*_COLUMNS.values(), _OTHERS) if column in used]
    rows = ["block " + "".join(f"{column:>9}" for column in columns)]
    for block, row in cells.items():
        rows.append(f"{block:<6}" + "".join(f"{_cell(row.get(column, [])):>9}" for column in columns))
    return rows


def _cell(layers: Sequence[Layer]) -> str:
    """The norm of one layer, or of several together."""
    if not layers:
        return "-"
    norm = sum(layer.norm**2 for layer in layers) ** 0.5
    return f"{norm:.3g}" + ("*" if any(layer.flag for layer in layers) else "")


def _line(layer: Layer) -> str:
    facts = [layer.kind, f"rank {layer.rank}" if layer.rank else "", f"scale {layer.scale:g}", f"norm {layer.norm:.3g}"]
    flag = f"  <- {layer.flag}" if layer.flag else ""
    return f"{layer.module}: {', '.join(fact for fact in facts if fact)}{flag}"


def _span(values: Sequence[Any]) -> str:
    """Different values in a few words."""
    if not values:
        return "none"
    shown = [f"{value:g}" if isinstance(value, int | float) else str(value) for value in values]
    return ", ".join(shown) if len(shown) <= 4 else f"{shown[0]} to {shown[-1]} ({len(shown)} different)"
