"""The built-in trainer: GRPO on a Hugging Face causal language model. `entry = "trainers.grpo:main"`.

Importing this package imports nothing heavy, so that verifiers can read `trainers.grpo.tasks`; `trainers.grpo.train` is what a
prewarmed pool preloads.
"""


def main() -> None:
    """One rank, from connect to the last step."""
    from trainshed import connect

    from trainers.grpo.train import run

    run(connect())
