//! The vocabulary of Lithe: every type, name and file format on which two of its processes agree.
//!
//! Read in this order: [`spec`] is what a user declares, [`recipe`] what the operator hands to the
//! compression Job, [`artifact`] what the Job hands back, [`status`] what the user reads, [`latency`]
//! what autoscaling counts, [`gateway`] what the gateway is told and tells, [`names`] what everything
//! is called. Nothing here does I/O, knows a client, or asks what time it is.

pub mod artifact;
pub mod digest;
pub mod gateway;
#[cfg(feature = "grpc")]
pub mod inference;
pub mod latency;
pub mod names;
pub mod recipe;
#[cfg(feature = "crd")]
pub mod spec;
#[cfg(feature = "crd")]
pub mod status;
#[cfg(feature = "grpc")]
pub mod tensorflow;
pub mod units;

pub use digest::Digest;
