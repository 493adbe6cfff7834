//! Credentials: a mounted Secret, one file per key. Read when needed, never shown.

use std::path::{Path, PathBuf};

use super::error::StoreError;

/// A folder with one file per key, or no credentials at all.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    folder: Option<PathBuf>,
}

impl Credentials {
    /// The credentials in `folder`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The value of `key` without the line end that editors add; `None` when there is no such key.
    ///
    /// # Errors
    /// When the folder is named but missing, or the file cannot be read as text.
    pub fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let Some(path) = self.path(key) else { return Ok(None) };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.folder_exists(key, &path)?;
                Ok(None)
            }
            Err(error) => Err(missing(key, &path, &error.to_string())),
        }
    }

    /// The value of `key`, which `why` needs.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when it is missing.
    pub fn need(&self, key: &str, why: &str) -> Result<String, StoreError> {
        let value = self.get(key)?;
        value.ok_or_else(|| missing(key, &self.path(key).unwrap_or_default(), why))
    }

    /// The certificate authority to trust besides the system's, in PEM.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn authority(&self) -> Result<Option<String>, StoreError> {
        self.get("ca.crt")
    }

    /// User name and password, when there are any.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when one is there without the other.
    pub fn login(&self) -> Result<Option<(String, String)>, StoreError> {
        match (self.get("username")?, self.get("password")?) {
            (Some(user), Some(password)) => Ok(Some((user, password))),
            (None, None) => Ok(None),
            (Some(_), None) => self.need("password", "it goes with username").map(|_| None),
            (None, Some(_)) => self.need("username", "it goes with password").map(|_| None),
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(key))
    }

    fn folder_exists(&self, key: &str, path: &Path) -> Result<(), StoreError> {
        let there = self.folder.as_ref().is_some_and(|folder| folder.is_dir());
        if there { Ok(()) } else { Err(missing(key, path, "the folder does not exist")) }
    }
}

fn missing(key: &str, path: &Path, why: &str) -> StoreError {
    StoreError::Secret { key: key.to_owned(), path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_is_named_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("username"), "me\n").unwrap();
        let credentials = Credentials::new(Some(folder.path().to_owned()));
        assert_eq!(credentials.get("username").unwrap().as_deref(), Some("me"));
        assert_eq!(credentials.get("token").unwrap(), None);
        let error = credentials.login().unwrap_err();
        assert_eq!(error.reason(), lithe::names::reason::SECRET_MISSING);
        assert!(error.to_string().contains("password"), "{error}");
        let gone = Credentials::new(Some(folder.path().join("gone")));
        assert!(gone.get("token").is_err());
        assert_eq!(Credentials::default().get("token").unwrap(), None);
    }
}
