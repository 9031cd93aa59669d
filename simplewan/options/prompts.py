"""The prompt library: a JSON file of names and prompts, the names made safe as file names. Imports the sources.

A prompt may have a picture: {"name": {"prompt": "...", "image": "path"}}. Whether it decodes is seen where it is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simplewan.options.sources import Expander, Findings, did_you_mean, read_json

_BRACKETS = re.compile(r"[<>]+")
# Letters and digits of any script, hyphens and dots are safe everywhere.
_UNSAFE = re.compile(r"[^\w.-]+")
LONGEST_NAME = 80
_KEYS = ("prompt", "image")


@dataclass(frozen=True)
class Library:
    """The prompts of a file by their safe names, in its order, and the pictures of those that have one."""

    prompts: dict[str, str] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)


def safe_name(name: str) -> str:
    """`name` as a file name on any system: "anime_<token>" gives "anime_token"."""
    text = _UNSAFE.sub("_", _BRACKETS.sub("", name).strip())
    text = re.sub(r"_{2,}", "_", re.sub(r"\.{2,}", ".", text)).strip("._-")
    return text[:LONGEST_NAME].rstrip("._-") or "prompt"


def read_prompts(path: Path, *, expand: Expander, findings: Findings, base: Path | None = None) -> Library:
    """The library of a file. Pictures are looked for in the working directory (or `base`), then beside the file."""
    shown = str(path)
    content = read_json(path, findings)
    library = Library()
    if content is None:
        return library
    if not isinstance(content, dict):
        findings.problem(shown, 'is not an object of {"name": "prompt"}')
        return library
    prompts = library.prompts
    renamed = []
    for name, entry in content.items():
        prompt, image = _split(entry, shown=shown, name=name, findings=findings)
        if not isinstance(prompt, str) or not prompt.strip():
            findings.problem(shown, "is not a prompt", key=name, value=prompt, fix="write the prompt as text")
            continue
        safe = safe_name(name)
        if safe.casefold() in {other.casefold() for other in prompts}:
            findings.problem(shown, f"and another prompt would both be saved as {safe}", key=name, fix="rename one")
        if safe != name:
            renamed.append(f"{name} -> {safe}")
        prompts[safe] = expand(prompt, where=shown, key=name)
        if image is not None:
            found = _find(expand(image, where=shown, key=name), base=base or Path(), beside=path.parent)
            if found is None:
                fix = "write a path from the working directory, or from this file's folder"
                findings.problem(shown, "is not there", key=f"{name}.image", value=image, fix=fix)
            else:
                library.images[safe] = found
    if renamed:
        findings.inform(f"{shown}: names made safe for files: {', '.join(renamed)}")
    return library


def _split(entry: Any, *, shown: str, name: str, findings: Findings) -> tuple[Any, str | None]:
    """The prompt and the picture of an entry; what is wrong with the latter is told here."""
    if not isinstance(entry, dict):
        return entry, None
    for key in entry:
        if key not in _KEYS:
            meant = did_you_mean(key, _KEYS)
            fix = f"did you mean {meant}?" if meant else 'write {"prompt": "...", "image": "PATH"}'
            findings.problem(shown, "is not a key of a prompt", key=f"{name}.{key}", fix=fix)
    image = entry.get("image")
    if image is not None and (not isinstance(image, str) or not image.strip()):
        findings.problem(shown, "is not a path", key=f"{name}.image", value=image, fix="write the path of a picture")
        image = None
    return entry.get("prompt"), image


def _find(image: str, *, base: Path, beside: Path) -> Path | None:
    path = Path(image).expanduser()
    return next((found for found in (base / path, beside / path) if found.is_file()), None)
