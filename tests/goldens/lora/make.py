"""Makes a small random adapter for smollm2-135m and what PEFT says of it.

    pip install torch transformers==5.24.0 peft==0.21.2 gguf
    python make.py FOLDER_OF_THE_GGUF            # smollm2-135m.gguf of the catalogue

Writes adapter_config.json and adapter_model.safetensors (bfloat16) beside this file, and logits.json: for the prompts of
smollm2-135m.logits.json the 40 likeliest next tokens of the dequantised model with the adapter.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_PROMPTS = 24
TOP = 40


def base():
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file="smollm2-135m.gguf", dtype=torch.float32)
    model.is_quantized = False  # it is plain float32 now
    return model


def make_adapter():
    """Three layers, another rank in one of them."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=TARGETS, layers_to_transform=[0, 14, 29], task_type="CAUSAL_LM",
        rank_pattern={"layers.14.mlp.up_proj": 3}, alpha_pattern={"layers.14.mlp.up_proj": 5},
    )
    model = get_peft_model(base(), config)
    model.save_pretrained(HERE)
    path = HERE / "adapter_model.safetensors"
    weights = {}
    for name, weight in sorted(load_file(path).items()):
        size = 0.06 if "lora_A" in name else 0.2
        weights[name] = (torch.randn(weight.shape) * size).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})
    (HERE / "README.md").unlink(missing_ok=True)
    config = json.loads((HERE / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "smollm2-135m"
    (HERE / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    make_adapter()
    model = PeftModel.from_pretrained(base(), HERE).eval()
    prompts = [case["prompt"] for case in json.loads((HERE.parent / "smollm2-135m.logits.json").read_text())]
    cases = []
    for prompt in prompts[:NUM_PROMPTS]:
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            with model.disable_adapter():
                plain = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        top = logprobs.topk(TOP)
        kl = float((logprobs.exp() * (logprobs - plain)).sum())
        cases.append({
            "prompt": prompt,
            "kl_to_base": round(kl, 4),
            "top": [[int(i), round(float(v), 4)] for i, v in zip(top.indices, top.values)],
        })
    print("KL to the base:", sum(case["kl_to_base"] for case in cases) / len(cases))
    (HERE / "logits.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


main()
