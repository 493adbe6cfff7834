//! Writes an artifact so that it is there whole or not at all.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lithe::Digest;
use lithe::artifact::{MANIFEST_FILE, MODEL_FILE, Manifest, REPORT_FILE};
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
    /// The page for people, when there is one.
    pub report: Option<PathBuf>,
}

fn io(act: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { act, source }
}

/// The digest of the data at `path`: of the file, or of the names and digests of a folder's files.
pub fn digest_data(path: &Path) -> Result<Digest, Error> {
    if !path.is_dir() {
        return digest_file(path);
    }
    let files = crate::compress::data::source::files(path).map_err(|error| Error::Refused {
        refusal: crate::onnx::Refusal::new(lithe::names::reason::DATA_INVALID, error.to_string()),
        field: Some("spec.compression.data".into()),
        source_digest: None,
    })?;
    let digests: Result<std::collections::BTreeMap<String, Digest>, Error> =
        files.into_iter().map(|(name, path)| Ok((name, digest_file(&path)?))).collect();
    Ok(Digest::of_json(&digests?))
}

/// The digest of the file at `path`, read in small pieces.
fn digest_file(path: &Path) -> Result<Digest, Error> {
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

/// Writes `model`, the `report` and then `manifest` into the directory `out`: a manifest is never there
/// without what it describes.
///
/// # Errors
/// When the directory cannot be made or written; nothing half-written is left behind then.
pub fn write(
    out: &Path,
    model: &[u8],
    manifest: &Manifest,
    report: Option<&str>,
) -> Result<Written, Error> {
    fs::create_dir_all(out).map_err(io("make the output directory"))?;
    let manifest = manifest_bytes(manifest);
    let written = Written {
        model: out.join(MODEL_FILE),
        manifest_path: out.join(MANIFEST_FILE),
        manifest_digest: Digest::of(&manifest),
        report: report.map(|_| out.join(REPORT_FILE)),
    };
    // An older manifest would describe another model while the new one is being written.
    match fs::remove_file(&written.manifest_path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove the old manifest")(error));
        }
        _ => {}
    }
    let put = |path: &Path, bytes: &[u8]| {
        put(out, path, bytes).inspect_err(|_| abandon(out)).map_err(io("write the artifact"))
    };
    put(&written.model, model)?;
    if let (Some(path), Some(report)) = (&written.report, report) {
        put(path, report.as_bytes())?;
    }
    put(&written.manifest_path, &manifest)?;
    Ok(written)
}

/// The name of what is being written; always the same, so that the next run takes away what a killed one left.
const PARTIAL: &str = ".lithe.partial";

/// Removes what is half-written in `out`.
pub fn abandon(out: &Path) {
    // There is usually nothing.
    let _ = fs::remove_file(out.join(PARTIAL));
}

/// Writes a file under another name, makes it durable, and renames it.
fn put(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = directory.join(PARTIAL);
    abandon(directory);
    // Never through a link that somebody put there.
    let mut file = File::options().write(true).create_new(true).open(&partial)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_taken_away() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join(PARTIAL), "half").unwrap();
        put(out.path(), &out.path().join("whole"), b"whole").unwrap();
        let names: Vec<_> =
            fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["whole"]);
    }

    #[test]
    fn a_full_disk_is_told_and_leaves_nothing() {
        let error = io("write the artifact")(std::io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert_eq!(error.refusal().reason, lithe::names::reason::NO_SPACE);
        assert!(error.refusal().message.contains("No space left"), "{error}");
    }
}
