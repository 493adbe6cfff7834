//! The model repository extension on a process that serves one model for its life: the model that
//! is loaded can be loaded, which changes nothing, and nothing can be unloaded.

use super::error::InferError;
use super::server::Server;

/// Answers a request to load `model`, with so many `overrides` of its configuration or files.
///
/// # Errors
/// [`InferError::NotFound`] for another model, [`InferError::Unavailable`] while it loads,
/// [`InferError::Unsupported`] for overrides.
pub fn load(server: &Server, model: &str, overrides: usize) -> Result<(), InferError> {
    let ready = server.model_ready(model, "")?;
    if overrides > 0 {
        return Err(InferError::Unsupported(format!(
            "{model:?} is served as it was compressed: its configuration and files cannot be overridden; change spec of its ModelDeployment"
        )));
    }
    if !ready {
        return Err(InferError::Unavailable(format!("the model {model:?} is {}", server.state())));
    }
    Ok(())
}

/// Answers a request to unload `model`: [`InferError::NotFound`] for another model,
/// [`InferError::Unsupported`] for this one.
pub fn unload(server: &Server, model: &str) -> InferError {
    let kept = || {
        InferError::Unsupported(format!(
            "{model:?} cannot be unloaded: a process serves one model for its life; delete its ModelDeployment"
        ))
    };
    server.model_ready(model, "").err().unwrap_or_else(kept)
}
