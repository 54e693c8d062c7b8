"""A loss of one's own in a plain loop: written on log-probabilities and entropies, fused by `token_loss`.

python examples/own_loss_loop.py        # a 2-layer model learns to write even digits, in seconds on a CPU

REINFORCE in which uncertain tokens count more, and how much more is learnt. A token's share depends on the
entropies of all others: ties="batch".
"""

import torch
from g2rpo_kernels import token_loss
from transformers import LlamaConfig, LlamaForCausalLM


def train(steps: int = 60, prompts: int = 8, group: int = 8, length: int = 12) -> tuple[list[float], float]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, max_position_embeddings=64, **sizes))
    model.generation_config.eos_token_id = None
    power = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.AdamW([*model.parameters(), power], lr=3e-3)
    history = []
    for _ in range(steps):
        prompt = torch.randint(10, (prompts, 4)).repeat_interleave(group, 0)
        ids = model.generate(prompt, do_sample=True, max_new_tokens=length, pad_token_id=0)
        completion = ids[:, prompt.shape[1] :]
        rewards = (completion % 2 == 0).float().mean(1).view(prompts, group)
        advantage_B = (rewards - rewards.mean(1, keepdim=True)).flatten() / rewards.std().clamp(min=1e-6)
        advantage_T = advantage_B.repeat_interleave(length)

        def loss(logp_T: torch.Tensor, entropy_T: torch.Tensor) -> torch.Tensor:
            share_T = torch.softmax(power * entropy_T.detach(), 0)
            return -(share_T * advantage_T * logp_T).sum() + 0.01 * power.square()  # noqa: B023

        hidden_TD = model.model(ids).last_hidden_state[:, prompt.shape[1] - 1 : -1].flatten(0, 1)
        out = token_loss(hidden_TD, model.lm_head.weight, completion.flatten(), loss, ties="batch")
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(float(rewards.mean()))
    return history, float(power.detach())


if __name__ == "__main__":
    rewards, power = train()
    print(f"share of even digits: {rewards[0]:.2f} -> {rewards[-1]:.2f}; power learnt: {power:.2f}")
