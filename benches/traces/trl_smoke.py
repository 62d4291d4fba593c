"""Trainers take the formats as they are: one optimiser step each on exported rows.

    ponder traces export --format sft --out sft.jsonl                (and so on)
    pip install torch transformers==5.24.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0 gguf
    python benches/traces/trl_smoke.py --gguf smollm2-135m.gguf --sft sft.jsonl --preferences preferences.jsonl \\
        --linearised linearised.jsonl --step-values step_values.jsonl --groups groups.jsonl

step_values are for TRL's PRMTrainer, which left TRL after 1.13.0: with a newer one its columns are only loaded and checked.
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer, GgufConfig

ROWS = 4
LENGTH = 256
STEP = dict(
    output_dir="smoke", max_steps=1, per_device_train_batch_size=1, report_to="none", save_strategy="no", use_cpu=True,
    bf16=False, fp16=False, disable_tqdm=True, learning_rate=1e-4,
)


def rows(path):
    """The first rows, as `datasets` reads the file."""
    data = load_dataset("json", data_files=path, split="train")
    print(f"{path}: {len(data)} rows, columns {data.column_names}")
    return data.select(range(min(ROWS, len(data))))


def load(args, kind=AutoModelForCausalLM, **options):
    folder, name = os.path.split(os.path.abspath(args.gguf))
    dequantise = GgufConfig(dequantize=True)
    model = kind.from_pretrained(folder, gguf_file=name, quantization_config=dequantise, **options)
    model.is_quantized = False  # it was dequantised; the trainer refuses what it takes for a quantised model
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


def lora(task="CAUSAL_LM"):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=task)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True)
    for name in ["sft", "preferences", "linearised", "step-values", "groups"]:
        parser.add_argument(f"--{name}", metavar="FILE")
    args = parser.parse_args()
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    for path in filter(None, [args.sft, args.linearised]):
        model, tokenizer = load(args)
        config = SFTConfig(**STEP, max_length=LENGTH)
        trainer = SFTTrainer(model, args=config, train_dataset=rows(path), processing_class=tokenizer, peft_config=lora())
        print("SFTTrainer", path, trainer.train().training_loss)
    if args.preferences:
        model, tokenizer = load(args)
        config = DPOConfig(**STEP, max_length=LENGTH)
        data = rows(args.preferences)
        trainer = DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora())
        print("DPOTrainer", trainer.train().training_loss)
    if args.step_values:
        data = rows(args.step_values)
        assert all(len(row["completions"]) == len(row["labels"]) == len(row["values"]) for row in data)
        try:
            from trl.experimental.prm import PRMConfig, PRMTrainer
        except ImportError:
            print("PRMTrainer is not in this TRL; the rows have its columns")
        else:
            model, tokenizer = load(args, AutoModelForTokenClassification, num_labels=2)
            config = PRMConfig(**STEP, max_length=LENGTH)
            trainer = PRMTrainer(
                model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora("TOKEN_CLS"))
            print("PRMTrainer", trainer.train().training_loss)
    if args.groups:
        data = rows(args.groups)
        assert all(len(row["completions"]) == len(row["rewards"]) for row in data)
        print("groups: prompts for GRPOTrainer, rewards beside them")


main()
