"""Writes the first inputs of the fuzz targets to `fuzz/seeds/`, a few kilobytes each.

    python3 fuzz/make_seeds.py

Parts of an input have a zero byte between them. Routes are letters, in the order of the document
`openapi/openapi.json`.
"""

import json
import pathlib
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"
DOCUMENT = json.loads((ROOT / "openapi" / "openapi.json").read_text())
ROUTES = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
TEXT = "Hello <s>, wörld 123\n\n  it's x"


def text_of(value):
    return value if isinstance(value, (str, bytes)) else json.dumps(value, ensure_ascii=False)


def part(value):
    text = text_of(value)
    return text if isinstance(text, bytes) else text.encode()


def write(target, inputs):
    folder = SEEDS / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, parts in inputs.items():
        parts = parts if isinstance(parts, list) else [parts]
        (folder / name).write_bytes(b"\0".join(part(it) for it in parts))


def request(method, path, rest="", headers="@"):
    letter = chr(ord("A") + ROUTES.index((method, path)))
    return letter + headers + text_of(rest)


def post(path, body, headers="@"):
    return request("post", path, body, headers)


def chat(**more):
    return {"model": "m", "seed": 7, "max_tokens": 6,
            "messages": [{"role": "user", "content": "1 + 1?"}], **more}


def requests():
    chats, completions = "/v1/chat/completions", "/v1/completions"
    search = lambda **more: post(chats, chat(search=more))
    branch = "/v1/branches/{id}/"
    steps = {"delimiter": "a", "max_tokens": 3}
    session = post("/v1/branches", chat(lease_seconds=5))
    grown = post(branch + "generate", {"nodes": [0], "n": 2, "step": steps})
    kept = post(chats, chat(store=True, metadata={"tags": "a"}))
    score = lambda reward, texts: post("/v1/score", {
        "candidates": texts, "reward": reward, "messages": [{"role": "user", "content": "?"}]})
    verifier = lambda kind, texts, **more: score({"kind": "verifier", "type": kind, **more}, texts)
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01,
                "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1,
                "logit_bias": {"65": -100}, "stop": ["b", "c"], "stop_token_ids": [9],
                "min_tokens": 1, "ignore_eos": True}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    write("requests", {
        "chat": post(chats, chat(n=2, logprobs=True, top_logprobs=2, **sampling)),
        "chat_stream": post(chats, chat(stream=True, stream_options={"include_usage": True})),
        "chat_parts": post(chats, {"model": "m", "max_completion_tokens": 3, "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": None, "tool_calls": []}],
            "tools": [tool], "tool_choice": "auto", "chat_template_kwargs": {"a": 1},
            "reasoning_effort": "low", "cache_salt": "a"}),
        "chat_image": post(chats, chat(messages=[{"role": "user", "content": [{
            "type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}])),
        "chat_format": post(chats, chat(response_format={"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}})),
        "completion": post(completions, {"model": "m", "prompt": ["One", "Two"], "echo": True,
                                         "logprobs": 1, "max_tokens": 3, "n": 2}),
        "completion_ids": post(completions, {"model": "m", "prompt": [[65, 66], [67]],
                                             "max_tokens": 2, "prompt_logprobs": 1}),
        "speculative": post(chats, chat(speculative="prompt-lookup",
                                        prediction={"type": "content", "content": "aaa"})),
        "adaptation": post(chats, chat(adaptation={"method": "slot", "steps": 1})),
        "best_of_n": search(strategy="best_of_n", n=3, reward={"kind": "likelihood"}),
        "votes": search(strategy="self_consistency", n=4, reward=[
            {"kind": "majority"}, {"kind": "judge", "instruction": "Right?", "weight": 0.5}]),
        "beam": search(strategy="beam", n=2, branch=2, step=steps, reward={"kind": "prm"}),
        "dvts": search(strategy="dvts", n=4, step={"regex": "[a-z]\\d|x$", "max_tokens": 4}),
        "rebase": search(strategy="rebase", n=4, step=steps, max_depth=3),
        "particles": search(strategy="particle_filtering", n=3, iterations=2, step=steps),
        "mcts": search(strategy="mcts", budget={"tokens": 60, "ms": 50}, step=steps,
                       exploration=1.4, reward={"kind": "verifier", "type": "regex",
                                                "pattern": "a|b"}),
        "vm_mcts": search(strategy="vm_mcts", budget={"tokens": 60}, step=steps,
                          reward={"kind": "prm", "aggregate": "min"}),
        "branches": [session, grown, post(branch + "score", {
            "nodes": [1, 2], "reward": {"kind": "likelihood"}}),
            post(branch + "fork", {"node": 1, "text": "Two"}),
            post(branch + "commit", {"node": 3})],
        "branches_end": [session, request("delete", "/v1/branches/{id}"), grown],
        "score_math": verifier("math", ["\\boxed{\\frac{1}{2}}", "So 0.5.", "x^2+1"], answer="1/2"),
        "score_exact": verifier("exact", ["The answer is 4", "5"], answer="4"),
        "score_regex": verifier("regex", ["ab", "é"], pattern="(?i)a{1,3}\\b|é$"),
        "score_schema": verifier("json_schema", ["{}"], schema={"$ref": "#/$defs/a", "$defs": {
            "a": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
        "score_python": verifier("python", ["```python\nx = 1\n```"], tests=["assert x"],
                                 prefix="import os\n"),
        "score_http": score({"kind": "http"}, ["a"]),
        "score_prm": score({"kind": "prm", "aggregate": "mean"}, ["a\n\nb", "c"]),
        "pooling": post("/pooling", {"model": "m", "messages": [
            {"role": "user", "content": "1"}, {"role": "assistant", "content": "a\nb"}]}),
        "traces": [kept, request("get", "/v1/traces", "limit=2&order=asc&tag=a&min_value=0.1"),
                   request("get", "/v1/traces/{id}", "format=sft"),
                   post("/v1/traces/{id}/outcome", {"outcome": 1.0, "correction": "2", "leaves": [
                       {"node": 1, "outcome": 0.5}]}),
                   request("get", "/v1/traces/stream", "format=preferences&after=1-0&level=step"),
                   request("delete", "/v1/traces/{id}")],
        "stream": [kept, request("get", "/v1/traces/stream",
                                 "follow=true&format=linearised&deduplicate=1&skipped=1", "B")],
        "adapters": [post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "adapter"}),
                     request("get", "/v1/models"), post(chats, chat(model="a")),
                     post("/v1/unload_lora_adapter", {"lora_name": "a"})],
        "tokens": [post("/tokenize", {"prompt": "Hi é<|im_end|>", "add_special_tokens": True}),
                   post("/tokenize", chat(add_generation_prompt=False)),
                   post("/detokenize", {"tokens": [72, 195, 169, 257]})],
        "probes": [request("get", path, headers="A") for method, path in ROUTES
                   if method == "get" and "{" not in path and "traces" not in path],
    })


class Gguf:
    """As `GgufWriter` of `src/model/testing.rs`."""

    def __init__(self):
        self.entries, self.directory, self.data = [], [], b""

    @staticmethod
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def set(self, key, value, kind=None):
        if isinstance(value, list):
            kind = kind or (8 if isinstance(value[0], str) else 6)
            body = struct.pack("<IIQ", 9, kind, len(value))
            body += b"".join(self.plain(it, kind) for it in value)
        else:
            kind = kind or {str: 8, int: 4, float: 6, bool: 7}[type(value)]
            body = struct.pack("<I", kind) + self.plain(value, kind)
        self.entries.append(self.string(key) + body)

    def plain(self, value, kind):
        formats = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
        return self.string(value) if kind == 8 else struct.pack(formats[kind], value)

    def tensor(self, name, *dimensions):
        count = 1
        for size in dimensions:
            count *= size
        self.data += b"\0" * (-len(self.data) % 32)
        self.directory.append(self.string(name) + struct.pack("<I", len(dimensions))
                              + b"".join(struct.pack("<Q", size) for size in dimensions)
                              + struct.pack("<IQ", 0, len(self.data)))
        self.data += b"".join(struct.pack("<f", (i * 37 % 64) / 64 - 0.5) for i in range(count))

    def finish(self):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.directory), len(self.entries))
        head += b"".join(self.entries) + b"".join(self.directory)
        return head + b"\0" * (-len(head) % 32) + self.data


TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def byte_tokens():
    """GPT-2's characters of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) if byte in plain else chr(256 + others.index(byte))
            for byte in range(256)}


def tiny_gguf(architecture, tokens, more):
    hidden = 8
    file = Gguf()
    file.set("general.architecture", architecture)
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": hidden,
                       "feed_forward_length": hidden, "attention.head_count": 2,
                       "attention.head_count_kv": 1, "attention.key_length": 4,
                       "attention.value_length": 4, "attention.sliding_window": 4,
                       "attention.layer_norm_rms_epsilon": 1e-6,
                       "rope.freq_base": 1e4}.items():
        file.set(f"{architecture}.{key}", value)
    file.set("tokenizer.ggml.tokens", tokens)
    for key, value in more.items():
        file.set(f"tokenizer.{key}", *value) if isinstance(value, tuple) else file.set(
            f"tokenizer.{key}", value)
    file.tensor("token_embd.weight", hidden, len(tokens))
    file.tensor("output_norm.weight", hidden)
    norms = {"attn_norm": hidden, "ffn_norm": hidden}
    if architecture in ("qwen3", "gemma3"):
        norms |= {"attn_q_norm": 4, "attn_k_norm": 4}
    if architecture == "gemma3":
        norms |= {"post_attention_norm": hidden, "post_ffw_norm": hidden}
    for name, width in norms.items():
        file.tensor(f"blk.0.{name}.weight", width)
    for name, shape in {"attn_q": (8, 8), "attn_k": (8, 4), "attn_v": (8, 4),
                        "attn_output": (8, 8), "ffn_gate": (8, 8), "ffn_up": (8, 8),
                        "ffn_down": (8, 8)}.items():
        file.tensor(f"blk.0.{name}.weight", *shape)
    if architecture == "qwen2":
        for name, width in {"attn_q": 8, "attn_k": 4, "attn_v": 4}.items():
            file.tensor(f"blk.0.{name}.bias", width)
    return file.finish()


def gguf():
    words = ["<unk>", "<s>", "</s>", "▁", "H", "i", "▁H", "▁Hi", "<0x0A>", "<0xC3>"]
    pieces = {"ggml.model": "llama", "ggml.scores": [-float(i) for i in range(len(words))],
              "ggml.token_type": ([2, 3, 3, 1, 1, 1, 1, 1, 6, 6], 5), "ggml.bos_token_id": 1,
              "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0, "ggml.add_bos_token": (True, 7),
              "chat_template": TEMPLATE}
    letters = [*byte_tokens().values(), "He", "<|im_start|>", "<|im_end|>"]
    bytes_ = {"ggml.model": "gpt2", "ggml.pre": "qwen2", "ggml.merges": ["H e"],
              "ggml.eos_token_id": 258, "chat_template": TEMPLATE}
    write("gguf", {
        **{name: tiny_gguf(name, words, pieces) for name in ("llama", "gemma3", "qwen3")},
        # Found: an unknown character became a token that is none.
        "unknown_id": tiny_gguf("llama", words, pieces | {"ggml.unknown_token_id": 63232}),
        "qwen2": tiny_gguf("qwen2", letters[:256] + letters[256:], bytes_),
    })


def tensors(shapes):
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header


def layer_shapes(kind):
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [8, 8], "model.norm.weight": [8],
              layer + "input_layernorm.weight": [8],
              layer + "post_attention_layernorm.weight": [8],
              layer + "self_attn.q_proj.weight": [8, 8], layer + "self_attn.k_proj.weight": [4, 8],
              layer + "self_attn.v_proj.weight": [4, 8], layer + "self_attn.o_proj.weight": [8, 8]}
    for name in ("gate", "up", "down"):
        shapes[layer + f"mlp.{name}_proj.weight"] = [8, 8]
    if kind == "qwen2":
        for name, width in {"q": 8, "k": 4, "v": 4}.items():
            shapes[layer + f"self_attn.{name}_proj.bias"] = [width]
    if kind == "qwen3":
        shapes |= {layer + "self_attn.q_norm.weight": [4], layer + "self_attn.k_norm.weight": [4]}
    return shapes


def safetensors():
    config = lambda kind, **more: {
        "model_type": kind, "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "rope_theta": 1e4,
        "hidden_act": "silu", "tie_word_embeddings": True, **more}
    linear = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    llama3 = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
                             "original_max_position_embeddings": 16}}
    inputs = {
        "llama": [config("llama", **linear), tensors(layer_shapes("llama"))],
        "llama3": [config("llama", **llama3), tensors(layer_shapes("llama"))],
        "qwen2": [config("qwen2", **yarn), tensors(layer_shapes("qwen2"))],
        "qwen3": [config("qwen3"), tensors(layer_shapes("qwen3"))],
    }
    # Sizes of families with experts and of multimodal files; their weights are not given.
    for folder in sorted((ROOT / "tests/goldens/moe").iterdir()):
        path = folder / "config.json"
        if path.is_file():
            inputs[folder.name] = [json.loads(path.read_text()), "{}"]
    inputs["nested"] = [{"model_type": "gemma3", "vision_config": {}, "text_config": config(
        "gemma3_text", hidden_act="gelu_pytorch_tanh", final_logit_softcapping=30.0, query_pre_attn_scalar=4)}, "{}"]
    write("safetensors", inputs)


def adapter():
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none",
              "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"mlp.down_proj": 2},
              "alpha_pattern": {"q_proj": 4}, "use_rslora": True, "use_dora": False,
              "fan_in_fan_out": False, "modules_to_save": None}
    base = "base_model.model.model.layers.0."
    q = {base + "self_attn.q_proj.lora_A.weight": [1, 4],
         base + "self_attn.q_proj.lora_B.weight": [4, 1]}
    down = {base + "mlp.down_proj.lora_A.weight": [2, 8],
            base + "mlp.down_proj.lora_B.weight": [4, 2]}
    values = struct.pack("<4f", 0.5, -1.0, 2.0, 0.25).replace(b"\0", b"\1")
    write("adapter", {"q": [config, tensors(q), values], "both": [config, tensors(q | down)],
                      "plain": [{"peft_type": "LORA", "r": 2, "lora_alpha": 1}, tensors(down), values]})


def tokenizers():
    added = lambda id, text, special=True: {
        "id": id, "content": text, "special": special, "normalized": False, "single_word": False,
        "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
             "use_regex": True}
    byte_vocabulary = {token: byte for byte, token in byte_tokens().items()} | {"He": 256}
    whole = lambda model, more=(), **parts: {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": list(more),
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        **parts, "model": model}
    bpe = lambda **more: {"type": "BPE", "vocab": byte_vocabulary, "merges": ["H e"], **more}
    small = {"<unk>": 0, "▁": 1, "H": 2, "e": 3, "▁H": 4, "<0x0A>": 5}
    split = {"type": "Split", "behavior": "Isolated", "invert": False,
             "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)|."}}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    wrapped = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}}
    specials = [added(257, "<s>"), added(258, "</s>"), added(259, "<tool>", False)]
    write("tokenizer", {
        "bytes": [whole(bpe(), specials, pre_tokenizer=level, decoder=level,
                        normalizer={"type": "NFC"}), config, TEXT],
        "split": [whole(bpe(ignore_merges=True), specials, post_processor=wrapped, pre_tokenizer={
            "type": "Sequence", "pretokenizers": [split, level]}), config, TEXT],
        "fallback": [whole({"type": "BPE", "vocab": small, "merges": ["▁ H"], "byte_fallback": True,
                            "fuse_unk": True, "unk_token": "<unk>"}, normalizer={
                                "type": "Sequence", "normalizers": [
                                    {"type": "Prepend", "prepend": "▁"},
                                    {"type": "Replace", "pattern": {"String": " "},
                                     "content": "▁"}]}), config, TEXT],
        # Found: the crate that reads pipelines panics on such parts.
        "broken_decoder": ['{"version": "1.0", "decoder": {"type": "ByteLevel", 4, "A": 65}}', "", ""],
        "broken_normalizer": [whole(bpe(), normalizer={
            "type": "Precompiled", "precompiled_charsmap": "AAAA"}), "", ""],
        "unigram": [whole({"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [
            ["<unk>", 0.0], ["▁", -1.0], ["H", -2.0], ["e", -2.5], ["▁He", -3.0]]},
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                           "split": True}), {}, TEXT],
        "wordpiece": [whole({"type": "WordPiece", "vocab": {"[UNK]": 0, "he": 1, "##llo": 2},
                             "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                             "max_input_chars_per_word": 100},
                            normalizer={"type": "BertNormalizer", "lowercase": True,
                                        "clean_text": True, "handle_chinese_chars": True,
                                        "strip_accents": None},
                            pre_tokenizer={"type": "BertPreTokenizer"}), {}, TEXT],
    })


def templates():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                {"role": "assistant", "content": None,
                 "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, "é"]}}}]}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    sources = {
        "plain": TEMPLATE,
        "tools": "{%- if tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}"
                 "{%- endif -%}{% set ns = namespace(found=false, i=0) %}{% for m in messages %}"
                 "{% if m.role == 'user' and not loop.last %}{% set ns.found = true %}{% endif %}"
                 "{{ loop.index0 ~ m.content[:3] }}{% endfor %}{{ ns.found }}",
        "macros": "{% macro f(x, y=1) %}{{ x.strip().upper().split('a')[0] }}{{ y }}{% endmacro %}"
                  "{% for m in messages if m.content is string %}{{ f(m.content, y=2) }}"
                  "{% else %}{{ raise_exception('none') }}{% endfor %}",
        "filters": "{{ messages | length + 1 }}{{ (messages | map(attribute='role') | join(','))"
                   " | replace('u', 'v') }}{{ {'a': [1, -2.5, none, true]} | tojson }}"
                   "{{ range(3) | list }}{{ 'a' * 3 if 1 // 2 == 0 else 2 ** 3 % 5 }}",
        "deep": "{{ " + "not " * 20 + "1 }}{{ 1" + "|string" * 20 + " }}{{ " + "(" * 20 + "1"
                + ")" * 20 + " }}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    }
    write("template", {name: [source, messages, tools, {"enable_thinking": True}]
                       for name, source in sources.items()})


def patterns():
    texts = ["a b", "1 ", "\n\nStep 2:", "é"]
    sources = ["Step \\d+:", "(?i)\\bstep\\b", "^#{1,3} .*$", "(?m)^\\d+\\.\\s", "[.!?]\\s",
               "(?:[ -~\\n]?){50}[\\x00\\x01]", "\\p{L}+\\n", "(a|b)*?c{2,3}$", "(?s).é|\\z", "[^a]\\B"]
    write("patterns", {f"{index}": [source, *texts] for index, source in enumerate(sources)})


def stored():
    node = lambda parent, text, **more: {
        "parent": parent, "token_ids": [1, 2], "text": text, "end": None, "logprob": -1.5,
        "score": 0.5, "value": 0.5, "visit_count": 1, "is_pruned": False, "is_rollout": False,
        "branch_path": [0], **more}
    tree = [node(None, "", branch_path=[], token_ids=[]), node(0, "a "), node(0, "b "),
            node(1, "c", end="stop", outcome=1.0, token_logprobs=[-0.5, -1.0]),
            node(1, "d", end="length", outcome=0.0, reward_parts={"prm": 0.2}),
            node(2, "e", end="stop", outcome=0.25, is_rollout=True, duplicate_paths=[[1, 2]]),
            node(2, "", end="cut", is_pruned=True)]
    record = lambda **more: {
        "schema": "ponder.trace.v1", "id": "trace_1", "revision": 1, "model": "m", "created": 1,
        "strategy": "beam", "seed": 7, "tags": ["t"], "search": {"n": 2}, "sampling": {},
        "prompt_text": "p", "prompt_token_ids": [1], "nodes": tree, "chosen": [3], **more}
    messages = {"messages": [{"role": "user", "content": "p"}]}
    write("stored", {
        "chat": [record(request=messages, outcome=1.0), "format=tree&after=3-1&limit=4"],
        "completion": [record(request={"prompt": "p"}, correction="right", stopped="budget"),
                       "format=linearised&max_wrong_branches=2&deduplicate=0"],
        "plain": [record(strategy="none", nodes=[tree[0], node(0, "x", end="stop")], chosen=[]),
                  "tag[]=a&min_margin=0.1&level=step&format=preferences&max_per_prompt=2"],
        # Found: the number of the next revision overflowed.
        "last_revision": [record(revision=2**64 - 1), ""],
        "redacted": [record(is_redacted=True, adaptation={"steps": 1}), "created_from=1&follow=1"],
        "packed": bytes.fromhex("28b52ffd0458210000" + "7b22616c6c") + b"}",
    })
    write("store_file", {"header": b"\x10\0\x01", "page": b"\0\x10\xff\x34\x12\x80",
                         "far": b"\xff\xff\x01\x00\x60\x7f"})


if __name__ == "__main__":
    requests()
    gguf()
    safetensors()
    adapter()
    tokenizers()
    templates()
    patterns()
    stored()
