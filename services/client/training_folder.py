"""What one round's training leaves on disk for a process that comes after this one: checkpoint and finished update."""

from dataclasses import dataclass
from pathlib import Path

from fednano.split.traffic import Traffic
from fednano.telemetry import get_logger
from services.client.checkpoint import Checkpoint, TrainingKey, load_checkpoint, save_checkpoint
from services.client.finished_update import FinishedUpdate, load_finished, save_finished
from services.client.trainer import LocalTraining

log = get_logger("client.work")


@dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """``every_steps`` is how often the training is saved; 0 keeps nothing, and finds nothing."""

    path: Path
    key: TrainingKey
    every_steps: int

    def restore(self, training: LocalTraining, traffic: Traffic) -> float:
        """Puts the training where its checkpoint is, if there is one; returns the seconds that it had taken."""
        found = load_checkpoint(self.path, self.key) if self.every_steps else None
        if found is None or not training.expects(found[1]):
            return 0.0
        checkpoint, tensors = found
        training.restore(tensors, checkpoint.position)
        traffic.activations_bytes = checkpoint.activations_bytes
        traffic.gradients_bytes = checkpoint.gradients_bytes
        log.info("resumed", round=self.key.round, step=checkpoint.position.step_count)
        return checkpoint.seconds

    def save_if_due(self, training: LocalTraining, traffic: Traffic, seconds: float) -> None:
        if self.every_steps and training.position.step_count % self.every_steps == 0:
            self.save(training, traffic, seconds)

    def save(self, training: LocalTraining, traffic: Traffic, seconds: float) -> None:
        """``seconds`` and ``traffic`` are the training's whole, checkpoints that it went on from included."""
        if not self.every_steps:
            return
        checkpoint = Checkpoint(
            key=self.key,
            position=training.position,
            activations_bytes=traffic.activations_bytes,
            gradients_bytes=traffic.gradients_bytes,
            seconds=seconds,
        )
        save_checkpoint(self.path, checkpoint, training.tensors())

    def finished(self) -> FinishedUpdate | None:
        """The update of this very training, where an earlier process finished it."""
        found = load_finished(self.path, self.key) if self.every_steps else None
        if found is not None:
            log.info("update_found", round=self.key.round)
        return found

    def keep(self, update: FinishedUpdate) -> None:
        if self.every_steps:
            save_finished(self.path, update)
