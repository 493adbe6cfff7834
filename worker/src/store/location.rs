//! The address of a model, data or artifact, parsed once at the edge.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::StoreError;

/// Which object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Amazon S3 and everything that speaks like it.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A folder of this machine.
    File,
}

/// The tag or digest of an OCI artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// `:tag`.
    Tag(String),
    /// `@sha256:…`.
    Digest(lithe::Digest),
}

/// Where some bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `oci://host[:port]/name[:tag|@digest]`.
    Oci {
        /// Host and port.
        registry: String,
        /// The name in it.
        repository: String,
        /// The tag or digest; `latest` when none is given.
        version: Version,
    },
    /// `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `file:///folder/key`.
    Object {
        /// Which store.
        scheme: Scheme,
        /// The bucket or container; empty for files.
        bucket: String,
        /// The key without a leading slash.
        key: String,
    },
    /// `https://host/path`.
    Https(reqwest::Url),
    /// `pvc://claim/path`: a path inside a claim that the operator mounted.
    Claim {
        /// The claim's name.
        claim: String,
        /// The path inside it, with no `..`.
        path: PathBuf,
    },
    /// A file of this machine.
    File(PathBuf),
}

impl Location {
    /// The location at `uri`; a text without `://` is a path of this machine.
    ///
    /// # Errors
    /// [`StoreError::Address`] saying what is wrong.
    pub fn parse(uri: &str) -> Result<Self, StoreError> {
        let wrong = |why: &str| StoreError::Address { uri: uri.to_owned(), why: why.to_owned() };
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Self::File(std::path::absolute(uri).map_err(|_| wrong("it is empty"))?));
        };
        if rest.split('/').any(|part| part == "..") {
            return Err(wrong("it contains '..'"));
        }
        match scheme {
            "oci" => oci(rest).map_err(&wrong),
            "s3" => object(Scheme::S3, rest).map_err(&wrong),
            "gs" => object(Scheme::Gs, rest).map_err(&wrong),
            "az" => object(Scheme::Az, rest).map_err(&wrong),
            "https" => https(uri).map_err(&wrong),
            "pvc" => {
                let (claim, path) = rest.split_once('/').ok_or_else(|| wrong("it has no path"))?;
                if claim.is_empty() || path.is_empty() || path.starts_with('/') {
                    return Err(wrong("want pvc://claim/path"));
                }
                Ok(Self::Claim { claim: claim.into(), path: path.into() })
            }
            "file" if rest.starts_with('/') => Ok(Self::File(rest.into())),
            "file" => Err(wrong("want file:///path")),
            _ => Err(wrong("the scheme is none of s3, gs, az, https, oci, pvc")),
        }
    }

    /// The same location with a claim replaced by the folder where it is mounted.
    ///
    /// # Errors
    /// [`StoreError::Address`] when it is a claim and no folder is given, or when a symbolic link
    /// leads out of the claim.
    pub fn mounted(self, folder: Option<&Path>) -> Result<Self, StoreError> {
        let Self::Claim { path, .. } = &self else { return Ok(self) };
        let wrong = |why: &str| StoreError::Address { uri: self.to_string(), why: why.to_owned() };
        let folder = folder.ok_or_else(|| wrong("the claim is not mounted"))?;
        let file = |path: &Path| {
            let name = path.to_owned();
            path.canonicalize().map_err(|error| StoreError::file(&name, error))
        };
        let (root, inside) = (file(folder)?, file(&folder.join(path))?);
        if !inside.starts_with(&root) {
            return Err(wrong("a symbolic link leads out of the claim"));
        }
        Ok(Self::File(inside))
    }
}

impl FromStr for Location {
    type Err = StoreError;

    fn from_str(uri: &str) -> Result<Self, StoreError> {
        Self::parse(uri)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oci { registry, repository, version: Version::Tag(tag) } => {
                write!(f, "oci://{registry}/{repository}:{tag}")
            }
            Self::Oci { registry, repository, version: Version::Digest(digest) } => {
                write!(f, "oci://{registry}/{repository}@{digest}")
            }
            Self::Object { scheme, bucket, key } => {
                let scheme = match scheme {
                    Scheme::S3 => "s3",
                    Scheme::Gs => "gs",
                    Scheme::Az => "az",
                    Scheme::File => "file",
                };
                write!(f, "{scheme}://{bucket}/{key}")
            }
            // A query may be a signature.
            Self::Https(url) => {
                write!(f, "https://{}{}", url.host_str().unwrap_or_default(), url.path())
            }
            Self::Claim { claim, path } => write!(f, "pvc://{claim}/{}", path.display()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

fn oci(rest: &str) -> Result<Location, &'static str> {
    let (registry, name) = rest.split_once('/').ok_or("want oci://registry/name")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    if registry.is_empty() || !registry.chars().all(plain) {
        return Err("the registry is not a host");
    }
    let (repository, version) = match name.split_once('@') {
        Some((repository, digest)) => {
            let digest = digest.parse().map_err(|_| "want @sha256: and 64 hexadecimal digits")?;
            (repository, Version::Digest(digest))
        }
        None => match name.split_once(':') {
            Some((repository, tag)) => (repository, Version::Tag(tag.to_owned())),
            None => (name, Version::Tag("latest".into())),
        },
    };
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(word)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !repository.split('/').all(part) {
        return Err("the name may hold lower-case letters, digits and . _ - between slashes");
    }
    if let Version::Tag(tag) = &version {
        let fits = tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if tag.is_empty() || tag.len() > 128 || !fits {
            return Err("the tag is not a tag");
        }
    }
    Ok(Location::Oci { registry: registry.into(), repository: repository.into(), version })
}

fn object(scheme: Scheme, rest: &str) -> Result<Location, &'static str> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if bucket.is_empty() || !bucket.chars().all(plain) {
        return Err("the bucket is missing or has odd characters");
    }
    Ok(Location::Object { scheme, bucket: bucket.into(), key: key.trim_end_matches('/').into() })
}

fn https(uri: &str) -> Result<Location, &'static str> {
    let url = reqwest::Url::parse(uri).map_err(|_| "it is not a URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it holds a user or password: put them into the credentials");
    }
    Ok(Location::Https(url))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        let digest = lithe::Digest::of("x");
        for uri in [
            "oci://registry:5000/models/magika:v1".to_owned(),
            format!("oci://registry.example/m@{digest}"),
            "s3://bucket/a/b.onnx".into(),
            "pvc://claim/a/b.onnx".into(),
            "https://host/a.onnx".into(),
        ] {
            assert_eq!(Location::parse(&uri).unwrap().to_string(), uri);
        }
        let signed = Location::parse("https://host/a?sig=secret").unwrap();
        assert_eq!(signed.to_string(), "https://host/a");
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (uri, words) in [
            ("http://host/a", "scheme"),
            ("ftp://host/a", "scheme"),
            ("https://user:pw@host/a", "user or password"),
            ("s3://b/../a", "'..'"),
            ("pvc://claim", "no path"),
            ("oci://host/UPPER", "lower-case"),
            ("oci://host/a@sha256:abc", "64 hexadecimal"),
            ("s3:///key", "bucket"),
            ("file://relative", "file:///path"),
        ] {
            let error = Location::parse(uri).unwrap_err().to_string();
            assert!(error.contains(words), "{uri}: {error}");
        }
    }

    #[test]
    fn a_link_out_of_the_claim_is_refused() {
        let claim = tempfile::tempdir().unwrap();
        std::fs::write(claim.path().join("model.onnx"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", claim.path().join("out")).unwrap();
        let at = |path: &str| Location::parse(&format!("pvc://c/{path}")).unwrap();
        let inside = at("model.onnx").mounted(Some(claim.path())).unwrap();
        assert!(matches!(inside, Location::File(_)));
        let error = at("out").mounted(Some(claim.path())).unwrap_err();
        assert!(error.to_string().contains("leads out"), "{error}");
        let error = at("none").mounted(Some(claim.path())).unwrap_err();
        assert_eq!(error.reason(), lithe::names::reason::SOURCE_NOT_FOUND);
    }
}
