//! `cargo e2e fuzz`: builds the fuzzers with coverage counters and runs them one after the other.
//! Corpora and findings go to the cache, never into the source tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{self, run_visible};
use crate::{cache, progress};

/// Which fuzzers run, and for how long each.
#[derive(clap::Args)]
pub struct Fuzz {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The targets; all by default.
    targets: Vec<Target>,
}

/// What is fuzzed.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// The ONNX loader and the passes behind it.
    Model,
    /// The NumPy reader.
    Npz,
    /// The recipe parser.
    Recipe,
}

const ALL: [Target; 3] = [Target::Model, Target::Npz, Target::Recipe];

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Npz => "npz",
            Self::Recipe => "recipe",
        }
    }
}

/// Builds and runs; fails at the first input that makes a target panic, hang or take 2 GiB.
pub fn fuzz(what: &Fuzz) -> Result<()> {
    let targets: &[Target] = if what.targets.is_empty() { &ALL } else { &what.targets };
    let binaries = build()?;
    for target in targets {
        let name = target.name();
        progress::headline(&format!("fuzzing {name} for {} s", what.seconds));
        let found = cache::directory()?.join("fuzz").join(name);
        let corpus = found.join("corpus");
        std::fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
        run_visible(
            Command::new(binaries.join(format!("fuzz-{name}")))
                .arg(&corpus)
                .arg(sources().join("seeds").join(name))
                .arg(format!("-max_total_time={}", what.seconds))
                .arg(format!("-artifact_prefix={}/", found.display()))
                .args(["-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-timeout=20"])
                .args(["-max_len=65536", "-print_final_stats=1"]),
        )?;
    }
    Ok(())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The folder of the fuzzers. Dependencies are those of the product: the same lock, the same folder.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    std::fs::copy(root.join("Cargo.lock"), sources().join("Cargo.lock"))
        .context("copy Cargo.lock beside the fuzzers")?;
    run_visible(
        command::cargo()
            .current_dir(sources())
            .env("CARGO_TARGET_DIR", &target)
            .env("RUSTC_WRAPPER", sources().join("instrument.sh"))
            .args(["build", "--quiet", "--bins"]),
    )?;
    Ok(target.join("debug"))
}
