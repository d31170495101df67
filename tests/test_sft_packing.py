"""Packed demonstrations train as unpacked ones do, and none is cut."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from sft import model as models
from sft.config import ModelSection
from sft.files import UserError
from sft.packing import pack
from sft.train import make_trainer

PRECISION = models.choose_precision("float32", use_cpu=True)


def rows(lengths=(9, 30, 14, 22, 5, 17), seed=0):
    """Rows whose second half is the reply."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(6, 300, (length,), generator=draw).tolist()
        labels = [-100] * (length // 2) + ids[length // 2 :]
        made.append({"ids": [f"d{length}"], "input_ids": ids, "labels": labels, "length": length})
    return made


def loss_and_gradient(folder, tmp_path, **options):
    section = ModelSection(name_or_path=str(folder), dtype="float32", lora_r=4, max_length=256)
    torch.manual_seed(3)
    model = models.new_adapter(models.load_base(section, PRECISION), section)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    shared = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "bf16": False,
        "per_device_train_batch_size": 8,
    }
    trainer = make_trainer(model, rows(), shared | options, models.load_tokenizer(section))
    trainer.model.eval()  # GPT-2 has dropout
    (batch,) = trainer.get_train_dataloader()
    del batch["row"]
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    learned = [w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None]
    return len(trainer.train_dataset), loss.item(), torch.cat(learned)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_packed_rows_have_the_loss_and_gradient_of_single_ones(
    model_folders, tmp_path, family, sampling
):
    folder = model_folders[family]
    n, expected, gradient = loss_and_gradient(folder, tmp_path, max_length=None)
    n_packed, found, packed = loss_and_gradient(
        folder, tmp_path, packing=True, max_length=32, train_sampling_strategy=sampling
    )
    assert (n, n_packed) == (6, 4)
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(packed, gradient, dim=0) >= 0.99999


def test_no_demonstration_is_cut_or_lost():
    dataset = Dataset.from_list(rows())
    packed = pack(dataset, None, "bfd")
    assert max(packed["length"]) <= 30
    pieces = []
    for row in packed:
        first = 0
        for length in row["seq_lengths"]:
            piece = slice(first, first + length)
            pieces.append((row["input_ids"][piece], row["labels"][piece]))
            first += length
        assert row["ids"] == [f"d{length}" for length in row["seq_lengths"]]
        assert first == len(row["input_ids"]) == row["length"]
    assert sorted(pieces) == sorted((row["input_ids"], row["labels"]) for row in rows())


@pytest.mark.parametrize(
    ("room", "strategy", "reason"),
    [(29, "bfd", "30 tokens and a packed row 29"), (64, "wrapped", "wrapped cuts replies")],
)
def test_what_would_cut_demonstrations_is_refused(room, strategy, reason):
    with pytest.raises(UserError, match=reason):
        pack(Dataset.from_list(rows()), room, strategy)
