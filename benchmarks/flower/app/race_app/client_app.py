"""Flower's client: answers each message with a made-up update."""

import os
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.round_marks import send_mark
from benchmarks.round_payload import make_new, update_of

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    round_number = int(message.content["config"]["server-round"])
    send_mark(Path(os.environ["FEDNANO_RACE_MARKS"]), round_number)
    update = update_of(int(context.node_config["partition-id"]))
    make_new(update, round_number)
    content = RecordDict({"arrays": ArrayRecord(update), "metrics": MetricRecord({"num-examples": 100, "loss": 1.0})})
    return Message(content=content, reply_to=message)
