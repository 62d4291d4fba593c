//! Rows as a Parquet file. The columns are what the rows have: they are read once to see it, once
//! to write.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use arrow_json::ReaderBuilder;
use arrow_json::reader::{Decoder, infer_json_schema_from_iterator};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use super::rows::{Row, Rows};

/// Rows of one batch of Arrow.
const BATCH_ROWS: usize = 1024;

/// Returns the number of rows. `is_tree`: the rows are records, whose inner parts have no common shape and are kept as
/// JSON text.
pub(super) fn write(rows: &Rows, path: &Path, is_tree: bool) -> anyhow::Result<u64> {
    let shaped = |mut row: Row| {
        if is_tree {
            for value in row
                .values_mut()
                .filter(|value| value.is_object() || value.is_array())
            {
                *value = Value::String(value.to_string());
            }
        }
        Value::Object(row)
    };
    let mut schema = Schema::empty();
    rows.each("reading", |row| {
        let row: Result<Value, ArrowError> = Ok(shaped(row));
        let of_row = infer_json_schema_from_iterator(std::iter::once(row))?;
        if !of_row.fields.iter().eq(schema.fields.iter()) {
            let both = Schema::try_merge([schema.clone(), of_row]);
            schema = both.context(
                "a Parquet file has one shape of rows, and these differ (chats and completions?): filter them, or write .jsonl",
            )?;
        }
        Ok(())
    })?;
    let schema: SchemaRef = Arc::new(schema);
    let level = ZstdLevel::default();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .build();
    let failed = || format!("--out {}", path.display());
    let file = File::create(path).with_context(failed)?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
    let mut decoder = ReaderBuilder::new(schema)
        .with_batch_size(BATCH_ROWS)
        .build_decoder()?;
    let mut count = 0;
    let mut batch = Vec::with_capacity(BATCH_ROWS);
    rows.each("writing", |row| {
        batch.push(shaped(row));
        count += 1;
        if batch.len() == BATCH_ROWS {
            flush(&mut decoder, &mut writer, &mut batch)?;
        }
        Ok(())
    })?;
    flush(&mut decoder, &mut writer, &mut batch)?;
    writer.close().with_context(failed)?;
    Ok(count)
}

fn flush(
    decoder: &mut Decoder,
    writer: &mut ArrowWriter<File>,
    batch: &mut Vec<Value>,
) -> anyhow::Result<()> {
    decoder.serialize(batch)?;
    batch.clear();
    if let Some(rows) = decoder.flush()? {
        writer.write(&rows)?;
    }
    Ok(())
}
