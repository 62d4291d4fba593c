//! Small files and random models for tests of this crate.

use std::collections::BTreeMap;

use super::families::{Bias, Family, QkNorm};

/// Writes GGUF files, value by value.
#[derive(Default)]
pub struct GgufWriter {
    entries: Vec<u8>,
    num_entries: u64,
    directory: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

impl GgufWriter {
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str, value_type: u32) {
        put_string(&mut self.entries, key);
        self.entries.extend(value_type.to_le_bytes());
        self.num_entries += 1;
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.entries.extend(value.to_le_bytes());
    }

    pub fn u16(&mut self, key: &str, value: u16) {
        self.key(key, 2);
        self.entries.extend(value.to_le_bytes());
    }

    pub fn i32(&mut self, key: &str, value: i32) {
        self.key(key, 5);
        self.entries.extend(value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.entries.extend(value.to_le_bytes());
    }

    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_string(&mut self.entries, value);
    }

    pub fn strings(&mut self, key: &str, values: &[&str]) {
        self.key(key, 9);
        self.entries.extend(8_u32.to_le_bytes());
        self.entries.extend((values.len() as u64).to_le_bytes());
        for value in values {
            put_string(&mut self.entries, value);
        }
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        self.key(key, 9);
        self.entries.extend(5_u32.to_le_bytes());
        self.entries.extend((values.len() as u64).to_le_bytes());
        for value in values {
            self.entries.extend(value.to_le_bytes());
        }
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        self.key(key, 9);
        self.entries.extend(6_u32.to_le_bytes());
        self.entries.extend((values.len() as u64).to_le_bytes());
        for value in values {
            self.entries.extend(value.to_le_bytes());
        }
    }

    /// `dimensions` innermost first.
    pub fn f32_tensor(&mut self, name: &str, dimensions: &[usize], values: &[f32]) {
        assert_eq!(values.len(), dimensions.iter().product::<usize>());
        self.data
            .resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        put_string(&mut self.directory, name);
        self.directory
            .extend((dimensions.len() as u32).to_le_bytes());
        for size in dimensions {
            self.directory.extend((*size as u64).to_le_bytes());
        }
        self.directory.extend(0_u32.to_le_bytes());
        self.directory
            .extend((self.data.len() as u64).to_le_bytes());
        self.num_tensors += 1;
        for value in values {
            self.data.extend(value.to_le_bytes());
        }
    }

    pub fn finish(self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.num_tensors.to_le_bytes());
        bytes.extend(self.num_entries.to_le_bytes());
        bytes.extend(self.entries);
        bytes.extend(self.directory);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(self.data);
        bytes
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A tiny random model: named f32 tensors (GGUF names) and the sizes that shape them.
pub struct TinyModel {
    pub architecture: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub sliding_window: usize,
    /// `(dimensions innermost first, values)`
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl TinyModel {
    /// Seeded random weights for a dense family (its `general.architecture`), with an untied head.
    pub fn random(architecture: &'static str, seed: u64) -> Self {
        let mut model = Self {
            architecture,
            vocab_size: 96,
            hidden_size: 64,
            num_layers: 7,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            intermediate_size: 96,
            sliding_window: 12,
            tensors: BTreeMap::new(),
        };
        let mut state = seed;
        model.add(
            "token_embd.weight",
            &[model.hidden_size, model.vocab_size],
            1.0,
            &mut state,
        );
        model.add(
            "output.weight",
            &[model.hidden_size, model.vocab_size],
            0.3,
            &mut state,
        );
        model.norm("output_norm.weight", model.hidden_size, &mut state);
        for layer in 0..model.num_layers {
            model.add_layer(layer, &mut state);
        }
        model
    }

    fn add_layer(&mut self, layer: usize, state: &mut u64) {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let q_width = self.num_heads * self.head_dim;
        let kv_width = self.num_kv_heads * self.head_dim;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        self.norm(&name("attn_norm"), hidden, state);
        self.norm(&name("ffn_norm"), hidden, state);
        for (part, inputs, outputs) in [
            ("attn_q", hidden, q_width),
            ("attn_k", hidden, kv_width),
            ("attn_v", hidden, kv_width),
            ("attn_output", q_width, hidden),
            ("ffn_gate", hidden, ffn),
            ("ffn_up", hidden, ffn),
            ("ffn_down", ffn, hidden),
        ] {
            self.add(&name(part), &[inputs, outputs], 0.2, state);
        }
        let family = self.family();
        if family.qkv_bias != Bias::Never {
            for (part, width) in [
                ("attn_q", q_width),
                ("attn_k", kv_width),
                ("attn_v", kv_width),
            ] {
                self.add(&format!("blk.{layer}.{part}.bias"), &[width], 0.5, state);
            }
        }
        let norms = match family.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some((self.head_dim, self.head_dim)),
            QkNorm::Whole => Some((q_width, kv_width)),
        };
        if let Some((q, k)) = norms {
            self.norm(&name("attn_q_norm"), q, state);
            self.norm(&name("attn_k_norm"), k, state);
        }
        if family.post_norms {
            self.norm(&name("post_attention_norm"), hidden, state);
            self.norm(&name("post_ffw_norm"), hidden, state);
        }
    }

    fn family(&self) -> &'static Family {
        Family::of_gguf(self.architecture, false).expect("a dense family's name")
    }

    fn add(&mut self, name: &str, dimensions: &[usize], size: f32, state: &mut u64) {
        let count = dimensions.iter().product();
        let values = (0..count).map(|_| size * uniform(state)).collect();
        self.tensors
            .insert(name.to_owned(), (dimensions.to_vec(), values));
    }

    fn norm(&mut self, name: &str, width: usize, state: &mut u64) {
        let values = (0..width).map(|_| 1.0 + 0.2 * uniform(state)).collect();
        self.tensors.insert(name.to_owned(), (vec![width], values));
    }

    /// The model as a GGUF file without a tokenizer.
    pub fn to_gguf(&self) -> Vec<u8> {
        self.to_gguf_with(|_| {})
    }

    /// The model in `count` files, as `gguf-split` writes them: the first has the metadata.
    pub fn to_gguf_parts(&self, count: usize, extra: impl FnOnce(&mut GgufWriter)) -> Vec<Vec<u8>> {
        let mut writers: Vec<GgufWriter> = (0..count).map(|_| GgufWriter::new()).collect();
        self.put_metadata(&mut writers[0]);
        extra(&mut writers[0]);
        for (number, writer) in writers.iter_mut().enumerate() {
            writer.u16("split.no", number as u16);
            writer.u16("split.count", count as u16);
            writer.i32("split.tensors.count", self.tensors.len() as i32);
        }
        let per_part = self.tensors.len().div_ceil(count);
        for (index, (name, (dimensions, values))) in self.tensors.iter().enumerate() {
            writers[index / per_part].f32_tensor(name, dimensions, values);
        }
        writers.into_iter().map(GgufWriter::finish).collect()
    }

    /// As [`Self::to_gguf`], with more metadata (a tokenizer, say).
    pub fn to_gguf_with(&self, extra: impl FnOnce(&mut GgufWriter)) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        self.put_metadata(&mut writer);
        extra(&mut writer);
        for (name, (dimensions, values)) in &self.tensors {
            writer.f32_tensor(name, dimensions, values);
        }
        writer.finish()
    }

    fn put_metadata(&self, writer: &mut GgufWriter) {
        writer.string("general.architecture", self.architecture);
        for (key, value) in [
            ("block_count", self.num_layers),
            ("context_length", 512),
            ("embedding_length", self.hidden_size),
            ("feed_forward_length", self.intermediate_size),
            ("attention.head_count", self.num_heads),
            ("attention.head_count_kv", self.num_kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("attention.sliding_window", self.sliding_window),
        ] {
            writer.u32(&format!("{}.{key}", self.architecture), value as u32);
        }
        writer.f32(
            &format!("{}.attention.layer_norm_rms_epsilon", self.architecture),
            1e-6,
        );
        writer.f32(&format!("{}.rope.freq_base", self.architecture), 50_000.0);
    }
}

/// Uniform in -1..1 (SplitMix64).
pub fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}
