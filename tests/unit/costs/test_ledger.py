from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from fednano.costs.ledger import Workload, compute, held, paper_accounting, traffic
from fednano.costs.shapes import SHAPES

WORK = Workload(
    rank=64, batch_size=8, text_tokens=24, answer_tokens=2, local_steps=10, rounds=3, wire_bytes=2, fisher_examples=0
)
SHAPE = SHAPES["llava-1.5-7b"]


def test_the_paper_s_figures_of_llava_come_out() -> None:
    paper = paper_accounting(SHAPE, rank=64)
    assert f"{paper.client_parameters / 1e6:.2f}" == "304.55"
    assert f"{100 * paper.client_share:.2f}" == "4.30"
    assert f"{paper.upload_parameters / 1e6:.2f}" == "1.05"
    assert f"{100 * paper.upload_share:.2f}" == "0.01"


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_counts_are_those_of_transformers_own_classes(name: str) -> None:
    shape = SHAPES[name]
    vision, language = shape.vision, shape.language
    with torch.device("meta"):
        encoder = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=vision.width,
                intermediate_size=vision.mlp_width,
                num_hidden_layers=vision.layer_count,
                num_attention_heads=16,
                image_size=vision.image_side_px,
                patch_size=vision.patch_px,
            )
        )
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=language.hidden_size,
                intermediate_size=language.mlp_width,
                num_hidden_layers=language.layer_count,
                num_attention_heads=language.head_count,
                num_key_value_heads=language.key_value_head_count,
                vocab_size=language.vocab_size,
            )
        )
    used = [weight.numel() for key, weight in encoder.named_parameters() if "post_layernorm" not in key]
    assert vision.parameter_count == sum(used)
    assert language.parameter_count == sum(weight.numel() for weight in model.parameters())


def test_client_and_server_hold_the_model_between_them() -> None:
    parts = held(SHAPE, rank=64)
    # The head is the server's here; the token embedding is the client's alone.
    assert parts.client - parts.adapters + parts.server == parts.model


def test_the_steps_of_a_run_move_far_more_than_its_adapters() -> None:
    moved = traffic(SHAPE, WORK)
    tokens = 8 * (576 + 24)
    assert moved.step_up == moved.step_down == (tokens + 8 * 2) * 4096 * 2
    assert moved.round_adapter_up == moved.round_fisher_up == 1_048_576 * 4
    assert moved.run == 3 * (10 * (moved.step_up + moved.step_down) + 3 * 4 * 1_048_576)


def test_a_fisher_pass_over_the_examples_of_the_steps_costs_what_the_steps_cost() -> None:
    """FedNano's, at the end of a round of one epoch: measured, a run of it moves about twice what FedAvg's does."""
    work = replace(WORK, fisher_examples=WORK.batch_size * WORK.local_steps)
    alone, both = traffic(SHAPE, WORK), traffic(SHAPE, work)
    assert both.round_fisher_pass == both.round_steps == alone.round_steps
    assert both.run - alone.run == WORK.rounds * alone.round_steps
    assert compute(SHAPE, work).server_fisher_round == WORK.local_steps * compute(SHAPE, WORK).server_step
    assert compute(SHAPE, WORK).server_fisher_round == alone.round_fisher_pass == 0


def test_the_server_computes_four_flops_for_each_parameter_and_token() -> None:
    spent = compute(SHAPE, WORK)
    tokens, answers = 8 * 600, 16
    assert spent.server_step == 4 * (tokens * SHAPE.language.layers_count + answers * 32_000 * 4096)
    assert spent.server_passes_per_round == 20
    assert spent.client_step == 6 * tokens * 2 * 64 * 4096
