"""A server of two processes, each with half of each layer, behind one address: what a client gets, and how it ends."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from split_client import LENGTHS, NANO, POSITIONS, in_process, inputs, steps

from fednano.config import Security, read_settings
from fednano.errors import SettingsInvalid
from fednano.model.language import load_language_model
from fednano.rpc.channels import open_channel
from fednano.v1 import split_service_pb2 as pb
from fednano.v1.split_service_pb2_grpc import SplitServiceStub
from services.server.backbone import join_ranks
from services.server.settings import ServerSettings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes, one device")]
PATIENCE_S = 90.0
MODULE = ["-m", "services.server", "--insecure", "--tensor-parallel", "--model", "nano"]


@contextmanager
def spread_server(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    ready, log = folder / "ready", folder / "log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [*MODULE, "--device", "auto", "--ready-file", str(ready)]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *flags], stdout=output, stderr=output)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not ready.is_file():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline_s, log.read_text()[-3000:]
            time.sleep(0.05)
        yield ready.read_text(), process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def test_a_client_gets_what_the_whole_model_gives_and_a_signal_ends_both(tmp_path: Path) -> None:
    model = load_language_model(NANO)
    grad_ND = inputs(seed=1, tokens=len(POSITIONS))
    wanted = in_process(model, inputs(), grad_ND, "hidden_states")
    with spread_server(tmp_path) as (address, process):
        found = asyncio.run(both_passes(address, model.manifest.digest, grad_ND))
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    for own, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-4)
    log = (tmp_path / "log").read_text()
    assert all(f'"event": "{event}"' in log for event in ("following", "serving", "stopped"))
    # torchrun itself shows a trace for its signal; ours have nothing to say.
    assert "lost_step" not in log
    assert "services.server:" not in log


async def both_passes(address: str, digest: str, grad_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    async with open_channel(address, Security(insecure=True)) as channel:
        client = steps(SplitServiceStub(channel))
        await client.send(open_session=pb.OpenSession(model_digest=digest, run="runs/test", encoding=1))
        await client.read()
        output_ND = await client.forward(1, inputs(), sequence_lengths=LENGTHS)
        return output_ND, await client.backward(1, grad_ND)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--device", "auto"], "start with torchrun"),
        (["--device", "auto", "--quantize", "int8"], "leave --quantize out"),
        (["--device", "cpu"], "say --device auto"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    if "torchrun" not in said:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    settings = read_settings(ServerSettings, ["--insecure", "--tensor-parallel", *flags])
    with pytest.raises(SettingsInvalid, match=said):
        join_ranks(settings)
