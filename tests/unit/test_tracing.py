"""What is recorded, what may be said, and that nothing is where nobody asked for it. Each in a process of its own."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDING = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from fednano.tracing import span, span_for_peer, trace_metadata, traceparent
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_where_nobody_asks_nothing_is_recorded_nor_imported() -> None:
    program = """
import sys
from fednano.tracing import span, trace_metadata, traceparent, tracing
with tracing("service", ""), span("round", round="runs/r/rounds/1"):
    print(repr(traceparent()), trace_metadata(), any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert run(program) == "'' () False"


def test_a_peers_span_is_the_child_of_the_one_whose_context_was_sent() -> None:
    program = (
        RECORDING
        + """
with span("step", step=3):
    sent = dict(trace_metadata())["traceparent"]
    assert sent == traceparent()
with span_for_peer("pass", sent, tokens=7):
    pass
with span_for_peer("unasked", ""):
    pass
step, child = kept.get_finished_spans()
print(child.parent.span_id == step.context.span_id, child.name, dict(child.attributes), dict(step.attributes))
"""
    )
    assert run(program) == "True pass {'tokens': 7} {'step': 3}"


def test_work_in_another_thread_is_part_of_the_span_around_it() -> None:
    program = (
        RECORDING
        + """
def inner():
    with span("inner"):
        pass
async def main():
    with span("outer"):
        await asyncio.to_thread(inner)
asyncio.run(main())
inner, outer = kept.get_finished_spans()
print(inner.parent.span_id == outer.context.span_id)
"""
    )
    assert run(program) == "True"


def test_a_pass_with_labels_is_part_of_the_clients_step() -> None:
    program = (
        RECORDING
        + """
import sys
sys.path.insert(0, "tests/numerics")
from test_loss_on_server import batch_of, edge_without_head, loss_and_gradients
from whole_and_split import nano_language, remote_language
async def main():
    edge = edge_without_head()
    async with remote_language(edge, nano_language(), loss_on_server=True) as remote:
        with span("step", step=1):
            await asyncio.to_thread(loss_and_gradients, edge, remote, batch_of(edge))
asyncio.run(main())
spans = {each.name: each for each in kept.get_finished_spans()}
lines = [(name, spans[name].parent.span_id == spans[above].context.span_id, sorted(spans[name].attributes))
         for name, above in (("loss pass", "loss"), ("loss", "step"))]
print(lines)
"""
    )
    said = "['step_id', 'tokens']"
    assert run(program).splitlines()[-1] == f"[('loss pass', True, {said}), ('loss', True, {said})]"


def test_an_error_is_told_by_its_class_and_not_by_its_words() -> None:
    program = (
        RECORDING
        + """
try:
    with span("round"):
        raise ValueError("the answer is: seven")
except ValueError:
    pass
(one,) = kept.get_finished_spans()
print(one.status.status_code.name, one.attributes["error.type"], one.events, "seven" in one.to_json())
"""
    )
    assert run(program) == "ERROR ValueError () False"


def test_what_is_not_on_the_list_cannot_be_said() -> None:
    program = (
        RECORDING
        + """
try:
    with span("round", answer="seven"):
        pass
except AssertionError as error:
    print(error)
"""
    )
    assert run(program) == "round may not say ['answer']"


def test_without_the_library_the_error_names_the_extra() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from fednano.errors import SettingsInvalid
from fednano.tracing import tracing
try:
    with tracing("service", "http://127.0.0.1:4317"):
        pass
except SettingsInvalid as error:
    print(error.message)
"""
    assert "fednano[tracing]" in run(program)


def test_a_collector_that_is_not_there_disturbs_nobody() -> None:
    program = """
import time
from fednano.telemetry import configure_logging
from fednano.tracing import span, tracing
configure_logging("test", json_lines=True)
start_s = time.monotonic()
with tracing("service", "http://127.0.0.1:1"), span("round"):
    pass
print(time.monotonic() - start_s < 20)
"""
    assert run(program) == "True"
