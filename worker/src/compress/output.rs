//! Writes an artifact so that it is there whole or not at all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use lithe::Digest;
use lithe::artifact::{MANIFEST_FILE, MODEL_FILE, Manifest};
use sha2::{Digest as _, Sha256};

use crate::compress::Error;

/// Where the artifact lies.
pub struct Written {
    /// The model file.
    pub model: PathBuf,
    /// The manifest file.
    pub manifest_path: PathBuf,
    /// The digest of the manifest file.
    pub manifest_digest: Digest,
}

fn io(act: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { act, source }
}

/// The digest of the file at `path`, read in small pieces.
pub fn digest_file(path: &Path) -> Result<Digest, Error> {
    use lithe::names::reason;
    let mut file = File::open(path).map_err(|error| Error::Refused {
        refusal: crate::onnx::Refusal::new(
            reason::SOURCE_NOT_FOUND,
            format!("the data file cannot be opened: {error}"),
        ),
        field: Some("spec.compression.data".into()),
        source_digest: None,
    })?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let seen = file.read(&mut buffer).map_err(io("read the data file"))?;
        if seen == 0 {
            return Ok(Digest::finish(hasher));
        }
        hasher.update(buffer.get(..seen).unwrap_or_default());
    }
}

/// A manifest's bytes: canonical JSON, keys sorted.
pub fn manifest_bytes(manifest: &Manifest) -> Vec<u8> {
    // Every field is plain data, which JSON can always hold; a `Value` keeps its keys sorted.
    serde_json::to_value(manifest).unwrap_or_default().to_string().into_bytes()
}

/// Writes `model` and then `manifest` into the directory `out`: a manifest is never there without
/// its model.
pub fn write(out: &Path, model: &[u8], manifest: &Manifest) -> Result<Written, Error> {
    fs::create_dir_all(out).map_err(io("make the output directory"))?;
    let manifest = manifest_bytes(manifest);
    let written = Written {
        model: out.join(MODEL_FILE),
        manifest_path: out.join(MANIFEST_FILE),
        manifest_digest: Digest::of(&manifest),
    };
    // An older manifest would describe another model while the new one is being written.
    match fs::remove_file(&written.manifest_path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove the old manifest")(error));
        }
        _ => {}
    }
    put(out, &written.model, model)?;
    put(out, &written.manifest_path, &manifest)?;
    Ok(written)
}

/// Writes a file under another name, makes it durable, and renames it.
fn put(directory: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(io("write the artifact"))?;
    file.write_all(bytes).map_err(io("write the artifact"))?;
    file.as_file().sync_all().map_err(io("write the artifact"))?;
    file.persist(path).map_err(|error| io("write the artifact")(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io("write the artifact"))
}
