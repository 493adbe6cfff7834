//! Where models and data come from, and where artifacts are kept. Everything streams with bounded
//! memory and is hashed on its way; nothing is visible half-written.

mod address;
mod artifact;
mod credentials;
mod error;
mod fetch;
mod https;
mod location;
mod modelpack;
mod object;
mod oci;
mod retry;

pub use artifact::{ArtifactStore, Found, Opened, open};
pub use credentials::Credentials;
pub use error::StoreError;
pub use fetch::{Fetch, Fetched, MAX_SOURCE_BYTES, fetch};
pub use location::Location;
