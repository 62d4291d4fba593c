//! `adaptation` and `router_adaptation`: what a request says of adapting to its own context.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::params::SharedParams;
use crate::api::error::ApiError;
use crate::api::served::Served;
use crate::engine::{AdaptationConfig, AdaptationReport, EngineError};
use crate::model::AdaptationMethod;
use crate::model::adapt::{RouterGradient, RouterLayers};

/// What a request asks for; the server's default where it says nothing.
pub(in crate::api) fn adaptation(
    shared: &SharedParams,
    served: &Served,
) -> Result<Option<Arc<AdaptationConfig>>, ApiError> {
    let is_said = |value: &&Value| !value.is_null();
    let any = shared.adaptation.as_ref().filter(is_said);
    let router = shared.router_adaptation.as_ref().filter(is_said);
    let (param, config) = match (any, router) {
        (Some(_), Some(_)) => {
            let message = "adaptation and router_adaptation exclude each other";
            return Err(ApiError::invalid("router_adaptation", message));
        }
        (None, None) => return Ok(served.adaptation.clone()),
        (Some(value), None) => ("adaptation", read("adaptation", value, None, served)?),
        (None, Some(value)) => {
            let method = Some(AdaptationMethod::Router);
            let param = "router_adaptation";
            (param, read(param, value, method, served)?)
        }
    };
    let Some(config) = config else {
        return Ok(None);
    };
    check(param, &config, served)?;
    Ok(Some(Arc::new(config)))
}

/// How a server adapts requests that say nothing of it, from `--adaptation` and
/// `--router-adaptation`.
pub fn default_adaptation(
    adaptation: Option<&str>,
    router_adaptation: Option<&str>,
    served: &Served,
) -> Result<Option<Arc<AdaptationConfig>>, ApiError> {
    match (adaptation, router_adaptation) {
        (Some(text), _) => from_flag("adaptation", text, served),
        (None, Some(text)) => from_flag("router_adaptation", text, served),
        (None, None) => Ok(None),
    }
}

/// The server's default from a flag: a method's name, `off`, or JSON.
fn from_flag(
    param: &str,
    text: &str,
    served: &Served,
) -> Result<Option<Arc<AdaptationConfig>>, ApiError> {
    let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let method = (param != "adaptation").then_some(AdaptationMethod::Router);
    let Some(config) = read(param, &value, method, served)? else {
        return Ok(None);
    };
    check(param, &config, served)?;
    Ok(Some(Arc::new(config)))
}

/// Whether the model can be adapted so.
fn check(param: &str, config: &AdaptationConfig, served: &Served) -> Result<(), ApiError> {
    match served.engine.check_adaptation(config) {
        Err(EngineError::Adaptation { field, message }) => {
            let at = match (param, field) {
                // The method was not written, but implied.
                ("router_adaptation", "method") => param.to_owned(),
                _ => format!("{param}.{field}"),
            };
            let message = match at == param {
                true => "router_adaptation needs a mixture-of-experts model: this one is dense; \
                         leave it out, or ask for adaptation: \"slot\""
                    .to_owned(),
                false => format!("{at} {message}"),
            };
            Err(ApiError::invalid(&at, message))
        }
        Err(error) => Err(ApiError::at(param, error)),
        Ok(()) => Ok(()),
    }
}

/// `None` turns it off.
fn read(
    param: &str,
    value: &Value,
    method: Option<AdaptationMethod>,
    served: &Served,
) -> Result<Option<AdaptationConfig>, ApiError> {
    let none = Map::new();
    let fields = match (value, method) {
        (Value::Bool(false), _) => return Ok(None),
        (Value::String(text), _) if matches!(text.as_str(), "off" | "none") => return Ok(None),
        (Value::Bool(true), Some(_)) => &none,
        (Value::String(text), None) => {
            let fields = Map::from_iter([("method".to_owned(), json!(text))]);
            return parse(param, &fields, None, served).map(Some);
        }
        (Value::Object(fields), _) => fields,
        (_, Some(_)) => {
            let message = format!("{param} must be true, false or an object");
            return Err(ApiError::invalid(param, message));
        }
        (_, None) => {
            let message = format!("{param} must be \"slot\", \"router\", \"off\" or an object");
            return Err(ApiError::invalid(param, message));
        }
    };
    parse(param, fields, method, served).map(Some)
}

/// The method's defaults with what is said in their place.
fn parse(
    param: &str,
    fields: &Map<String, Value>,
    method: Option<AdaptationMethod>,
    served: &Served,
) -> Result<AdaptationConfig, ApiError> {
    let named = match fields.get("method") {
        None => method,
        Some(name) => {
            let named = serde_json::from_value(name.clone()).ok();
            let named = named.filter(|named| method.is_none_or(|method| method == *named));
            Some(named.ok_or_else(|| {
                let at = format!("{param}.method");
                let message = match method {
                    Some(_) => format!("{at} can only be \"router\""),
                    None => format!("{at} must be \"router\" or \"slot\""),
                };
                ApiError::invalid(&at, message)
            })?)
        }
    };
    let mut defaults = match named {
        Some(AdaptationMethod::Router) => AdaptationConfig::router(),
        Some(AdaptationMethod::Slot) => AdaptationConfig::slot(),
        None => {
            let at = format!("{param}.method");
            let message = format!("{at} must be \"router\" or \"slot\"");
            return Err(ApiError::invalid(&at, message));
        }
    };
    if !served.engine.model_info().is_differentiable {
        defaults.gradient = RouterGradient::Truncated;
    }
    if fields.contains_key("layers") {
        // A share without a depth is one of all layers, not of the last one.
        defaults.layers = RouterLayers::default();
    }
    let mut merged = json!(defaults);
    merge(param, &mut merged, fields)?;
    serde_path_to_error::deserialize(merged).map_err(|error| {
        let at = format!("{param}.{}", error.path());
        ApiError::invalid(&at, format!("{at}: {}", error.inner()))
    })
}

/// Puts fields in the place of defaults; others are refused.
fn merge(path: &str, target: &mut Value, fields: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in fields {
        let at = format!("{path}.{name}");
        let Some(old) = target.get_mut(name) else {
            let message = format!("{at} is not known");
            return Err(ApiError::invalid(&at, message));
        };
        match (old.is_object(), value) {
            (true, Value::Object(inner)) => merge(&at, old, inner)?,
            _ => *old = value.clone(),
        }
    }
    Ok(())
}

/// The `adaptation` object of a response and of a trace.
pub(in crate::api) fn phase_json(report: &AdaptationReport, choice: usize) -> Value {
    let rounded = |value: f32| (f64::from(value) * 1e5).round() / 1e5;
    let losses: Vec<f64> = report.losses.iter().copied().map(rounded).collect();
    json!({
        "choice": choice,
        "num_tokens": report.num_tokens,
        "losses": losses,
        "layers": report.layers,
        "delta_norm": rounded(report.delta_norm),
        "moved": rounded(report.moved),
        "routing_entropy": report.entropy.map(rounded),
    })
}
