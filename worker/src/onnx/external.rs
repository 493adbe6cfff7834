//! Reads tensors' data from files beside the model, and from nowhere else.
//!
//! Containment is the kernel's: `openat2` beneath the model's directory without symbolic links. A
//! comparison of path strings was incomplete three times in ONNX's own history.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::Bytes;
use lithe::Digest;
use lithe::names::reason;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use sha2::{Digest as _, Sha256};

use super::facts::External;
use super::refusal::{Refusal, quoted};

/// The directory of a model, with the external files that were opened in it.
pub struct Directory {
    root: OwnedFd,
    files: BTreeMap<String, Opened>,
}

struct Opened {
    file: File,
    length: u64,
    /// Ranges that tensors claimed: offset to length.
    claimed: BTreeMap<u64, u64>,
}

impl Directory {
    /// Opens the directory `path`.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| {
            Refusal::new(
                reason::EXTERNAL_DATA_PATH,
                format!("the model's directory cannot be opened: {errno}"),
            )
        })?;
        Ok(Self { root, files: BTreeMap::new() })
    }

    /// The data at `place` for the tensor `name`.
    ///
    /// # Errors
    /// [`reason::EXTERNAL_DATA_PATH`], [`reason::EXTERNAL_DATA_NOT_REGULAR`],
    /// [`reason::EXTERNAL_DATA_RANGE`], [`reason::SOURCE_NOT_FOUND`].
    pub fn read(&mut self, name: &str, place: &External) -> Result<Bytes, Refusal> {
        check_location(name, &place.location)?;
        if !self.files.contains_key(&place.location) {
            let opened = open_beneath(&self.root, name, &place.location)?;
            self.files.insert(place.location.clone(), opened);
        }
        let Some(opened) = self.files.get_mut(&place.location) else { return Ok(Bytes::new()) };
        opened.claim(name, place)?;
        let length = usize::try_from(place.length)
            .map_err(|_| Refusal::budget("external data exceed the address space"))?;
        let mut data = vec![0; length];
        opened.file.read_exact_at(&mut data, place.offset).map_err(|error| {
            let message = format!(
                "external file {} of tensor {} cannot be read: {error}",
                quoted(&place.location),
                quoted(name)
            );
            Refusal::new(reason::EXTERNAL_DATA_RANGE, message)
        })?;
        Ok(data.into())
    }

    /// Size and digest of each whole file that was read, by location.
    pub fn digests(&mut self) -> Result<HashMap<String, (u64, Digest)>, Refusal> {
        let mut digests = HashMap::new();
        for (location, opened) in &mut self.files {
            let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
            loop {
                let seen = opened.file.read(&mut buffer).map_err(|error| {
                    Refusal::corrupt(format!(
                        "external file {} cannot be read: {error}",
                        quoted(location)
                    ))
                })?;
                if seen == 0 {
                    break;
                }
                hasher.update(buffer.get(..seen).unwrap_or_default());
            }
            digests.insert(location.clone(), (opened.length, Digest::finish(hasher)));
        }
        Ok(digests)
    }
}

impl Opened {
    /// Takes a range: inside the file, and not across another tensor's. Two tensors may share the
    /// very same range.
    fn claim(&mut self, name: &str, place: &External) -> Result<(), Refusal> {
        let wrong = |what: String| {
            let message = format!(
                "external data of tensor {} are bytes {} to {} of {}, {what}",
                quoted(name),
                place.offset,
                place.offset.saturating_add(place.length),
                quoted(&place.location),
            );
            Refusal::new(reason::EXTERNAL_DATA_RANGE, message)
        };
        let end = place.offset.checked_add(place.length).filter(|end| *end <= self.length);
        let Some(end) = end else { return Err(wrong(format!("which has {} bytes", self.length))) };
        if place.length == 0 || self.claimed.get(&place.offset) == Some(&place.length) {
            return Ok(());
        }
        let before = self.claimed.range(..=place.offset).next_back();
        let overlaps_before = before.is_some_and(|(offset, length)| offset + length > place.offset);
        let overlaps_after =
            self.claimed.range(place.offset..).next().is_some_and(|(o, _)| *o < end);
        if overlaps_before || overlaps_after {
            return Err(wrong("which overlap another tensor's".into()));
        }
        self.claimed.insert(place.offset, place.length);
        Ok(())
    }
}

/// Refuses what can be told from the text alone, so that the message is a better one than the kernel's.
fn check_location(name: &str, location: &str) -> Result<(), Refusal> {
    let what = if location.is_empty() {
        "which is empty"
    } else if location.contains('\0') {
        "which holds a NUL character"
    } else if location.starts_with('/') {
        "which is absolute"
    } else if location.contains('\\') || location.as_bytes().get(1) == Some(&b':') {
        "which is a Windows path"
    } else if location.split('/').any(|part| part == "..") {
        "which leads upwards"
    } else if location.contains("_ORT_MEM_ADDR_") {
        "which is a memory address"
    } else {
        return Ok(());
    };
    Err(at(reason::EXTERNAL_DATA_PATH, name, location, what))
}

fn at(reason: &'static str, name: &str, location: &str, what: &str) -> Refusal {
    let message = format!(
        "external data of tensor {} have the location {}, {what}",
        quoted(name),
        quoted(location)
    );
    Refusal::new(reason, message)
}

fn open_beneath(root: &OwnedFd, name: &str, location: &str) -> Result<Opened, Refusal> {
    // Non-blocking, so that a FIFO without a writer does not hold us.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    let refuse = |reason, what: &str| at(reason, name, location, what);
    let file = openat2(root, location, how).map(File::from).map_err(|errno| match errno {
        Errno::ELOOP => {
            refuse(reason::EXTERNAL_DATA_NOT_REGULAR, "which is or crosses a symbolic link")
        }
        Errno::ENXIO | Errno::ENODEV => {
            refuse(reason::EXTERNAL_DATA_NOT_REGULAR, "which is no regular file")
        }
        Errno::EXDEV => {
            refuse(reason::EXTERNAL_DATA_PATH, "which leads out of the model's directory")
        }
        Errno::ENOENT => {
            refuse(reason::SOURCE_NOT_FOUND, "and there is no such file beside the model")
        }
        errno => refuse(reason::EXTERNAL_DATA_PATH, &format!("which cannot be opened: {errno}")),
    })?;
    let metadata = file.metadata().map_err(|error| {
        refuse(reason::EXTERNAL_DATA_NOT_REGULAR, &format!("which cannot be examined: {error}"))
    })?;
    if metadata.is_dir() {
        return Err(refuse(reason::EXTERNAL_DATA_PATH, "which is a directory"));
    }
    if !metadata.is_file() {
        return Err(refuse(reason::EXTERNAL_DATA_NOT_REGULAR, "which is no regular file"));
    }
    if metadata.nlink() != 1 {
        return Err(refuse(reason::EXTERNAL_DATA_NOT_REGULAR, "which has further hard links"));
    }
    Ok(Opened { file, length: metadata.len(), claimed: BTreeMap::new() })
}
