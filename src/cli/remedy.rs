//! What to do about a model's file that may be damaged.

use std::error::Error;
use std::path::Path;

use ponder_kernels::KernelError;

use crate::engine::EngineError;
use crate::model::catalogue::{self, Source};
use crate::model::ops::OpsError;
use crate::model::{ConfigError, LoadError, OpenError};
use crate::text::TokenizerError;

/// Says which file may be damaged, and what to do, of an error while a model loads. Flags that do
/// not fit are no damage.
pub(super) fn with_remedy(error: anyhow::Error, model: &str, path: &Path) -> anyhow::Error {
    let is_known = matches!(catalogue::resolve(model), Ok(Source::Catalogue(_)));
    let is_hub = matches!(catalogue::resolve(model), Ok(Source::Hub { .. }));
    let is_damage = error.chain().any(is_damage);
    // A model of the catalogue loads: what cannot be read of its file is the file's fault.
    let is_unread = is_known && error.chain().any(is_unread);
    let path = path.display();
    match (is_known || is_hub, is_damage || is_unread) {
        (_, false) => error,
        (true, true) => error.context(format!(
            "{path} may be damaged (`ponder pull {model}` checks its bytes and fetches them again \
             if they are wrong)"
        )),
        (false, true) => error.context(format!(
            "{path} may be damaged (compare its checksum with the one at its source, or fetch it \
             again)"
        )),
    }
}

/// Numbers that no file of a model holds.
fn is_damage(cause: &(dyn Error + 'static)) -> bool {
    let engine = cause.downcast_ref::<EngineError>();
    matches!(cause.downcast_ref(), Some(LoadError::NotFinite(_)))
        || engine.is_some_and(EngineError::is_not_finite)
}

/// What a file does not hold as it should.
fn is_unread(cause: &(dyn Error + 'static)) -> bool {
    let of_tensors = match cause.downcast_ref::<LoadError>() {
        None => false,
        Some(LoadError::Pack { source, .. }) => match source {
            OpsError::Kernel(error) => !matches!(error, KernelError::OutOfMemory { .. }),
            OpsError::Device(_) | OpsError::Lacks(_) | OpsError::DeviceLost(_) => false,
        },
        Some(_) => true,
    };
    of_tensors
        || cause.is::<OpenError>()
        || cause.is::<ConfigError>()
        || cause.is::<TokenizerError>()
}
