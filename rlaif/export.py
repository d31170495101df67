"""What leaves the run folder: one adapter on the public base, with its card, behind the gate.

Not here: the conditions (`rlaif.safety`), merging (`rlaif.merge`), checking the result
(`rlaif.verify`), the card's text (`rlaif.card`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rlaif.results import Report, report_from_json
from sft.files import CheckFailed, read_json, sha256_of, storage_errors, write_json

FILES = ("adapter_model.safetensors", "adapter_config.json")


def read_report(path: Path) -> Report | None:
    """Read `report.json`; None where there is none.

    Raises:
        UserError: the file is not a report.
    """
    return report_from_json(read_json(path), str(path)) if path.is_file() else None


def release(report: Report | None, adapter: Path, *, force: bool) -> list[str]:
    """Decide whether an adapter may leave.

    Args:
        report: the evaluation's; None where there is none.
        adapter: folder of the adapter that is to be exported.
        force: let it go whatever the report says.

    Returns:
        What speaks against the release, for the card's top; empty unless forced.

    Raises:
        CheckFailed: it may not leave; the message names each condition that failed.
    """
    against = _against(report, adapter)
    if against and not force:
        raise CheckFailed(
            "export refused, there is no passing report of this adapter:\n  "
            + "\n  ".join(against)
            + "\nEvaluate it (scripts/evaluate_policy.py) or train it better. --export.force true "
            "exports it all the same, and its card will say so."
        )
    return against


def _against(report: Report | None, adapter: Path) -> list[str]:
    if report is None:
        return ["It was not evaluated: there is no report."]
    if report.policy_hash != sha256_of(adapter):
        return [
            f"The report judged another adapter ({report.policy}, sha256 "
            f"{report.policy_hash[:16]}), not {adapter}."
        ]
    return report.reasons()


def copy_adapter(adapter: Path, out: Path, *, base: str, revision: str | None) -> None:
    """Copy the adapter's weights and configuration, naming the base that a stranger can get.

    Nothing else of the folder goes along: trainers leave pickles beside an adapter.

    Args:
        adapter: folder of the trained adapter.
        out: folder to write; what is in it is replaced.
        base: public name of the base (`public_name`).
        revision: of the base; None = the newest.

    Raises:
        StorageError: the disk is full.
        CheckFailed: the copy differs from the original.
    """
    with storage_errors(out):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copyfile(adapter / FILES[0], out / FILES[0])
    config = read_json(adapter / FILES[1])
    config |= {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    write_json(out / FILES[1], config)
    if sha256_of(out / FILES[0]) != sha256_of(adapter / FILES[0]):
        raise CheckFailed(f"{out / FILES[0]} is not what was copied: check the disk")


def public_name(name_or_path: str) -> str:
    """The name under which a stranger finds the base.

    A Hub name and "embedded" stay. For a folder of this machine it is the name that the folder's
    configuration remembers, else the folder's own name: a path would help nobody else.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return name_or_path
    remembered = str(read_json(folder / "config.json").get("_name_or_path", ""))
    return remembered if remembered and not Path(remembered).is_absolute() else folder.name
