//! One vector of a text's states, and what the folders of sentence-transformers say of that.

use std::path::Path;

use serde_json::Value;

use crate::model::config::ConfigError;
use crate::model::fields::HfFields;
use crate::model::files::{MAX_JSON_BYTES, read_bounded};

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    Mean,
    /// The first token's.
    Cls,
    /// The largest of each value.
    Max,
}

impl Pooling {
    pub const ALL: [(&'static str, Self); 4] = [
        ("last", Self::Last),
        ("mean", Self::Mean),
        ("cls", Self::Cls),
        ("max", Self::Max),
    ];

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, own)| *own)
    }

    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(_, own)| *own == self);
        named.map_or("", |(name, _)| name)
    }
}

/// Pools `[tokens, width]` states; there is at least one token.
pub(super) fn pool(states: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let rows = states.chunks_exact(width);
    let num_rows = rows.len().max(1);
    match pooling {
        Pooling::Cls => states[..width].to_vec(),
        Pooling::Last => states[states.len() - width..].to_vec(),
        Pooling::Max => rows.fold(vec![f32::NEG_INFINITY; width], |mut largest, row| {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = largest.max(*value);
            }
            largest
        }),
        Pooling::Mean => {
            let mut sums = vec![0.0_f64; width];
            for row in rows {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*value);
                }
            }
            let mean = |sum: &f64| (sum / num_rows as f64) as f32;
            sums.iter().map(mean).collect()
        }
    }
}

/// Divides a vector by its length; zeros stay zeros.
pub fn normalise(vector: &mut [f32]) {
    let squares = vector.iter().map(|value| f64::from(*value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

/// What a folder says beside `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceConfig {
    pub pooling: Option<Pooling>,
    /// Tokens of a text, special ones included.
    pub max_seq_length: Option<usize>,
    /// Texts are made lower case before the tokenizer sees them.
    pub do_lower_case: bool,
    /// Put before every text.
    pub default_prompt: String,
}

fn read_json(path: &Path) -> Result<Value, ConfigError> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let invalid = |error: &dyn std::fmt::Display| {
        ConfigError::Invalid(format!("{}: {error}", path.display()))
    };
    let text = read_bounded(path, MAX_JSON_BYTES).map_err(|error| invalid(&error))?;
    serde_json::from_slice(&text).map_err(|error| invalid(&error))
}

impl SentenceConfig {
    /// Reads `modules.json`, the pooling module and `sentence_bert_config.json` of a folder, where
    /// they are.
    ///
    /// # Errors
    /// When the folder has modules or kinds of pooling that are not known: its vectors would be
    /// others.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let modules = read_json(&folder.join("modules.json"))?;
        let mut pooling = None;
        for module in modules.as_array().into_iter().flatten() {
            let kind = module["type"].as_str().unwrap_or("");
            let path = module["path"].as_str().unwrap_or("");
            match kind.rsplit('.').next().unwrap_or("") {
                "Transformer" | "Normalize" => {}
                "Pooling" => {
                    // A path of the folder's own, not one out of it.
                    let is_inside = path.chars().all(|c| c.is_alphanumeric() || c == '_');
                    let named = folder.join(if is_inside { path } else { "1_Pooling" });
                    pooling = Some(pooling_of(&read_json(&named.join("config.json"))?)?);
                }
                other => {
                    let message = format!("modules.json names a module {other:?}");
                    return Err(ConfigError::Invalid(message));
                }
            }
        }
        let bert = read_json(&folder.join("sentence_bert_config.json"))?;
        let bert = HfFields(&bert);
        let prompts = read_json(&folder.join("config_sentence_transformers.json"))?;
        let name = prompts["default_prompt_name"].as_str();
        let prompt = name.and_then(|name| prompts["prompts"][name].as_str());
        Ok(Self {
            pooling,
            max_seq_length: bert.size("max_seq_length")?,
            do_lower_case: bert.flag("do_lower_case")?.unwrap_or(false),
            default_prompt: prompt.unwrap_or("").to_owned(),
        })
    }
}

/// The one kind that a pooling module's configuration turns on.
fn pooling_of(config: &Value) -> Result<Pooling, ConfigError> {
    const FLAGS: [(&str, Pooling); 4] = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let fields = config.as_object();
    let modes = fields
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
    let modes: Vec<&str> = modes.map(|(key, _)| key.as_str()).collect();
    let known = match (modes.as_slice(), config["pooling_mode"].as_str()) {
        ([one], None) => FLAGS.iter().find(|(flag, _)| flag == one).map(|it| it.1),
        ([], Some("lasttoken")) => Some(Pooling::Last),
        ([], Some(name)) => Pooling::by_name(name),
        _ => None,
    };
    known.ok_or_else(|| {
        ConfigError::Invalid(format!(
            "the pooling module is not one that is known: {config}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_are_pooled_in_four_ways() {
        let states = [1.0, -2.0, 3.0, 0.0, 2.0, 5.0];
        let pooled = |pooling| pool(&states, 2, pooling);
        assert_eq!(pooled(Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Last), [2.0, 5.0]);
        assert_eq!(pooled(Pooling::Mean), [2.0, 1.0]);
        assert_eq!(pooled(Pooling::Max), [3.0, 5.0]);
    }

    #[test]
    fn vectors_of_length_zero_stay_zero() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0; 3];
        normalise(&mut zero);
        assert_eq!(zero, [0.0; 3]);
        let mut huge = [f32::MAX, f32::MAX];
        normalise(&mut huge);
        assert!((huge[0] - 0.5_f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn folders_say_how_texts_are_pooled() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        let read = || SentenceConfig::read(folder.path());
        assert_eq!(read().unwrap().pooling, None);
        let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
        let modules = [module("Transformer", ""), module("Pooling", "1_Pooling")];
        write("modules.json", json!(modules));
        write(
            "1_Pooling/config.json",
            json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": true,
                "pooling_mode_mean_tokens": false, "include_prompt": true}),
        );
        write(
            "sentence_bert_config.json",
            json!({"max_seq_length": 256, "do_lower_case": false}),
        );
        let config = read().unwrap();
        assert_eq!(config.pooling, Some(Pooling::Cls));
        assert_eq!(config.max_seq_length, Some(256));
        // Two kinds side by side are two vectors.
        for unknown in [
            json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
            json!({"pooling_mode_weightedmean_tokens": true}),
            json!({}),
        ] {
            write("1_Pooling/config.json", unknown);
            assert!(read().is_err());
        }
        write(
            "1_Pooling/config.json",
            json!({"pooling_mode": "lasttoken"}),
        );
        assert_eq!(read().unwrap().pooling, Some(Pooling::Last));
        write("modules.json", json!([module("Dense", "2_Dense")]));
        assert!(read().unwrap_err().to_string().contains("Dense"));
    }
}
