"""Export stage: one adapter on the public base, its model card, and the merged model on request.

    python scripts/export.py --config configs/quickstart.yaml --merge true
    python scripts/export.py --config configs/quickstart.yaml --force true

Refuses without a passing report; --force true lets it go and writes that into the card.
"""

import sys

from rlaif import card, export
from sft import chat, config, lineage, runs
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "export", __doc__ or "")
    adapter = lineage.policy_adapter(recipe)
    report_path = runs.stage_folder(recipe, lineage.proof_stage(recipe, "evaluation"))
    report_path = report_path / "report.json"
    report = export.read_report(report_path)
    against = export.release(report, adapter, force=recipe.export.force)
    inputs = lineage.base_input(recipe) | {"adapter": adapter}
    inputs |= {"report": report_path} if report else {}
    settings = recipe.settings("use_cpu", "model", "export")
    opened = runs.open_stage(
        recipe, lineage.proof_stage(recipe, "export"), config=settings, inputs=inputs
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused or not stage.is_main:
            return
        # torch takes seconds to import: mistakes are told before.
        from rlaif.deliver import deliver

        done = deliver(recipe, adapter, stage.folder)
        facts = card.CardFacts(
            name=recipe.run,
            base=export.public_name(recipe.model.name_or_path),
            revision=recipe.model.revision,
            against=against,
            report=report,
            manifests=card.manifests_of(recipe),
            system_prompt=chat.system_prompt(recipe.model.system_prompt),
            merged=done.merged,
            checks=done.checks,
        )
        exported, page = stage.path("adapter"), stage.path("README.md")
        card.write_card(facts, exported, [page, exported / "README.md"])
        for line in (*done.checks, f"exported: {exported} (card: {page})"):
            stage.say(line)
        made_from = [adapter, *([report_path] if report else [])]
        track.artifact(exported, "model", uses=made_from)
        stage.finish([*done.outputs, "README.md"], checks=done.checks, against=against)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
