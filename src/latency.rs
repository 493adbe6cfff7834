//! How latency, load and service times are counted, so that worker, gateway, operator and simulator
//! add, subtract and read them in the same way. Nothing here measures: times are arguments.
//!
//! Everything that grows is cumulative since the process started. A reader keeps the last answer
//! and subtracts, so a lost scrape loses nothing, and a new process is seen by its boot id.

mod classic;
mod histogram;
mod moments;
mod recorder;
mod signals;

pub use classic::write_classic;
pub use histogram::{Edge, Histogram, MalformedHistogram, Quantile};
pub use moments::Moments;
pub use recorder::Recorder;
pub use signals::{Counters, Increase, MalformedSignals, Refused, Signals};
