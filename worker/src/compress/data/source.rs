//! Which format data are in: told by their first bytes, never by a name.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use lithe::artifact::TensorSignature;

use crate::compress::data::column::Column;
use crate::compress::data::{DataError, lines, npy, npz, safetensors};
use crate::onnx::refusal::{quoted, quoted_bytes};

/// The most files of a folder.
const MOST_FILES: usize = 4096;
const FORMATS: &str = "npz, npy, safetensors, JSON lines, or a folder of npy files";
/// First bytes of formats that are known and not read.
const OTHERS: [(&[u8], &str); 8] = [
    (b"PAR1", "Parquet"),
    (b"\x89HDF", "HDF5"),
    (b"ARROW1", "Arrow"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"SQLite", "SQLite"),
    (b"%PDF", "PDF"),
    (b"\x80", "a Python pickle"),
];

/// All arrays at `path`, for a model with `inputs`.
///
/// # Errors
/// [`DataError`]: unreadable, of no known format, damaged, hostile.
pub fn open(path: &Path, inputs: &[TensorSignature]) -> Result<Vec<(String, Column)>, DataError> {
    let kind = fs::metadata(path).map_err(DataError::Read)?;
    if kind.is_dir() {
        return folder(path);
    }
    if !kind.is_file() {
        return Err(DataError::Archive("it is neither a regular file nor a folder".into()));
    }
    let file = File::open(path).map_err(DataError::Read)?;
    let mut head = [0; 64];
    let seen = file.read_at(&mut head, 0).map_err(DataError::Read)?;
    let head = head.get(..seen).unwrap_or_default();
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        npz::open(file)
    } else if head.starts_with(npy::MAGIC) {
        let [input] = inputs else {
            let what = format!(
                "it is one array, and the model has {} inputs; give npz or a folder of npy files",
                inputs.len()
            );
            return Err(DataError::Archive(what));
        };
        let wrong = |what| DataError::Array { name: input.name.clone(), what };
        Ok(vec![(input.name.clone(), npy::open(file).map_err(wrong)?)])
    } else if safetensors::recognised(head, kind.len()) {
        safetensors::open(file)
    } else if first == Some(&b'{') {
        lines::open(file, inputs)
    } else {
        let known = OTHERS.iter().find(|(magic, _)| head.starts_with(magic));
        Err(DataError::Archive(match known {
            Some((_, name)) => format!("it is {name}, which is not read; give {FORMATS}"),
            None if head.is_empty() => format!("it is empty; give {FORMATS}"),
            None => format!("it begins with {}; give {FORMATS}", quoted_bytes(head)),
        }))
    }
}

/// The files of a folder, sorted, each with the name of its array: `x.npy` is `x`, and
/// `calibration/x.npy` is `calibration/x`.
///
/// # Errors
/// What is in the folder and is no `.npy` file, and what cannot be read.
pub fn files(folder: &Path) -> Result<Vec<(String, std::path::PathBuf)>, DataError> {
    let mut found = Vec::new();
    list(folder, "", &mut found)?;
    found.sort();
    Ok(found)
}

fn list(
    folder: &Path,
    prefix: &str,
    found: &mut Vec<(String, std::path::PathBuf)>,
) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(DataError::Read)? {
        let entry = entry.map_err(DataError::Read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(DataError::Read)?;
        let odd =
            |what: &str| DataError::Archive(format!("the folder holds {}, {what}", quoted(&name)));
        if found.len() >= MOST_FILES {
            return Err(DataError::Archive(format!("the folder has more than {MOST_FILES} files")));
        }
        if kind.is_dir() && prefix.is_empty() {
            list(&entry.path(), &format!("{name}/"), found)?;
        } else if !kind.is_file() {
            return Err(odd("which is neither a file nor a split"));
        } else if let Some(array) = name.strip_suffix(".npy") {
            found.push((format!("{prefix}{array}"), entry.path()));
        } else {
            return Err(odd("which is no .npy file"));
        }
    }
    Ok(())
}

fn folder(path: &Path) -> Result<Vec<(String, Column)>, DataError> {
    let files = files(path)?;
    if files.is_empty() {
        return Err(DataError::Archive("the folder holds no .npy file".into()));
    }
    let open = |(name, path): (String, std::path::PathBuf)| {
        let file = File::open(path).map_err(DataError::Read)?;
        let column = npy::open(file);
        match column {
            Ok(column) => Ok((name, column)),
            Err(what) => Err(DataError::Array { name, what }),
        }
    };
    files.into_iter().map(open).collect()
}
