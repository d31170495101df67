"""SFT's plain head gives the loss, gradient and metrics of TRL's."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES

from sft import model as models
from sft import plain_head, train
from sft.chat import Chat
from sft.config import FinetuneSection, ModelSection
from sft.recipe import Recipe

PRECISION = models.choose_precision("float32", use_cpu=True)


def loss_gradient_and_metrics(folder, tmp_path, demonstrations, packing):
    section = ModelSection(name_or_path=str(folder), dtype="float32", lora_r=4, max_length=256)
    torch.manual_seed(3)
    model = models.new_adapter(models.load_base(section, PRECISION), section)
    chat = Chat(models.load_tokenizer(section), "", 256)
    recipe = Recipe(run="x", use_cpu=True, finetune=FinetuneSection(trainer={"packing": packing}))
    options = train.trainer_options(recipe.finetune, recipe, PRECISION, tmp_path)
    rows = train.encode(chat, demonstrations).rows
    trainer = train.make_trainer(model, rows, options, chat.tokenizer)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    named = trainer.model.named_parameters()
    gradient = torch.cat([w.grad.flatten() for _, w in named if w.grad is not None])
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_gradient_and_metrics_are_those_of_trls_head(
    model_folders, tmp_path, demonstrations, family, packing, monkeypatch
):
    given = (model_folders[family], tmp_path, demonstrations, packing)
    loss, gradient, metrics = loss_gradient_and_metrics(*given)
    monkeypatch.setattr(plain_head, "FAMILIES", ())
    expected, theirs, logged = loss_gradient_and_metrics(*given)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert (gradient - theirs).norm() <= 1e-4 * theirs.norm()
    assert metrics.keys() == logged.keys()
    for name, value in logged.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4)
