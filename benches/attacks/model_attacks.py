"""Attacks by files that a server is given: chat templates, tokenizers, configurations, adapters."""

import os
import tempfile
from pathlib import Path

import tiny_models
from harness import ATTACKER, MIB, NEIGHBOUR, CannotRun, Row, Server, has_flag

# Of smollm2-135m.
HIDDEN = 576
START_PEAK_LIMIT = 1024 * MIB
HUGE_ID = 10**9
DEPTH = 200_000
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}

NESTED = "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}"
DOUBLING = "{{% set ns = namespace(a={}) %}}{{% for i in range(60) %}}{{% set ns.a = ns.a {} ns.a %}}{{% endfor %}}"
TEMPLATES = {
    "200,000 not": "{{ " + "not " * DEPTH + "x }}",
    "200,000 |upper": "{{ 'x'" + "|upper" * DEPTH + " }}",
    "200,000 +1": "{{ 1" + "+1" * DEPTH + " }}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "100,000 lists |tojson": NESTED + "{{ ns.a|tojson }}",
    # Siblings that nobody reported.
    "100,000 lists printed": NESTED + "{{ ns.a }}",
    "100,000 lists dropped": NESTED + "x",
    "100,000 lists compared": NESTED + "{{ ns.a == [ns.a] }}",
    "100,000 lists |string": NESTED + "{{ ns.a|string|length }}",
    "namespace |tojson": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|tojson }}",
    "namespace compared": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns == ns.a }}",
    "200,000 -": "{{ " + "-" * DEPTH + "1 }}",
    "200,000 (": "{{ " + "(" * DEPTH + "1" + ")" * DEPTH + " }}",
    "200,000 [": "{{ " + "[" * DEPTH + "]" * DEPTH + " }}",
    "200,000 {": "{{ " + "{1:" * DEPTH + "1" + "}" * DEPTH + " }}",
    "200,000 .a": "{{ x" + ".a" * DEPTH + " }}",
    "200,000 [0]": "{{ x" + "[0]" * DEPTH + " }}",
    "200,000 ()": "{{ x" + "()" * DEPTH + " }}",
    "200,000 ~": "{{ 1" + "~1" * DEPTH + " }}",
    "200,000 **": "{{ 1" + "**1" * DEPTH + " }}",
    "200,000 and": "{{ 1" + " and 1" * DEPTH + " }}",
    "200,000 <": "{{ 1" + " < 1" * DEPTH + " }}",
    "200,000 is": "{{ 1" + " is defined" * DEPTH + " }}",
    "200,000 if else": "{{ 1" + " if 1 else 1" * DEPTH + " }}",
    "100,000 blocks": "{% if 1 %}" * 100_000 + "{% endif %}" * 100_000,
    "100,000 loops": "{% for i in [1] %}" * 100_000 + "{% endfor %}" * 100_000,
    "100,000 elif": "{% if 0 %}" + "{% elif 0 %}" * 100_000 + "{% endif %}",
    "macro in itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a text that doubles": DOUBLING.format("'x'", "~") + "{{ ns.a }}",
    "a list that doubles": DOUBLING.format("[1]", "+") + "{{ ns.a|length }}",
    "a repeated text": "{{ 'x' * 100000000000 }}",
    "a wide indent": "{{ ('a\n' * 1000)|indent(1000000000) }}",
}


def outcome_of(setup, model, args=(), memory_gib=8):
    """Starts a server with a file and asks for a chat: what came of it, in words, and whether the process lived or refused."""
    server = Server(setup.binary, model, args, memory_gib=memory_gib, kv="512M", traces=False)
    try:
        if not server.start(must=False):
            ending = server.ending() or "no start"
            is_good = not ending.startswith("signal") and ending != "no start"
            return f"{ending} at start", is_good, server
        reply = server.post("/v1/chat/completions", CHAT, timeout=30)
        if reply.status == 0 and server.ends_within(2):
            return f"{server.ending()} at a request", False, server
        return f"answers {reply.status or reply.error}", reply.status > 0, server
    finally:
        server.close()


def template_stack(setup):
    """Chat templates that nest or grow without end; a process that ends by a signal has fallen."""
    details, fallen = {}, []
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.write_llama(Path(folder) / "tiny")
        for name, source in TEMPLATES.items():
            file = Path(folder) / "template.jinja"
            file.write_text(source)
            said, is_good, _ = outcome_of(setup, model, ["--chat-template", str(file)])
            details[name] = said
            fallen += [] if is_good else [f"{name} ({said})"]
    measured = f"{len(fallen)} of {len(TEMPLATES)} end the process or get no answer: {'; '.join(fallen) or 'none'}"
    return Row("template_stack", measured, not fallen, "the process lives or refuses the file with an exit code", details)


def huge_ids():
    """Changes of a tokenizer's files, each with an id of a thousand millions."""

    def in_vocabulary(folder):
        tiny_models.edit_json(folder / "tokenizer.json", lambda file: file["model"]["vocab"].update({"huge": HUGE_ID}))

    def in_added(folder):
        token = {"content": "huge", "special": True, "single_word": False}
        token |= {"id": HUGE_ID, "lstrip": False, "rstrip": False, "normalized": False}
        tiny_models.edit_json(folder / "tokenizer.json", lambda file: file["added_tokens"].append(token))

    def largest(folder):
        tiny_models.edit_json(folder / "tokenizer.json", lambda file: file["model"]["vocab"].update({"huge": 2**32 - 1}))

    return {"vocabulary": in_vocabulary, "added token": in_added, "largest number": largest}


def tokenizer_id(setup):
    """A `tokenizer.json` with an id of 10^9, under a limit of 8 GiB."""
    details, fallen = {}, []
    for name, change in huge_ids().items():
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_models.write_llama(Path(folder) / "tiny")
            change(model)
            said, is_good, server = outcome_of(setup, model)
            peak = server.start_peak
        details[name] = f"{said}, peak {peak // MIB} MiB"
        fallen += [] if is_good and peak <= START_PEAK_LIMIT else [name]
    measured = "; ".join(f"{name}: {said}" for name, said in details.items())
    criterion = f"refused or served within {START_PEAK_LIMIT // MIB} MiB"
    return Row("tokenizer_id", measured, not fallen, criterion, details)


ODD = {
    "hidden_act unknown": {"hidden_act": "quick_silu"},
    "hidden_act relu": {"hidden_act": "relu"},
    "hidden_act gelu": {"hidden_act": "gelu"},
    "rope_theta 0": {"rope_theta": 0},
    "rope_theta -1": {"rope_theta": -1.0},
    "rope_theta 1e300": {"rope_theta": 1e300},
    "linear factor 0": {"rope_scaling": {"rope_type": "linear", "factor": 0}},
    "linear factor -2": {"rope_scaling": {"rope_type": "linear", "factor": -2.0}},
    "linear factor 1e300": {"rope_scaling": {"rope_type": "linear", "factor": 1e300}},
    "llama3 factor 0": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "llama3 equal bounds": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
    "yarn factor 0": {"rope_scaling": {"rope_type": "yarn", "factor": 0, "original_max_position_embeddings": 256}},
    "yarn of length 0": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}},
    "partial rotary": {"partial_rotary_factor": 0.5},
    "final softcap 0": {"final_logit_softcapping": 0},
    "final softcap -1": {"final_logit_softcapping": -1.0},
    "attention softcap 0": {"attn_logit_softcapping": 0.0},
    "rms_norm_eps -1": {"rms_norm_eps": -1.0},
    "rms_norm_eps 1e300": {"rms_norm_eps": 1e300},
    "residual 1e300": {"residual_multiplier": 1e300},
    "embedding 1e300": {"embedding_multiplier": 1e300},
    "logits / 1e-300": {"logits_scaling": 1e-300},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
}


def odd_config(setup):
    """Configurations with values that are odd or not implemented: each must be refused at the start."""
    details = {}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_models.write_llama(Path(folder) / "tiny")
        said, is_good, _ = outcome_of(setup, model)
        if said != "answers 200":
            raise CannotRun(f"the tiny model is not served: {said}")
        for name, changes in ODD.items():
            details[name] = outcome_of(setup, tiny_models.write_llama(model, **changes))[0]
        details |= odd_gguf(setup, Path(folder))
    taken = [name for name, said in details.items() if not said.endswith("at start") or said.startswith("signal")]
    measured = f"{len(taken)} of {len(details)} are taken: {', '.join(taken) or 'none'}"
    return Row("odd_config", measured, not taken, "each is refused at the start", details)


def odd_gguf(setup, folder):
    """The same of a GGUF file, if smollm2-135m is in the cache."""
    home = Path(os.environ.get("PONDER_HOME") or Path.home() / ".cache" / "ponder")
    source = home / "models" / setup.model / f"{setup.model}.gguf"
    if not source.exists():
        return {}
    details, target = {}, folder / "odd.gguf"
    keys = {"llama.rope.freq_base": (0.0, -1.0, float("nan"), float("inf"))}
    keys["llama.attention.layer_norm_rms_epsilon"] = (-1.0, float("nan"))
    said, _, _ = outcome_of(setup, source)
    if said != "answers 200":
        raise CannotRun(f"the model is not served: {said}")
    for key, values in keys.items():
        for value in values:
            tiny_models.set_gguf_float(source, target, key, value)
            details[f"{key} {value}"] = outcome_of(setup, target)[0]
    return details


ADAPTERS = {
    "NaN": {"a": float("nan")},
    "NaN in B": {"b": float("nan")},
    "Inf": {"b": float("inf")},
    "1e308 in F64": {"a": 1e308, "dtype": "F64"},
    "alpha 1e308": {"alpha": 1e308},
    "alpha 1e39": {"alpha": 1e39},
    "scaled beyond f32": {"b": 3e38, "alpha": 4.0},
}


def lora_args(setup, root):
    """What makes a server load adapters from `root`, before and after there were named roots."""
    return ["--enable-lora"] + (["--lora-root", str(root)] if has_flag(setup.binary, "--lora-root") else [])


def load(server, name, path, key=ATTACKER):
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, key)


def adapter_nan(setup):
    """Adapters whose values are not finite, or not after scaling: each must be refused."""
    details = {}
    with tempfile.TemporaryDirectory() as folder, Server(setup.binary, setup.model, lora_args(setup, folder)) as server:
        good = load(server, "good", tiny_models.write_adapter(Path(folder) / "good", HIDDEN))
        if good.status != 200:
            raise CannotRun(f"a good adapter is refused: {good.text()} {good.body[:200]!r}")
        for index, (name, values) in enumerate(ADAPTERS.items()):
            path = tiny_models.write_adapter(Path(folder) / str(index), HIDDEN, **values)
            reply = load(server, f"bad-{index}", path)
            details[name] = str(reply.status or reply.error)
            if reply.status == 200:
                body = {"model": f"bad-{index}", "prompt": "The capital of France is", "max_tokens": 8}
                answer = server.post("/v1/completions", body).json()
                choices = answer.get("choices") or [{"text": answer.get("error")}]
                details[name] += f" and answers {str(choices[0].get('text'))[:40]!r}"
    taken = [f"{name}: {said}" for name, said in details.items() if said.startswith("200")]
    measured = f"{len(taken)} of {len(ADAPTERS)} load ({'; '.join(taken) or 'none'})"
    return Row("adapter_nan", measured, not taken, "each is refused", details)


def other_keys_view(server, root):
    """What another key can do with an adapter, by name."""
    listed = server.get("/v1/models", NEIGHBOUR)
    names = [entry.get("id") for entry in listed.json().get("data") or []]
    used = server.post("/v1/completions", {"model": "mine", "prompt": "hi", "max_tokens": 1}, NEIGHBOUR)
    shown = server.get("/v1/models/mine", NEIGHBOUR)
    unloaded = server.post("/v1/unload_lora_adapter", {"lora_name": "mine"}, NEIGHBOUR)
    return {
        "sees it": "mine" in names or shown.status == 200,
        "sees the server's path": str(root).encode() in listed.body + shown.body,
        "uses it": used.status == 200,
        "unloads it": unloaded.status == 200,
    }


def strange_loads(server, root, outside):
    """Loads that a server with a named root refuses, and names without a bound."""
    (root / "link").symlink_to(outside)
    return {
        "loads from any folder": load(server, "outside", outside).status == 200,
        "loads by ..": load(server, "dotted", root / ".." / outside.parent.name / outside.name).status == 200,
        "loads by a link": load(server, "linked", root / "link").status == 200,
        "takes a name of 1 MB": load(server, "n" * MIB, root / "good").status == 200,
        "takes a name with line breaks": load(server, "a\n\x1b[2Jb", root / "good").status == 200,
        "tells whether files exist": existence_by_error(server),
    }


def existence_by_error(server):
    """Whether errors differ between a folder that exists and one that does not."""
    said = []
    for path in ("/etc", "/nothing-there"):
        text = load(server, "probe", path).body.decode(errors="replace")
        said.append(text.replace(path, "PATH"))
    there = load(server, "probe", "/etc/passwd").body.decode(errors="replace").replace("/etc/passwd", "PATH")
    return len({*said, there}) > 1


def adapters_ownership(setup):
    """One key loads an adapter; what can another do with it, and from where can one load?"""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        root, outside = Path(first), tiny_models.write_adapter(Path(second) / "outside", HIDDEN)
        with Server(setup.binary, setup.model, lora_args(setup, root)) as server:
            own = load(server, "mine", tiny_models.write_adapter(root / "good", HIDDEN))
            view = other_keys_view(server, root) if own.status == 200 else {}
            view |= strange_loads(server, root, outside)
    fallen = [name for name, is_so in view.items() if is_so]
    measured = f"own load {own.status}; another key, or a stranger's path: {', '.join(fallen) or 'nothing of these'}"
    return Row("adapters_ownership", measured, not fallen, "none of: " + ", ".join(view), {**view, "load": own.status})


ATTACKS = [adapters_ownership, template_stack, tokenizer_id, adapter_nan, odd_config]
