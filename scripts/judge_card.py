"""The judge card: what an evaluator is worth against people's labels, as one page and as JSON.

python scripts/judge_card.py --data answers.jsonl
python scripts/judge_card.py --data grades.csv --evaluator openai --model NAME --allow_remote HOST

--dry_run tells what the second one would ask and cost. Answers of a service are kept in
the card's folder: what a stopped run has paid for is not asked again, nor is anything when the card
is made once more.
"""

import argparse
from pathlib import Path

from reward.card_plan import SERVICE, card_plan_line, measured_evaluator, measured_service
from reward.judge_card import FIXED, make_card, table
from reward.label_forms import FORMS, load_labels
from reward.page import write_card
from reward.probes import asked
from reward.rubric import DEFAULT_RUBRIC, load_rubric
from reward.score import live_note
from reward.shards import LEDGER
from sft.files import UserError, write_json
from sft.runs import Progress, run_script
from sft.service_settings import ServiceSection


def arguments() -> argparse.Namespace:
    """Read the command line; mistakes are told before anything is asked."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog=FORMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="labels (.jsonl, .json, .csv)")
    add("--messages", type=Path, help="messages of known risk (text, risk, kind, part)")
    add("--evaluator", choices=["embedded", "openai"], default="embedded", help="who is measured")
    add("--rubric", help="a rubric file; default: configs/rubric.yaml")
    add("--model", help="model of the service (openai only)")
    for name in SERVICE:
        of_section = ServiceSection.model_fields[name]
        add(f"--{name}", help=f"{of_section.description} (openai only)")
    add("--dry_run", action="store_true", help="print requests, tokens and cost, and call nobody")
    add("--ask", choices=["one", "together"], default="one", help="as score.ask (openai only)")
    add("--repeats", type=int, default=1, help="as score.repeats (openai only); >= 1")
    add("--probes", type=int, default=40, help="prompts probed by order, padding, attacks; >= 1")
    add("--out", type=Path, default=Path("runs/judge_card"), help="folder of the card")
    args = parser.parse_args()
    if min(args.probes, args.repeats) < 1:
        raise UserError(f"--probes {args.probes}, --repeats {args.repeats}: at least 1 each")
    return args


def main() -> None:
    """Measure, print the table and write the page and the JSON."""
    args = arguments()
    service = measured_service(vars(args))  # a host that nobody allowed is told first
    labels = load_labels(args.data, load_rubric(Path(args.rubric or DEFAULT_RUBRIC)))
    evaluator = measured_evaluator(vars(args), service, args.out / LEDGER)
    if args.dry_run:
        print(card_plan_line(evaluator, labels, args.probes), flush=True)
        return
    total = len(labels.replies) + asked(min(args.probes, len(labels.prompts)))
    print(f"{evaluator.name} is asked for at most {total * args.repeats} verdicts")
    with Progress(total, "judge card", unit="replies", note=live_note(evaluator)) as bar:
        card = make_card(
            *(evaluator, labels),
            **{"data": args.data, "messages": args.messages, "n_probed": args.probes},
            notes=[FIXED] if args.evaluator == "embedded" else [],
            tell=bar.advance,
        )
    print(table(card))
    write_json(args.out / "card.json", card)
    write_card(card, args.out / "card.html")
    print(f"written: {args.out / 'card.html'} and card.json")


if __name__ == "__main__":
    run_script(main)
