//! The only way in: sniff, scan, decode, verify every tensor, take external data inside, check
//! operators, functions and order.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use lithe::Digest;
use lithe::names::reason;
use prost::Message;

use super::budget::Budget;
use super::external::Directory;
use super::facts::{self, Facts};
use super::refusal::{Refusal, quoted};
use super::sniff::{HEAD, sniff};
use super::{ModelProto, SparseTensorProto, functions, operators, order, scan, walk};

/// A verified model that holds all of its bytes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The model: no external data, no training graphs, nodes in order.
    pub model: ModelProto,
    /// The content address of the source. Without external data it is the digest of the file's
    /// bytes; with them it is the digest of the canonical JSON
    /// `{"external":{LOCATION:DIGEST,…},"model":DIGEST}`, each the digest of a whole file.
    pub digest: Digest,
    /// Bytes of the file and of the external files.
    pub size: u64,
}

/// Files up to here are scanned in memory only; larger ones are scanned on disk before they are
/// read, so that refusing them stays cheap.
const SCAN_IN_MEMORY: u64 = 32 << 20;

/// Loads the model at `path`, whose external data lie beneath its directory.
///
/// # Errors
/// A [`Refusal`] that names the first thing that is wrong. Costs at most a small multiple of the
/// offending part, never what the file claims.
pub fn load(path: &Path, budget: &Budget) -> Result<Loaded, Refusal> {
    let shown = quoted(&path.to_string_lossy());
    let mut file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Refusal::new(reason::SOURCE_NOT_FOUND, format!("there is no model file {shown}"))
        }
        _ => Refusal::new(
            reason::SOURCE_NOT_FOUND,
            format!("the model file {shown} cannot be opened: {error}"),
        ),
    })?;
    let unreadable = |error: std::io::Error| {
        Refusal::corrupt(format!("the model file {shown} cannot be read: {error}"))
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Refusal::corrupt(format!("{shown} is no regular file")));
    }
    let size = metadata.len();
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    sniff(&head, size)?;
    if size > SCAN_IN_MEMORY {
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        scan::scan(BufReader::with_capacity(1 << 16, &mut file), size, budget)
            .map_err(|refusal| saved_model(&head, refusal))?;
    }
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|_| Refusal::budget(format!("there is no memory for the model's {size} bytes")))?;
    file.take(size).read_to_end(&mut bytes).map_err(unreadable)?;
    parse(bytes.into(), path.parent(), budget)
}

/// Verifies the model in `bytes`, whose external data lie beneath `directory`; without a directory
/// external data are refused.
pub fn parse(bytes: Bytes, directory: Option<&Path>, budget: &Budget) -> Result<Loaded, Refusal> {
    let size = bytes.len() as u64;
    let head = bytes.get(..bytes.len().min(HEAD)).unwrap_or_default();
    sniff(head, size)?;
    scan::scan(Cursor::new(&bytes[..]), size, budget)
        .map_err(|refusal| saved_model(head, refusal))?;
    let file_digest = Digest::of(&bytes);
    let mut model = ModelProto::decode(bytes).map_err(|error| {
        Refusal::corrupt(format!("the file is no ONNX model, or damaged: {error}"))
    })?;
    let mut files = Files { directory, opened: None, inlined: size };
    walk::tensors_mut(&mut model, &mut |tensor| files.inline(tensor, budget))?;
    walk::sparse_mut(&mut model, &mut |sparse| check_sparse(sparse, budget))?;
    // Training graphs play no part in inference; verified above, they leave.
    model.training_info.clear();
    operators::check(&model)?;
    functions::check(&model, budget)?;
    order::order(&mut model)?;
    let (digest, size) = files.identity(file_digest, size)?;
    Ok(Loaded { model, digest, size })
}

/// A TensorFlow SavedModel is protobuf too: it begins with schema version 1 and a long message.
fn saved_model(head: &[u8], refusal: Refusal) -> Refusal {
    if !head.starts_with(&[0x08, 0x01, 0x12]) {
        return refusal;
    }
    let message =
        format!("the file looks like a TensorFlow SavedModel, not ONNX; convert it ({refusal})");
    Refusal::new(reason::UNSUPPORTED_FORMAT, message)
}

struct Files<'a> {
    directory: Option<&'a Path>,
    opened: Option<Directory>,
    inlined: u64,
}

impl Files<'_> {
    /// Checks a tensor and takes its external data inside.
    fn inline(&mut self, tensor: &mut super::TensorProto, budget: &Budget) -> Result<(), Refusal> {
        let place = Facts::of(tensor).check(budget)?;
        if let Some(place) = place {
            self.inlined = self.inlined.saturating_add(place.length);
            if self.inlined > budget.bytes {
                let message = format!(
                    "the model with its external data has more than the {} bytes allowed",
                    budget.bytes
                );
                return Err(Refusal::budget(message));
            }
            tensor.raw_data = self.directory()?.read(&tensor.name, &place)?;
        }
        tensor.data_location = 0;
        tensor.external_data.clear();
        tensor.segment = None;
        Ok(())
    }

    fn directory(&mut self) -> Result<&mut Directory, Refusal> {
        let Some(path) = self.directory else {
            let message = "the model keeps data in other files, which are not allowed here";
            return Err(Refusal::new(reason::EXTERNAL_DATA_PATH, message));
        };
        match &mut self.opened {
            Some(opened) => Ok(opened),
            none => Ok(none.insert(Directory::open(path)?)),
        }
    }

    /// The source's digest and size.
    fn identity(&mut self, file: Digest, size: u64) -> Result<(Digest, u64), Refusal> {
        let Some(opened) = &mut self.opened else { return Ok((file, size)) };
        let files = opened.digests()?;
        let total = files.values().fold(size, |sum, (bytes, _)| sum.saturating_add(*bytes));
        let external: std::collections::BTreeMap<_, _> =
            files.into_iter().map(|(location, (_, digest))| (location, digest)).collect();
        let digest = Digest::of_json(&serde_json::json!({"model": file, "external": external}));
        Ok((digest, total))
    }
}

/// Checks a sparse tensor as the dense one that the runtime makes of it.
fn check_sparse(sparse: &mut SparseTensorProto, budget: &Budget) -> Result<(), Refusal> {
    let (Some(values), Some(indices)) = (&sparse.values, &sparse.indices) else {
        return Err(Refusal::corrupt("a sparse tensor has no values or no indices"));
    };
    let name = &values.name;
    let wrong = |what: &str| {
        Refusal::new(reason::TENSOR_SIZE, format!("sparse tensor {}: {what}", quoted(name)))
    };
    let dense = facts::elements(name, &sparse.dims)?;
    let bits = facts::bits(values.data_type).unwrap_or(64);
    if dense.checked_mul(bits).is_none_or(|all| all.div_ceil(8) > budget.bytes) {
        let message = format!(
            "sparse tensor {} is larger than the {} bytes allowed",
            quoted(name),
            budget.bytes
        );
        return Err(Refusal::budget(message));
    }
    let count = facts::elements(name, &values.dims)?;
    let rank = sparse.dims.len() as i64;
    let linear = indices.dims.len() == 1;
    let fits = indices.dims.first().copied() == i64::try_from(count).ok()
        && (linear || (indices.dims.len() == 2 && indices.dims.get(1) == Some(&rank)));
    if values.dims.len() != 1 || !fits || indices.data_type != super::DataType::Int64 as i32 {
        return Err(wrong("values and indices do not fit each other"));
    }
    let positions =
        super::weights::to_i64(indices).ok_or_else(|| wrong("indices cannot be read"))?;
    let inside = if linear {
        positions.iter().all(|at| u64::try_from(*at).is_ok_and(|at| at < dense))
    } else {
        let mut dims = sparse.dims.iter().cycle();
        positions.iter().all(|at| dims.next().is_some_and(|dim| (0..*dim).contains(at)))
    };
    if inside { Ok(()) } else { Err(wrong("an index lies outside of its shape")) }
}
