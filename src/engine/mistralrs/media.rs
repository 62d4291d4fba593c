//! Conversations with images, in mistralrs's shape.

use std::io::Cursor;

use ::mistralrs::{
    ModelCategory, MultimodalMessages, RequestLike, RequestMessage, TextMessageRole,
};
use image::{DynamicImage, ImageReader, Limits};

use crate::engine::request::{EngineError, Media};

/// Pixels of an image's side.
const MAX_SIDE: u32 = 8192;
/// Memory that all decoded images of a request may take: a file of some kilobytes may hold one of a
/// hundred megabytes.
const MAX_DECODED_BYTES: u64 = 256 << 20;

/// The conversation, with the model's own marks for images in it.
pub(super) fn media_message(
    media: &Media,
    category: &ModelCategory,
) -> Result<RequestMessage, EngineError> {
    let mut messages = MultimodalMessages::new();
    let (mut num_images, mut num_left) = (0, MAX_DECODED_BYTES);
    for turn in &media.turns {
        let mut images = Vec::new();
        for bytes in &turn.images {
            let image = decode(bytes, num_left).map_err(|error| EngineError::Image {
                index: num_images,
                message: error.to_string(),
            })?;
            num_left = num_left.saturating_sub(image.as_bytes().len() as u64);
            images.push(image);
            num_images += 1;
        }
        let role = TextMessageRole::Custom(turn.role.clone());
        messages = match images.is_empty() {
            true => messages.add_message(role, &turn.text),
            false => messages.add_image_message(role, &turn.text, images),
        };
    }
    messages.resolve_pending_prefixes(category);
    Ok(messages.take_messages())
}

fn decode(bytes: &[u8], max_bytes: u64) -> image::ImageResult<DynamicImage> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(max_bytes);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits);
    reader.decode()
}
