"""Loading: precision by device, adapters in float32, 4-bit on the CPU, and errors that say the next
step."""

from __future__ import annotations

import httpx2 as httpx
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from sft import model as models
from sft.chat import Chat
from sft.config import ModelSection
from sft.files import UserError
from sft.train import snapshot

FLOAT32 = models.Precision(torch.float32, False, False, "cpu", "test")


def section(folder, **settings) -> ModelSection:
    """Settings of a model on disk."""
    return ModelSection(name_or_path=str(folder), max_length=256, lora_r=4, **settings)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2"])
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_every_family_takes_an_adapter_that_learns(model_folders, talks, family, load_in_4bit):
    settings = section(model_folders[family], load_in_4bit=load_in_4bit)
    tokenizer = models.load_tokenizer(settings)
    model = models.new_adapter(models.load_base(settings, FLOAT32), settings)
    row = Chat(tokenizer, "", 256).render(talks[0][:-1], talks[0][-1:])
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in gradients)
    assert all(float(g.abs().sum()) > 0 for n, g in gradients.items() if "lora_B" in n)


def test_fresh_adapter_says_what_the_base_says(model_folders):
    settings = section(model_folders["llama"])
    base = models.load_base(settings, FLOAT32)
    ids = torch.tensor([[1, 2, 3]])
    before = base(ids).logits
    assert torch.equal(models.new_adapter(base, settings)(ids).logits, before)


def test_adapters_stay_float32_on_a_low_precision_base(model_folders, tmp_path):
    settings = section(model_folders["llama"], dtype="bfloat16")
    precision = models.choose_precision("bfloat16", use_cpu=True)
    model = models.new_adapter(models.load_base(settings, precision), settings)
    models.save_adapter(model, tmp_path / "adapter", "some/base")
    again = models.load_adapter(
        models.load_base(settings, precision), tmp_path / "adapter", trainable=True
    )
    for each in (model, again):
        assert {p.dtype for n, p in each.named_parameters() if "lora_" in n} == {torch.float32}
        assert {p.dtype for n, p in each.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_saved_adapter_names_the_public_base_and_is_safetensors(model_folders, tmp_path):
    settings = section(model_folders["llama"])
    model = models.new_adapter(models.load_base(settings, FLOAT32), settings)
    models.save_adapter(model, tmp_path / "adapter", "meta-llama/Meta-Llama-3-8B-Instruct")
    assert (
        "meta-llama/Meta-Llama-3-8B-Instruct"
        in (tmp_path / "adapter" / "adapter_config.json").read_text()
    )
    assert set(models.adapter_weights(tmp_path / "adapter")) == {
        name.replace(".default", "") for name, _ in model.named_parameters() if "lora_" in name
    }


def test_speakers_share_one_base_and_differ_by_adapter(model_folders, tmp_path):
    settings = section(model_folders["llama"], dtype="float32")
    model = models.new_adapter(models.load_base(settings, FLOAT32), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    models.save_adapter(model, tmp_path / "adapter", "base")
    speakers = models.load_speakers(
        settings, {"policy": tmp_path / "adapter", "baseline": None}, use_cpu=True
    )
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        with speakers.active("policy") as policy:
            ours = policy(ids).logits
        with speakers.active("baseline") as baseline:
            theirs = baseline(ids).logits
        with speakers.active("policy") as policy:
            assert torch.equal(policy(ids).logits, ours)
    assert torch.allclose(theirs, models.load_base(settings, FLOAT32)(ids).logits, atol=1e-6)
    assert not torch.allclose(ours, theirs)


def test_pad_token_is_not_the_end_of_text(model_folders):
    for family in ("llama", "gpt2"):
        tokenizer = models.load_tokenizer(section(model_folders[family]))
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_precision_follows_the_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "card")
    # What PyTorch says of a T4: bf16 "works", because it is emulated.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    precision = models.choose_precision("auto", use_cpu=False)
    assert precision.dtype == expected
    assert (precision.fp16, precision.bf16) == (
        expected == torch.float16,
        expected == torch.bfloat16,
    )


def test_missing_folder_and_wrong_folder_say_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, words in (
        (tmp_path / "nowhere" / "at" / "all", "no such folder"),
        (tmp_path, "not of a causal"),
    ):
        with pytest.raises(UserError, match=words):
            models.load_base(section(folder), FLOAT32)


def test_a_model_with_fewer_positions_is_refused_before_its_weights(model_folders, monkeypatch):
    monkeypatch.delattr(models.AutoModelForCausalLM, "from_pretrained")
    settings = section(model_folders["gpt2"]).model_copy(update={"max_length": 257})
    with pytest.raises(UserError, match=r"257 tokens, but .* has 256 positions"):
        models.load_base(settings, FLOAT32)


NAME = "meta-llama/Meta-Llama-3-8B-Instruct"
REQUEST = httpx.Request("GET", f"https://huggingface.co/api/models/{NAME}")


def refusal(kind: type[HfHubHTTPError], code: int) -> HfHubHTTPError:
    """What the Hub's client raises for an answer."""
    return kind(f"{code} Client Error.", response=httpx.Response(code, request=REQUEST))


@pytest.mark.parametrize(
    ("cause", "told", "not_told"),
    [
        (
            refusal(GatedRepoError, 403),
            r"Accept its licence on .*/Meta-Llama.*HF_TOKEN",
            "no model",
        ),
        # The Hub says 401 of a name that it does not know, as it might be private.
        (refusal(RepositoryNotFoundError, 401), "no model .* check the spelling", "licence"),
        (refusal(RevisionNotFoundError, 404), r"no such revision.*--model\.revision", "licence"),
        (LocalEntryNotFoundError("no network"), "Hub did not give it", "licence"),
    ],
)
def test_what_the_hub_refuses_gets_the_exact_next_step(monkeypatch, cause, told, not_told):
    def refuse(*args, **kwargs):
        raise OSError("it did not work: 401 Client Error.") from cause

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(UserError, match=told) as error:
        models.load_tokenizer(section(NAME))
    assert not_told not in str(error.value)


def test_a_download_has_tokenizers_and_licences_and_no_pickles(monkeypatch, tmp_path):
    asked = {}

    def take(name, revision, **options):
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(models, "snapshot_download", take)
    assert models.downloaded(section(NAME)) == tmp_path
    wanted = (
        *("config.json", "model-00001-of-00004.safetensors", "model.safetensors.index.json"),
        *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
        *("LICENSE", "LICENSE.txt", "NOTICE", "README.md", "USE_POLICY.md"),
    )
    unwanted = (
        *("pytorch_model.bin", "training_args.bin", "modeling_llama.py", "model.pt"),
        *("original/consolidated.00.pth", "onnx/config.json", "consolidated.safetensors"),
    )
    kept = set(filter_repo_objects([*wanted, *unwanted], **asked))
    assert kept == set(wanted)


def test_a_kernel_that_cannot_train_here_is_refused(model_folders):
    settings = section(model_folders["llama"], attn_implementation="flex_attention")
    with pytest.raises(
        UserError, match=r"no gradient on a CPU: set model.attn_implementation sdpa"
    ):
        models.load_base(settings, FLOAT32)


def test_weights_that_were_put_together_are_saved_as_those_of_the_model(model_folders, tmp_path):
    settings = section(model_folders["llama"])
    model = models.new_adapter(models.load_base(settings, FLOAT32), settings)
    weights = snapshot(model)
    models.save_adapter(model, tmp_path / "own", "base")
    for value in model.parameters():
        value.data.zero_()  # a share: not what is to be saved
    models.save_adapter(model, tmp_path / "given", "base", weights)
    own, given = (models.adapter_weights(tmp_path / name) for name in ("own", "given"))
    assert own.keys() == given.keys()
    assert all(torch.equal(own[name], given[name]) for name in own)
