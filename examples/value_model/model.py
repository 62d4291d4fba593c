"""The value model: a causal language model under a LoRA adapter, and a head of one value on its last hidden state."""

import copy
import os
import warnings
from pathlib import Path

# Nothing is to be asked of a hub: the base is a file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HEAD_FILE = "value_head.safetensors"


def load_base(path, dtype):
    """The model in floating point, and its tokenizer. A .gguf file's weights are dequantised."""
    # About a GGUF's folder, which has no config.json.
    warnings.filterwarnings("ignore", message="Could not find a config file")
    if path.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def part(backbone, layers, has_norm):
    """The backbone with some of its layers: from embeddings to states, or from states to states."""
    half = copy.copy(backbone)
    half._modules = dict(backbone._modules)
    half.layers = torch.nn.ModuleList(layers)
    if not has_norm:
        half.norm = torch.nn.Identity()
    return half


class Packed:
    """A prompt and answers to it in one sequence: all see the prompt, answers do not see each other."""

    def __init__(self, prompt, answers, dtype):
        lengths = [len(answer) for answer in answers]
        start, total = len(prompt), len(prompt) + sum(lengths)
        self.token_ids = torch.tensor([prompt + [token_id for answer in answers for token_id in answer]])
        positions = list(range(start)) + [start + at for length in lengths for at in range(length)]
        self.positions = torch.tensor([positions])
        # Who belongs to which answer: the prompt is 0 and seen by all.
        owners = torch.tensor([0] * start + [1 + i for i, length in enumerate(lengths) for _ in range(length)])
        at = torch.arange(total)
        sees = (at[:, None] >= at[None, :]) & ((owners[None, :] == 0) | (owners[None, :] == owners[:, None]))
        self.mask = torch.zeros(total, total, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[None, None]

    def run(self, model, **inputs):
        """The states `[1, tokens, hidden_size]` behind a model's last layer."""
        return model(
            position_ids=self.positions, attention_mask=self.mask, use_cache=False, **inputs
        ).last_hidden_state


class ValueModel(torch.nn.Module):
    """`value = sigmoid(score · h + bias)` at each token."""

    def __init__(self, base, rank, first_layer=0, adapter=None):
        super().__init__()
        hidden_size = base.config.hidden_size
        self.score = torch.nn.Linear(hidden_size, 1, dtype=torch.float32)
        torch.nn.init.zeros_(self.score.weight)
        torch.nn.init.zeros_(self.score.bias)
        if adapter:
            self.policy = PeftModel.from_pretrained(base, adapter, is_trainable=True, autocast_adapter_dtype=False)
            first_layer = min(self.policy.peft_config["default"].layers_to_transform or [0])
            head = load_file(Path(adapter) / HEAD_FILE)
            self.score.load_state_dict({"weight": head["score.weight"], "bias": head["score.bias"]})
        else:
            layers = list(range(first_layer, base.config.num_hidden_layers))
            lora = LoraConfig(
                r=rank, lora_alpha=2 * rank, target_modules=TARGETS, layers_to_transform=layers if first_layer else None
            )  # fmt: skip
            # In the base's type: products of mixed types are slow.
            self.policy = get_peft_model(base, lora, autocast_adapter_dtype=False)
        backbone = self.policy.get_base_model().model
        # Not modules of this one: their weights are the policy's.
        self.parts = (
            part(backbone, backbone.layers[:first_layer], False),
            part(backbone, backbone.layers[first_layer:], True),
        )
        self.dtype, self.first_layer = backbone.dtype, first_layer
        self.states = {}

    def lower_states(self, prompt, answers):
        """States below the LoRA's first layer, `[1, tokens, hidden_size]`: they are kept, since they never change."""
        kept = self.states.setdefault(tuple(prompt), {})
        missing = [answer for answer in {tuple(answer): answer for answer in answers}.values() if tuple(answer) not in kept]
        if missing:
            packed = Packed(prompt, missing, self.dtype)
            with torch.no_grad():
                states = packed.run(self.parts[0], input_ids=packed.token_ids)
            lengths = [len(prompt), *(len(answer) for answer in missing)]
            # Copies: a view would keep the whole tensor.
            for name, of in zip([(), *map(tuple, missing)], torch.split(states, lengths, dim=1)):
                kept[name] = of.clone()
        return torch.cat([kept[()], *(kept[tuple(answer)] for answer in answers)], dim=1)

    def forward(self, prompt, answers):
        """Logits of each answer's tokens: the prompt is computed once.

        prompt: token ids; answers: lists of token ids. Returns one tensor `[len(answer)]` an answer.
        """
        packed = Packed(prompt, answers, self.dtype)
        # The output matrix is left out: only the final states are read.
        if self.first_layer:
            hidden = packed.run(self.parts[1], inputs_embeds=self.lower_states(prompt, answers))
        else:
            hidden = packed.run(self.parts[1], input_ids=packed.token_ids)
        logits = self.score(hidden[0, len(prompt) :].float()).squeeze(-1)
        return torch.split(logits, [len(answer) for answer in answers])

    def save(self, folder):
        """A folder for `ponder serve --value-adapter`."""
        self.policy.save_pretrained(folder)
        head = {"score.weight": self.score.weight.detach(), "score.bias": self.score.bias.detach()}
        save_file({name: tensor.contiguous().float() for name, tensor in head.items()}, Path(folder) / HEAD_FILE)
