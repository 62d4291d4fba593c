//! Image parts of messages, for backends that see.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::messages::text_of;
use crate::api::error::ApiError;
use crate::engine::{Backend, Capability, Media, MediaTurn};

/// Images of one request; their bytes are bounded by the body's.
const MAX_IMAGES: usize = 16;

/// Takes the images out of messages, whose text stays. `None` when there are none.
pub(in crate::api) fn take(
    messages: &mut [Value],
    engine: &dyn Backend,
) -> Result<Option<Arc<Media>>, ApiError> {
    let is_image = |part: &Value| part["type"] == "image_url";
    let parts_of = |message: &Value| message["content"].as_array().cloned();
    let mut images = vec![Vec::new(); messages.len()];
    for (index, message) in messages.iter_mut().enumerate() {
        let Some(parts) = parts_of(message).filter(|parts| parts.iter().any(is_image)) else {
            continue;
        };
        for (part_index, part) in parts.iter().enumerate().filter(|(_, part)| is_image(part)) {
            let at = format!("messages[{index}].content[{part_index}].image_url");
            let demanded = engine.demand(Capability::Vision);
            demanded.map_err(|error| ApiError::at(&at, error))?;
            let image = decode(&part["image_url"]["url"]);
            images[index]
                .push(image.map_err(|message| ApiError::invalid(&at, format!("{at} {message}")))?);
        }
        let texts = parts.into_iter().filter(|part| !is_image(part));
        message["content"] = texts.collect();
    }
    match images.iter().map(Vec::len).sum::<usize>() {
        0 => return Ok(None),
        1..=MAX_IMAGES => {}
        count => {
            let message = format!("messages hold {count} images; a request takes {MAX_IMAGES}");
            return Err(ApiError::invalid("messages", message));
        }
    }
    let turns = messages
        .iter()
        .zip(images)
        .map(|(message, images)| MediaTurn {
            role: message["role"].as_str().unwrap_or_default().to_owned(),
            text: text_of(&message["content"]),
            images,
        });
    Ok(Some(Arc::new(Media {
        turns: turns.collect(),
    })))
}

/// The bytes of a `data:` URL. Others are not fetched: a server that fetches what clients name can be made to read its own network.
fn decode(url: &Value) -> Result<Vec<u8>, &'static str> {
    let data = url
        .as_str()
        .and_then(|url| url.strip_prefix("data:image/"))
        .and_then(|rest| rest.split_once(";base64,"))
        .map(|(_, data)| data);
    let data = data.ok_or("must have a url of the form data:image/png;base64,…")?;
    STANDARD.decode(data).map_err(|_| "is not valid base64")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_urls_are_decoded_and_others_are_not_fetched() {
        assert_eq!(
            decode(&json!("data:image/png;base64,aGk=")),
            Ok(b"hi".to_vec())
        );
        for url in [
            json!("http://127.0.0.1/image.png"),
            json!("data:text/plain;base64,aGk="),
            json!("data:image/png;base64,?"),
            json!(null),
        ] {
            assert!(decode(&url).is_err(), "{url}");
        }
    }
}
