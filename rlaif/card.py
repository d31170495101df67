"""The model card: what the adapter is and is not, what it was made from, and what was measured.

Written from the manifests of the run and the report, so that it cannot say more than they do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors import safe_open

from rlaif.report import ASSETS, LABELS, counted, direction, written
from rlaif.results import Comparison, Report
from sft import runs
from sft.config import Recipe
from sft.files import read_json, write_text
from sft.lineage import proof_stage

LLAMA3 = re.compile(r"llama-?_?3(\.\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from.

    Attributes:
        name: of the run.
        base: public name of the base; `revision` of it, None = the newest.
        against: what spoke against the release and was overruled (`rlaif.export.release`).
        report: the evaluation's report; None where there is none.
        manifests: of the stages in order, by a label such as "dpo, round 2".
        system_prompt: the text that opened each conversation in training; "" for none.
        merged: sentence on the merged model; "" where none was written.
        checks: sentences on what was verified; empty where nothing was.
    """

    name: str
    base: str
    revision: str | None
    against: list[str]
    report: Report | None
    manifests: Mapping[str, Mapping[str, Any]]
    system_prompt: str
    merged: str
    checks: list[str]


def manifests_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The manifests of the run's stages in their order, by the labels that the card gives them."""
    folders = {"finetune": runs.stage_folder(recipe, "finetune")}
    if recipe.policy == "ppo":
        folders |= {name: runs.stage_folder(recipe, name) for name in ("reward", "ppo")}
    else:
        for n in range(1, recipe.rounds + 1):
            for name in ("candidates", "scores", "pairs", "dpo"):
                folders[f"{name}, round {n}"] = runs.stage_folder(recipe, name, n)
    folders["evaluation"] = runs.stage_folder(recipe, proof_stage(recipe, "evaluation"))
    found = {label: runs.read_manifest(folder) for label, folder in folders.items()}
    return {label: manifest for label, manifest in found.items() if manifest}


def write_card(facts: CardFacts, adapter: Path, paths: Sequence[Path]) -> None:
    """Write the card.

    Args:
        facts: what it says.
        adapter: the exported adapter's folder, for its shape and size.
        paths: where to; the same text each.

    Raises:
        StorageError: the disk is full.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=False,  # Markdown; what it holds is settings and figures, never replies
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    licence_id, licence = licence_note(facts.base)
    report = facts.report
    text = environment.get_template("card.md.j2").render(
        facts=facts,
        report=report,
        licence_id=licence_id,
        licence=licence,
        lora=read_json(adapter / "adapter_config.json"),
        parameters=parameters(adapter),
        rows=[_row(c) for c in report.measures] if report else [],
        by_risk=[
            (risk, [_row(c) for c in compared])
            for risk, compared in (reversed(report.by_risk.items()) if report else ())
        ],
        recipe=yaml.safe_dump(recipe(facts.manifests), sort_keys=False, allow_unicode=True),
        lineage=lineage(facts.manifests),
        versions=list(facts.manifests.values())[-1]["versions"] if facts.manifests else {},
        on_hub="/" in facts.base,
    )
    for path in paths:
        write_text(path, text)


def licence_note(base: str) -> tuple[str, str]:
    """Licence identifier for the Hub and what the base's licence asks for, by the base's name."""
    if base == "embedded":
        return "apache-2.0", "The base is this project's own small model, under Apache-2.0."
    found = LLAMA3.search(base)
    if found is None:
        return "other", f"The adapter works only with {base}: that model's licence applies as well."
    later = found.group(1)
    version, credit = f"3{later or ''}", "Built with Llama" if later else "Built with Meta Llama 3"
    start = "Llama" if later else "Llama 3"
    return f"llama{version}", (
        f"**{credit}.** The Meta Llama {version} Community License applies to what is made with "
        f"its materials: whoever passes this adapter on shows '{credit}', includes a copy of that "
        f"licence, keeps its notice and acceptable-use policy, and gives the model a name that "
        f"begins with '{start}'."
    )


def parameters(adapter: Path) -> int:
    """Count an adapter's numbers from the header of its file."""
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as weights:
        count = 0
        for name in weights.keys():  # noqa: SIM118  (a safe_open is no mapping)
            size = 1
            for length in weights.get_slice(name).get_shape():
                size *= length
            count += size
        return count


def recipe(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of the stages; a part that two stages share is written once."""
    shown: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for label, manifest in manifests.items():
        settings = {
            k: v for k, v in _without_paths(manifest["config"]).items() if known.get(k) != v
        }
        known |= settings
        shown[label] = settings or "as before"
    return shown


def lineage(manifests: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Inputs and outputs of each stage by content, without the paths of the machine."""
    return [
        {
            "stage": label,
            "seed": manifest["seed"],
            "commit": (manifest["commit"] or "not known")[:19],
            "inputs": {name: at["sha256"][:12] for name, at in manifest["inputs"].items()},
            "outputs": {name: sha[:12] for name, sha in manifest["outputs"].items()},
            "summary": {
                name: value
                for name, value in manifest["summary"].items()
                if isinstance(value, bool | int | float)
            },
        }
        for label, manifest in manifests.items()
    ]


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _row(comparison: Comparison) -> dict[str, str]:
    cells = {"label": LABELS[comparison.name][0]}
    for side, m in (("baseline", comparison.baseline), ("policy", comparison.policy)):
        cells[side] = "{} ({}; {})".format(*written(m), counted(m)) if m else "not judged"
    gap = comparison.difference
    cells["difference"] = (
        "{} ({}), {}".format(*written(gap, signed=True), direction(comparison)) if gap else ""
    )
    return cells
