"""GRPO in a plain loop: sample, reward, `grpo_loss`, step. No trainer.

python examples/plain_loop.py        # a 2-layer model learns to write even digits, in seconds on a CPU
"""

import torch
from g2rpo_kernels import GRPOOptions, grpo_loss
from transformers import LlamaConfig, LlamaForCausalLM


def train(steps: int = 60, prompts: int = 8, group: int = 8, length: int = 12) -> list[float]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, max_position_embeddings=64, **sizes))
    model.generation_config.eos_token_id = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    options, history = GRPOOptions(loss_type="dr_grpo", max_completion_length=length), []
    for _ in range(steps):
        prompt = torch.randint(10, (prompts, 4)).repeat_interleave(group, 0)
        ids = model.generate(prompt, do_sample=True, max_new_tokens=length, pad_token_id=0)
        completion = ids[:, prompt.shape[1] :]
        rewards = (completion % 2 == 0).float().mean(1)
        logits = model(ids).logits[:, prompt.shape[1] - 1 : -1]
        mask = torch.ones_like(completion)  # 0 after an end-of-sequence token, where there is one
        out = grpo_loss(logits, completion, mask, rewards=rewards, group_size=group, options=options)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(rewards.mean()))
    return history


if __name__ == "__main__":
    rewards = train()
    print(f"share of even digits: {rewards[0]:.2f} -> {rewards[-1]:.2f}")
