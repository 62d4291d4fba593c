//! `ponder bench soak` over a tiny model of random weights whose server is killed once.

use std::path::Path;
use std::process::Command;

use ponder::model::testing::uniform;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::tiny::{TEMPLATE, model_files};

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
/// As the tokenizer has it.
const VOCAB: usize = 260;
const LAYERS: usize = 2;
const KV: usize = 32;

/// Names, shapes, and the largest value; norms are ones.
fn tensors() -> Vec<(String, Vec<usize>, Option<f32>)> {
    let mut tensors = vec![
        (
            "model.embed_tokens".to_owned(),
            vec![VOCAB, HIDDEN],
            Some(1.0),
        ),
        ("lm_head".to_owned(), vec![VOCAB, HIDDEN], Some(0.3)),
        ("model.norm".to_owned(), vec![HIDDEN], None),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            let size = (shape.len() > 1).then_some(0.2);
            tensors.push((format!("model.layers.{layer}.{name}"), shape, size));
        }
    }
    tensors
}

/// A llama of random weights as a safetensors folder, with a tokenizer of bytes.
fn write_model(folder: &Path) {
    model_files(folder);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    let mut state = 1;
    let values = |(name, shape, size): (String, Vec<usize>, Option<f32>)| {
        let value = |_| size.map_or(1.0, |size| size * uniform(&mut state));
        let values = (0..shape.iter().product()).map(value);
        let bytes: Vec<u8> = values.flat_map(|value: f32| value.to_le_bytes()).collect();
        (format!("{name}.weight"), shape, bytes)
    };
    let tensors: Vec<_> = tensors().into_iter().map(values).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn a_soak_finds_all_traces_and_the_same_answers_behind_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let path = folder.path().join("report.json");
    let kinds = "chat,chat-stream,completions,search-beam,search-best_of_n,search-resume,branches,\
        tokenize,probes,traces,trace-outcome,trace-delete,half-request";
    let output = Command::new(env!("CARGO_BIN_EXE_ponder"))
        .args(["bench", "soak"])
        .arg(folder.path())
        .args(["--minutes", "0.04", "--kill-every", "1", "--clients", "6"])
        .args(["--only", kinds, "--json"])
        .arg(&path)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["failed"], 0);
    let measured = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks
            .iter()
            .find(|check| check["check"].as_str().unwrap().starts_with(name));
        let check = check.unwrap_or_else(|| panic!("no check {name}: {report}"));
        (check["verdict"].clone(), check["measured"].to_string())
    };
    for name in [
        "all traces",
        "equal seeds",
        "idle",
        "every answer",
        "ends only",
    ] {
        assert_eq!(measured(name).0, "passed", "{name}: {printed}");
    }
    let (_, ends) = measured("ends only");
    assert!(
        !ends.contains("\"0 SIGKILL, 1 SIGTERM"),
        "nothing was killed: {ends}"
    );
    let lives = report["samples"].as_array().unwrap().iter();
    assert!(lives.filter_map(|sample| sample["life"].as_u64()).max() >= Some(2));
}

#[test]
fn a_soak_of_nothing_is_refused() {
    for (args, why) in [
        (vec!["--only", "sleep"], "choose of chat,"),
        (vec!["--minutes", "0"], "must be above 0"),
        (vec!["--kill-every", "inf"], "is not in"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        let output = command
            .args(["bench", "soak"])
            .arg(folder.path())
            .args(args);
        let output = output.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
