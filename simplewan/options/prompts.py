"""The prompt library: a JSON file of names and prompts, the names made safe as file names. Imports the sources."""

from __future__ import annotations

import re
from pathlib import Path

from simplewan.options.sources import Expander, Findings, read_json

_BRACKETS = re.compile(r"[<>]+")
# Letters and digits of any script, hyphens and dots are safe everywhere.
_UNSAFE = re.compile(r"[^\w.-]+")
LONGEST_NAME = 80


def safe_name(name: str) -> str:
    """`name` as a file name on any system: "anime_<token>" gives "anime_token"."""
    text = _UNSAFE.sub("_", _BRACKETS.sub("", name).strip())
    text = re.sub(r"_{2,}", "_", re.sub(r"\.{2,}", ".", text)).strip("._-")
    return text[:LONGEST_NAME].rstrip("._-") or "prompt"


def read_prompts(path: Path, *, expand: Expander, findings: Findings) -> dict[str, str]:
    """name -> prompt, in the order of the file."""
    shown = str(path)
    content = read_json(path, findings)
    if content is None:
        return {}
    if not isinstance(content, dict):
        findings.problem(shown, 'is not an object of {"name": "prompt"}')
        return {}
    prompts: dict[str, str] = {}
    renamed = []
    for name, prompt in content.items():
        if not isinstance(prompt, str) or not prompt.strip():
            findings.problem(shown, "is not a prompt", key=name, value=prompt, fix="write the prompt as text")
            continue
        safe = safe_name(name)
        if safe.casefold() in {other.casefold() for other in prompts}:
            findings.problem(shown, f"and another prompt would both be saved as {safe}", key=name, fix="rename one")
        if safe != name:
            renamed.append(f"{name} -> {safe}")
        prompts[safe] = expand(prompt, where=shown, key=name)
    if renamed:
        findings.inform(f"{shown}: names made safe for files: {', '.join(renamed)}")
    return prompts
