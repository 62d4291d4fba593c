use super::*;

/// An adapter of one matrix in a model of one layer, whose first weights are those.
fn parse(changes: &[(&str, serde_json::Value)], a: f32, b: f32) -> Result<LoraAdapter, LoraError> {
    let json = serde_json::json!({"model_type": crate::model::families::FAMILIES[0].name, "vocab_size": 8, "hidden_size": 4,
        "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "max_position_embeddings": 16});
    let config = ModelConfig::from_hf(&json).unwrap();
    let mut lora =
        serde_json::json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "bias": "none"});
    for (key, value) in changes {
        lora[*key] = value.clone();
    }
    let bytes = |first: f32| -> Vec<u8> {
        [first, 1.0, 1.0, 1.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect()
    };
    let (a, b) = (bytes(a), bytes(b));
    let view = |shape, data| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap()
    };
    let name = |half| format!("base_model.model.model.layers.0.mlp.up_proj.lora_{half}.weight");
    let tensors = [
        (name("A"), view(vec![1, 4], &a)),
        (name("B"), view(vec![4, 1], &b)),
    ];
    let weights = safetensors::serialize(tensors, None).unwrap();
    LoraAdapter::parse(lora.to_string().as_bytes(), &weights, &config)
}

#[test]
fn weights_and_scales_that_are_not_numbers_or_absurd_are_refused() {
    use serde_json::json;
    assert!(parse(&[], 1.0, 1.0).is_ok());
    assert!(
        parse(
            &[("lora_alpha", json!(16)), ("r", json!(1))],
            -60_000.0,
            4000.0
        )
        .is_ok()
    );
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e6] {
        for (a, b) in [(value, 1.0), (1.0, value)] {
            let refused = parse(&[], a, b).unwrap_err();
            assert!(matches!(refused, LoraError::Values { .. }), "{refused}");
        }
    }
    // What is small alone and large by its scale.
    let scaled = parse(&[("lora_alpha", json!(1e6))], 1.0, 1.0);
    assert!(matches!(scaled, Err(LoraError::Values { .. })));
    for (key, value) in [
        ("lora_alpha", json!(1e308)),
        ("lora_alpha", json!("NaN")),
        ("r", json!(0)),
        ("r", json!(-1)),
        ("rank_pattern", json!({"up_proj": 0})),
        ("alpha_pattern", json!({"up_proj": 1e308})),
    ] {
        let result = parse(&[(key, value.clone())], 1.0, 1.0);
        assert!(result.is_err(), "{key} {value} was accepted");
    }
}

#[test]
fn halves_of_a_head_are_interleaved() {
    // Two heads of four rows, one value each.
    let rows = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
    let ordered = adjacent_pairs(&rows, 4, 1);
    assert_eq!(ordered, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}
