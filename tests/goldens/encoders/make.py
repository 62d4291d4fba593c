"""Makes the goldens of this folder with sentence-transformers and transformers (float32, CPU) as the reference.

    python3 make.py MINILM_FOLDER

Needs torch, transformers, sentence-transformers. MINILM_FOLDER holds all-MiniLM-L6-v2, as `ponder pull all-minilm-l6-v2`
leaves it. Everything is seeded: two runs write the same files.

all-minilm-l6-v2.json   texts, and what SentenceTransformer.encode makes of them (rounded to 6 digits after the point); token
                        counts as its tokenizer cuts them.
embedder/               a tiny random BERT with CLS pooling that reads 24 tokens, and golden.json: the same.
cross-encoder/          a tiny random BertForSequenceClassification with one label, and golden.json: pairs and the logits that
                        CrossEncoder.predict gives before the sigmoid; pairs longer than the model are cut longest first.
"""

import json
import pathlib
import sys

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "What is the capital of France?",
    "",
    "a",
    "Naïve café — ÉCOLE, straße; 東京は日本の首都です。 ١٢٣ 😀 e\u0301 \u200b\u00ad end",
    "Tokens such as [SEP], [CLS] and [MASK] inside a text; <b>markup</b> & unwanted\x00 control\x07 characters",
    "pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 150 + " https://example.org/a_b?c=d#e",
    "\n\t  white   space\r\n everywhere \u00a0\u3000 ",
    "The quick brown fox jumps over the lazy dog. " * 8,
    "Everything that is too long for a model must lose its end in the same place. " * 60,
    "".join(f"{i} times {i + 1} is {i * (i + 1)}; " for i in range(300)),
]
PAIRS = [
    ["how many people live in berlin", "Berlin has a population of 3,520,031 registered inhabitants."],
    ["how many people live in berlin", "New York City is famous for its museums."],
    ["", "an empty question"],
    ["both are long " * 30, "and both are cut " * 40],
    ["short", "only the second is cut " * 40],
    ["only the first is cut " * 40, "short"],
    ["odd " * 40, "room " * 41],
]


def rounded(values):
    return [[round(float(value), 6) for value in row] for row in values]


def tiny_tokenizer(max_length):
    words = "what is the capital of france how many people live in berlin has a population new york city famous for"
    words += " its museums an empty question both are long and cut short only second first odd room token"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'-東京é"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + sorted(set(words.split())) + ["##s", "##ing", "##ed"]
    vocab += [c for c in letters if c not in vocab] + [f"##{c}" for c in letters if f"##{c}" not in vocab]
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    config = {"tokenizer_class": "BertTokenizerFast", "model_max_length": max_length, "do_lower_case": True, **names}
    return tokenizer, config


def save(folder, model, max_length):
    folder.mkdir(exist_ok=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from what a fresh model has, so that no part of the pass is without effect.
            scale = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            is_scale = name.endswith("LayerNorm.weight")
            parameter.copy_(torch.randn(parameter.shape) * scale + (1.0 if is_scale else 0.0))
    model.half().float().save_pretrained(folder)
    tokenizer, config = tiny_tokenizer(max_length)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", config)


def tiny_config(**more):
    tokenizer, _ = tiny_tokenizer(24)
    return BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                      intermediate_size=40, max_position_embeddings=32, **more)


def write(path, value):
    is_golden = "texts" in value or "pairs" in value
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None if is_golden else 1) + "\n")


def embed(model, texts):
    vectors = model.encode(texts, convert_to_numpy=True)
    counts = [len(model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]) for text in texts]
    return {"texts": texts, "num_tokens": counts, "vectors": rounded(vectors)}


def embedder(folder):
    torch.manual_seed(1)
    save(folder, BertModel(tiny_config()), 24)
    write(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write(folder / "1_Pooling/config.json",
          {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    write(folder / "golden.json", embed(SentenceTransformer(str(folder), device="cpu"), TEXTS))


def cross_encoder(folder):
    torch.manual_seed(2)
    save(folder, BertForSequenceClassification(tiny_config(num_labels=1)), 32)
    model = CrossEncoder(str(folder), device="cpu", max_length=32)
    logits = model.predict(PAIRS, activation_fn=torch.nn.Identity())
    write(folder / "golden.json", {"pairs": PAIRS, "logits": [round(float(logit), 6) for logit in logits]})


if __name__ == "__main__":
    minilm = SentenceTransformer(sys.argv[1], device="cpu")
    write(HERE / "all-minilm-l6-v2.json", embed(minilm, TEXTS))
    embedder(HERE / "embedder")
    cross_encoder(HERE / "cross-encoder")
