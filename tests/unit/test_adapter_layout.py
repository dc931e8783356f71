"""What an adapter file holds, and that every run with the same arguments starts from the same bytes."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from fednano.adapter_layout import adapter_shapes, initial_adapter


def test_each_modality_has_two_tensors_sorted_by_name() -> None:
    shapes = adapter_shapes(["text", "image"], 8, 2)
    assert dict(shapes) == {
        "image.down.weight": (2, 8),
        "image.up.weight": (8, 2),
        "text.down.weight": (2, 8),
        "text.up.weight": (8, 2),
    }
    assert list(shapes) == sorted(shapes)


def test_the_initial_adapter_changes_nothing_yet() -> None:
    adapter = initial_adapter(["image"], 8, 2, seed=0)
    assert not adapter["image.up.weight"].any()
    assert adapter["image.down.weight"].all()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in adapter.items()} == {
        name: (shape, np.float32) for name, shape in adapter_shapes(["image"], 8, 2).items()
    }


def test_its_down_half_is_normal_with_variance_one_over_the_hidden_size() -> None:
    down = initial_adapter(["image"], 1024, 64, seed=0)["image.down.weight"]
    assert down.std() == pytest.approx(1 / 32, rel=0.02)
    assert abs(down.mean()) < 1e-3


def test_the_same_arguments_give_the_same_bytes_in_any_order_of_modalities() -> None:
    forwards, backwards = (
        save(initial_adapter(names, 8, 2, seed=3)) for names in (["image", "text"], ["text", "image"])
    )
    assert forwards == backwards
    assert forwards != save(initial_adapter(["image", "text"], 8, 2, seed=4))


def test_these_bytes_are_what_earlier_runs_started_from() -> None:
    """A change of them would break the resumption of a run across versions, and every figure that was reported."""
    content = save(initial_adapter(["image", "text"], 128, 16, seed=0))
    assert hashlib.sha256(content).hexdigest() == "7179b2701b40cbe4268b87c91277e93e25bcbc4a79346e2de3ac98b4ae5a22a3"
