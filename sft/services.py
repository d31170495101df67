"""Which services a recipe asks, at which price, and where conversations and the key would go.

Not here: whether an address can be called at all (`sft.service_settings.reachable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sft.judging_settings import EMBEDDED, member
from sft.ppo_settings import PpoSection
from sft.sections import EvaluateSection, GenerateSection, ScoreSection
from sft.service_settings import OPENAI, PartsSection, ServiceSection, host_of, is_local

Problem = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Address:
    """A service that a recipe asks.

    Attributes:
        url: where it is.
        field: the setting that says so.
        allow: the setting that names the hosts which may be asked there.
        allowed: these hosts.
    """

    url: str
    field: str
    allow: str
    allowed: Sequence[str]

    @property
    def host(self) -> str:
        """The machine that it is on."""
        return host_of(self.url)


def service_problems(
    generate: GenerateSection, score: ScoreSection, evaluate: EvaluateSection, ppo: PpoSection
) -> list[Problem]:
    """Who judges what, what it may cost, and what may leave the machine."""
    found: list[Problem] = []
    same = evaluate.judge == score.evaluator
    if same and (evaluate.judge != "openai" or evaluate.judge_model == score.evaluator_model):
        text = "what judged the training data may not judge the result: choose another judge"
        text += " (practice-clinic, embedded, or another judge_model)"
        found.append((("evaluate.judge", "score.evaluator"), text))
    asked: tuple[tuple[str, ServiceSection, str, str, str | None, str], ...] = (
        ("generate", generate, generate.backend, "backend", generate.served_model,
         "served_model"),
        ("score", score, score.evaluator, "evaluator", score.evaluator_model,
         "evaluator_model"),
        ("evaluate", evaluate, evaluate.judge, "judge", evaluate.judge_model, "judge_model"),
    )  # fmt: skip
    addresses: list[Address] = []
    for name, section, who, who_field, model, model_field in asked:
        found += _money(name, section)
        if who != "openai":
            continue
        if model is None:
            text = f"{who_field} openai needs {name}.{model_field}: which model shall it ask?"
            found.append(((f"{name}.{who_field}", f"{name}.{model_field}"), text))
        addresses.append(_address(name, section.base_url or OPENAI, "base_url", section))
    for name, at in map(member, score.panel):
        if name != EMBEDDED:
            url = at or score.base_url or OPENAI
            addresses.append(_address("score", url, "panel" if at else "base_url", score))
    if ppo.rollout_url is not None:
        allowed = [ppo.allow_remote] if ppo.allow_remote else []
        url = ppo.rollout_url
        addresses.append(Address(url, "ppo.rollout_url", "ppo.allow_remote", allowed))
    return found + _hosts(addresses)


def _address(stage: str, url: str, field: str, section: ServiceSection) -> Address:
    return Address(url, f"{stage}.{field}", f"{stage}.allow_remote", section.allow_remote)


def _money(name: str, section: ServiceSection) -> list[Problem]:
    """A cap that nobody could keep, and a share of prompts that there is not."""
    found: list[Problem] = []
    if section.max_cost is not None and None in (section.price_in, section.price_out):
        fields = tuple(f"{name}.{field}" for field in ("max_cost", "price_in", "price_out"))
        found.append((fields, "a cap needs both prices, in US dollars per million tokens"))
    if isinstance(section, GenerateSection) and section.backend == "local":
        text = "only a served policy (generate.backend openai) can be asked in parts"
        given = {f"{name}.shard": section.shard, f"{name}.dry_run": section.dry_run}
        found += [((field, "generate.backend"), text) for field, value in given.items() if value]
    shard = section.shard if isinstance(section, PartsSection) else None
    if shard is not None:
        number, of = map(int, shard.split("/"))
        if number > of:
            found.append(((f"{name}.shard",), f"{shard}: there are only {of} shards"))
    return found


def _hosts(asked: Sequence[Address]) -> list[Problem]:
    """Hosts that nobody allowed, and a key that would go to more than one of them."""
    found: list[Problem] = []
    away = [each for each in asked if not is_local(each.url)]
    for allow in dict.fromkeys(each.allow for each in away):
        unasked = [e for e in away if e.allow == allow and e.host not in e.allowed]
        if unasked:
            hosts = ",".join(sorted({each.host for each in unasked}))
            fields = tuple(dict.fromkeys(each.field for each in unasked))
            text = f"this would send conversations to {hosts}: say {allow} {hosts}"
            text += f" where you may do so, or name a service on this machine in {fields[0]}"
            found.append(((*fields, allow), text))
    hosts_asked = sorted({each.host for each in away})
    if len(hosts_asked) > 1:
        text = (
            f"the key in OPENAI_API_KEY would go to {' and '.join(hosts_asked)}: services on other"
            " machines have to be at one host; ask the others by a recipe and a key of their own"
        )
        found.append((tuple(dict.fromkeys(each.field for each in away)), text))
    return found
