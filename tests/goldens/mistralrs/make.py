"""Makes tiny random models of architectures that the native engine does not have, with what transformers says of them.

    pip install torch transformers pillow; python make.py

`phi3` is a text model and `idefics3` one that sees. Both have one byte-level tokenizer of a few hundred tokens.
`golden.json` holds a prompt and the log-probabilities of its likeliest next tokens (float32).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The quick brown fox jumps over the lazy dog."
QUESTION = "What is this?"
SIDE, PATCH, SCALE = 56, 14, 2
TOP = 8


def tokenizer(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    # The template goes where older readers look for it too.
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = TEMPLATE
    path.write_text(json.dumps(config, indent=1) + "\n")
    return fast


def widen(model, seed):
    """Weights large enough that the likeliest tokens differ clearly."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)


def top(logits):
    logprobs = torch.log_softmax(logits.double(), -1)
    values, ids = logprobs.topk(TOP)
    return [[int(id), round(float(value), 5)] for id, value in zip(ids, values)]


def save(model, folder, golden, old):
    """`old` is what transformers before 5 wrote into config.json in another place, and published models still have."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **old}, indent=1) + "\n")
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


def phi3(folder):
    fast = tokenizer(folder)
    config = Phi3Config(
        vocab_size=len(fast), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=512,
        pad_token_id=0, bos_token_id=None, eos_token_id=fast.eos_token_id, tie_word_embeddings=False,
    )
    model = Phi3ForCausalLM(config).float().eval()
    widen(model, 3)
    ids = fast(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    save(model, folder, {"text": TEXT, "token_ids": ids, "top": top(logits[-1])}, {"rope_theta": 10000.0})


def idefics3(folder):
    fast = tokenizer(folder)
    text = dict(
        model_type="llama", vocab_size=len(fast), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        tie_word_embeddings=False, eos_token_id=fast.eos_token_id, bos_token_id=None, pad_token_id=0,
    )
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, hidden_act="gelu_pytorch_tanh",
    )
    config = Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=fast.convert_tokens_to_ids("<image>"), scale_factor=SCALE,
        tie_word_embeddings=False, pad_token_id=0,
    )
    model = Idefics3ForConditionalGeneration(config).float().eval()
    widen(model, 5)
    edge = {"longest_edge": SIDE}
    processor = Idefics3ImageProcessorPil(do_image_splitting=False, size=edge, max_image_size=edge)
    processor.save_pretrained(folder)
    num_tokens = (SIDE // PATCH // SCALE) ** 2
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": num_tokens}) + "\n")
    # A picture whose corners differ, of the size that the model takes, so that nothing depends on how it is resized.
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, : SIDE // 2] = (220, 40, 40)
    pixels[SIDE // 2 :, SIDE // 2 :] = (30, 60, 210)
    image = Image.fromarray(pixels)
    image.save(folder / "image.png")
    seen = processor(images=[[image]], return_tensors="pt")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    around = "<fake_token_around_image>"
    ids = fast(prompt.replace("<image>", around + "<global-img>" + "<image>" * num_tokens + around))["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **seen).logits[0]
    golden = {"text": QUESTION, "num_prompt_tokens": len(ids), "top": top(logits[-1])}
    old = json.loads(config.to_json_string(use_diff=False))
    old["text_config"].update(rope_theta=10000.0, rope_scaling=None)
    save(model, folder, golden, {name: old[name] for name in ("text_config", "vision_config", "scale_factor", "image_token_id")})


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path(__file__).parent)
out = parser.parse_args().out
for make in (phi3, idefics3):
    (out / make.__name__).mkdir(parents=True, exist_ok=True)
    make(out / make.__name__)
