"""Flower's server: FedAvg's rounds, with the race's merge in the place of its mean. No evaluation."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.round_payload import initial_adapter, merge

app = ServerApp()


class FisherMerge(FedAvg):
    """Asks every client in each round."""

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        updates = [reply.content["arrays"].to_numpy_ndarrays() for reply in replies]
        return ArrayRecord(merge(updates)), MetricRecord({"updates": len(updates)})


@app.main()
def main(grid: Grid, context: Context) -> None:
    clients = int(context.run_config["clients"])
    strategy = FisherMerge(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid, ArrayRecord(initial_adapter()), num_rounds=int(context.run_config["rounds"]))
