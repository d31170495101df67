"""Export stage: one adapter on the public base, its model card, and the merged model on request.

    python scripts/export.py --config configs/quickstart.yaml --merge true
    python scripts/export.py --config configs/quickstart.yaml --force true

Refuses without a passing report; --force true lets it go and writes that into the card.
"""

import sys

from rlaif import export
from rlaif.card import CardFacts, write_card
from sft import chat, config, lineage, runs
from sft.config import Recipe
from sft.tracking import tracker


def manifests(recipe: Recipe) -> dict[str, dict[str, object]]:
    """The manifests of the run's stages, by the names that the card gives them."""
    folders = {"finetune": runs.stage_folder(recipe, "finetune")}
    for n in range(1, recipe.rounds + 1):
        for name in ("candidates", "scores", "pairs", "dpo"):
            folders[f"{name}, round {n}"] = runs.stage_folder(recipe, name, n)
    folders["evaluation"] = runs.stage_folder(recipe, "evaluation")
    found = {label: runs.read_manifest(folder) for label, folder in folders.items()}
    return {label: manifest for label, manifest in found.items() if manifest}


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "export", __doc__ or "")
    adapter, section = lineage.policy_adapter(recipe), recipe.export
    report_path = runs.stage_folder(recipe, "evaluation") / "report.json"
    report = export.read_report(report_path)
    against = export.release(report, adapter, force=section.force)
    inputs = (
        {"adapter": adapter}
        | ({"report": report_path} if report else {})
        | lineage.base_input(recipe)
    )
    settings = recipe.settings("use_cpu", "model", "export")
    opened = runs.open_stage(recipe, "export", config=settings, inputs=inputs)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused or not stage.is_main:
            return
        from rlaif import deliver  # torch takes seconds to import; mistakes are told before

        exported, merged_folder = stage.path("adapter"), stage.path("merged")
        base = export.public_name(recipe.model.name_or_path)
        export.copy_adapter(adapter, exported, base=base, revision=recipe.model.revision)
        deliver.save_tokenizer(recipe, exported)
        checks, merged = (
            [],
            deliver.merge_model(recipe, adapter, merged_folder) if section.merge else "",
        )
        if section.verify:
            sentence, adapted, untrained = deliver.check_adapter(recipe, adapter, exported)
            checks.append(sentence)
            if section.merge:
                checks.append(
                    "Merged model: "
                    + deliver.check_merged(recipe, merged_folder, adapted, untrained)
                )
        if section.merge:
            deliver.save_tokenizer(recipe, merged_folder)
        system = chat.system_prompt(recipe.model.system_prompt)
        facts = CardFacts(
            recipe.run,
            base,
            recipe.model.revision,
            against,
            report,
            manifests(recipe),
            system,
            merged,
            checks,
        )
        write_card(facts, exported, [stage.path("README.md"), exported / "README.md"])
        for line in checks:
            stage.say(line)
        stage.say(f"exported: {exported} (card: {stage.path('README.md')})")
        track.artifact(
            exported, "export", "model", uses={"adapter-dpo": adapter, "report": report_path}
        )
        stage.finish(
            ["adapter", "README.md", *(["merged"] if section.merge else [])],
            checks=checks,
            against=against,
        )


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
