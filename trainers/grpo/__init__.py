"""The built-in trainer: GRPO (group-relative policy optimisation) on a Hugging Face causal language model. `entry = "trainers.grpo:main"`.

It is also the example of a complete trainer: everything that it asks of Trainshed goes through `trainshed`, as a user's script would.

Parts: `train` has the loop; `loss` the arithmetic (tensors in, tensors out); `distributed` the ranks as one group; `checkpoint` what a
restart resumes from; `settings` the options of the TOML file; `tasks` prompts and rewards that a program verifies; `tiny` a model that is
made on the spot. `settings`, `tasks` and the head of `tiny` import no torch: `check` and the verifiers read them.

One step, on every rank (`train.Trainer.step`):

1. draw prompts from (task, seed, step); open a rollout and wait for all samples: every rank gets every sample;
2. rank 0 has them judged (`trainers.rewards`), before the lease, so that no GPU waits for a verifier;
3. in the lease: broadcast the rewards, compute advantages within each group of samples of one prompt, make `epochs` passes over minibatches
   (each rank takes a fixed share, gradients are summed), publish the new weights;
4. rank 0 appends a line to `metrics.jsonl`, reports, and saves a checkpoint; all ranks say that it is saved.

Bits: every random number comes from (seed, step), every sum has a fixed order. So the same run gives the same weights, interrupted or
not, alone or beside other pipelines, for the same number of ranks. Tests compare the hashes in `metrics.jsonl`.

Importing this package imports nothing heavy.
"""


def main() -> None:
    """Runs one rank, from `connect` to the last step."""
    from trainshed import connect

    from trainers.grpo.train import run

    run(connect())
