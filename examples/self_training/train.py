"""Step 3: trains a LoRA adapter on the streamed rows; only the tokens of the answers count.

    python train.py --base "$(ponder pull qwen2.5-coder-0.5b)" --rows rows-1.jsonl --out adapter-1

--base is the .gguf file that is served (its weights are dequantised), or a folder of a Hugging Face model. --adapter goes
on from an adapter instead of starting a new one. The result is a PEFT folder, as `ponder serve --enable-lora --lora-root DIR` loads it.
"""

import argparse
import json
import os
import random
import warnings
from pathlib import Path

# Nothing is to be asked of a hub: the base is a file.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import torch
import transformers
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_rows(path, most, seed):
    """Examples as prompt and completion, none of them twice."""
    with open(path, encoding="utf-8") as lines:
        chats = [json.loads(line)["messages"] for line in lines]
    # The last message is the answer; those before it, earlier answers among them, are the prompt.
    unique = {json.dumps(chat): {"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats}
    examples = list(unique.values())
    random.Random(seed).shuffle(examples)
    return examples[:most]


def load_base(path, dtype):
    """The model in floating point, and its tokenizer."""
    if path.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain now, but the mark stays, and the trainer refuses models that have it.
    model.is_quantized = False
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


class Progress(TrainerCallback):
    """One line every few steps."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            print(f"step {state.global_step}/{state.max_steps}: loss {float(logs['loss']):.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="PEFT folder to go on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-rows", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8, help="rows of one step; two are computed at a time")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=-1, help="instead of epochs")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    examples = load_rows(args.rows, args.max_rows, args.seed)
    if not examples:
        raise SystemExit(f"{args.rows} has no rows: no answer was right")
    transformers.set_seed(args.seed)
    # About names that change in later versions, and a GGUF's folder, which has no config.json.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Could not find a config file")
    model, tokenizer = load_base(args.base, getattr(torch, args.dtype))
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    if args.adapter:
        model, lora = PeftModel.from_pretrained(model, args.adapter, is_trainable=True), None
    config = SFTConfig(
        output_dir=str(args.out),
        max_length=1024,
        per_device_train_batch_size=min(2, args.batch_size),
        gradient_accumulation_steps=max(1, args.batch_size // 2),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=4,
        logging_steps=4,
        logging_first_step=True,
        completion_only_loss=True,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    print(f"{len(examples)} examples", flush=True)
    result = trainer.train()
    trainer.save_model(str(args.out))
    print(f"{result.metrics['train_runtime']:.0f} s; the adapter is in {args.out}")


if __name__ == "__main__":
    main()
