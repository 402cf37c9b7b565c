"""A training script of one's own: REINFORCE with a baseline, on one GPU or several. Of Trainshed it uses the client and nothing else."""

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from trainshed import connect
from transformers import AutoModelForCausalLM


def main() -> None:
    pipeline = connect()
    rank, ranks = pipeline.rank, pipeline.world_size  # one process a GPU, with torchrun's variables
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("nccl" if pipeline.device.startswith("cuda") else "gloo")
    tokenizer = Tokenizer.from_file(f"{pipeline.model}/tokenizer.json")
    prompt = tokenizer.encode("d:").ids
    with pipeline.lease("init"):
        model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=pipeline.options.get("lr", 5e-3))
        if pipeline.checkpoint_path:
            state = torch.load(pipeline.checkpoint_path, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        pipeline.resident(model, optimizer)
        pipeline.restore(model.state_dict)
    for step in range(pipeline.steps_done, pipeline.steps):
        with pipeline.rollout(target=256) as rollout:  # every rank gets all samples …
            samples = rollout.generate([prompt] * 256, max_new_tokens=8, ignore_eos=True)
        rewards = torch.tensor([sum(c.isdigit() for c in tokenizer.decode(s.output_ids)) / 8 for s in samples])
        with pipeline.lease("train"):
            tokens = torch.tensor([s.prompt_ids + s.output_ids for s in samples], device=pipeline.device)
            advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).to(pipeline.device)
            for part in range(8):
                mine = slice(part + 8 * rank, None, 8 * ranks)  # … and learns from its share
                ids, advantage = tokens[mine], advantages[mine, None]
                logprobs = model(ids).logits[:, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, ids[:, len(prompt) :, None])
                loss = -(advantage * logprobs.squeeze(-1)).mean()
                optimizer.zero_grad()
                loss.backward()
                for parameter in model.parameters() if ranks > 1 else ():
                    dist.all_reduce(parameter.grad.div_(ranks))  # the mean over the ranks: all stay equal
                optimizer.step()
            pipeline.publish(model.state_dict)
        pipeline.report(step, reward=rewards.mean(), loss=loss.detach())
        path = pipeline.directory / f"{step}.pt"
        if rank == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        pipeline.checkpoint(step, path)


if __name__ == "__main__":
    main()
