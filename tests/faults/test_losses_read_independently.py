"""What `result.json` says of a run is what plain PyTorch says of its weights on the same windows of the text itself."""

import math

import pytest
import torch
from launching import CONTEXT, make_run, start
from plain_reading import mean_loss, validation_windows
from plain_xlstm import logits

from xlstm.generation import TrainedRun
from xlstm.models.sizes import config_for
from xlstm.run.directory import Workspace


@pytest.mark.serial
def test_an_xlstm_as_in_the_quickstart_has_the_loss_that_its_weights_have_in_plain_pytorch(
    workspace: Workspace,
) -> None:
    run = make_run(workspace, model=config_for("xlstm[3:1]", {"embedding_dim": 32, "num_blocks": 4}, 256))
    validation = start(run).completed().validation
    weights = {name: value.detach() for name, value in TrainedRun.load(run, "cpu").model.named_parameters()}
    tokens, targets = validation_windows(workspace.root / "corpus.txt", CONTEXT, 32)
    with torch.no_grad():
        loss = mean_loss(logits(weights, tokens, blocks=4, heads=4), targets)
    assert validation.loss == pytest.approx(loss, rel=1e-5)  # a hundred roundings of float32
    assert validation.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert validation.tokens == targets.numel()
    assert loss < 0.9 * math.log(256)  # it has learnt something: another weight would be seen
