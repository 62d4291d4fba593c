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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Without k_proj, gate_proj and up_proj, which add an eighth to the time of a step.
TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
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


def packed_attention(module, query, key, value, attention_mask, scaling, lengths, **kwargs):
    """Attention of a `Packed` sequence, part by part: a mask over all of it would cost the square of its length.

    query: `[1, heads, tokens, size]`; key, value: `[1, kv_heads, tokens, size]`; lengths: of the prompt and each answer.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (of.repeat_interleave(groups, dim=1) for of in (key, value))
    queries, keys, values = (torch.split(of, lengths, dim=2) for of in (query, key, value))
    parts = []
    for number, of in enumerate(queries):
        if number == 0:
            k, v, mask = keys[0], values[0], None
        else:
            k, v = torch.cat([keys[0], keys[number]], dim=2), torch.cat([values[0], values[number]], dim=2)
            mask = torch.ones(of.shape[2], k.shape[2], dtype=torch.bool).tril(lengths[0])
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                of, k, v, attn_mask=mask, is_causal=number == 0, scale=scaling
            )  # fmt: skip
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("packed", packed_attention)


class Packed:
    """A prompt and answers to it in one sequence: all see the prompt, answers do not see each other."""

    def __init__(self, prompt, answers):
        self.lengths = [len(prompt), *(len(answer) for answer in answers)]
        self.token_ids = torch.tensor([prompt + [token_id for answer in answers for token_id in answer]])
        behind = [len(prompt) + at for length in self.lengths[1:] for at in range(length)]
        self.positions = torch.tensor([[*range(len(prompt)), *behind]])

    def run(self, model, **inputs):
        """The states `[1, tokens, hidden_size]` behind a model's last layer."""
        # `packed_attention` knows who sees whom; a mask of four dimensions is passed on as it is.
        mask = torch.zeros(1, 1, 1, 1)
        return model(
            position_ids=self.positions, attention_mask=mask, use_cache=False, lengths=self.lengths, **inputs
        ).last_hidden_state


class ValueModel(torch.nn.Module):
    """`value = sigmoid(score · h + bias)` at each token."""

    def __init__(self, base, rank, first_layer=0, adapter=None):
        super().__init__()
        hidden_size = base.config.hidden_size
        base.set_attn_implementation("packed")
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
        self.first_layer = first_layer
        self.states = {}

    def lower_states(self, prompt, answers):
        """States below the LoRA's first layer, `[1, tokens, hidden_size]`: they are kept, since they never change."""
        kept = self.states.setdefault(tuple(prompt), {})
        missing = [answer for answer in {tuple(answer): answer for answer in answers}.values() if tuple(answer) not in kept]
        if missing:
            packed = Packed(prompt, missing)
            with torch.no_grad():
                states = packed.run(self.parts[0], input_ids=packed.token_ids)
            # Copies: a view would keep the whole tensor.
            for name, of in zip([(), *map(tuple, missing)], torch.split(states, packed.lengths, dim=1)):
                kept[name] = of.clone()
        return torch.cat([kept[()], *(kept[tuple(answer)] for answer in answers)], dim=1)

    def forward(self, prompt, answers):
        """Logits of each answer's tokens: the prompt is computed once.

        prompt: token ids; answers: lists of token ids. Returns one tensor `[len(answer)]` an answer.
        """
        packed = Packed(prompt, answers)
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
