"""parity.py, a shape a test: torch's SDPA against the GPU's side, everything dense."""

import pytest

import magicpig
from parity import LIMIT, SHAPES, error_of


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_sdpa(daemon_socket, device, gpu_operators, shape):
    with magicpig.Client(daemon_socket) as client:
        assert error_of(client, device, shape) <= LIMIT
