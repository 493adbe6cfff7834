//! The flags of `lithe-worker compress`.

use std::path::{Path, PathBuf};

use clap::Args;
use lithe::Digest;
use lithe::names::ENV_RECIPE;
use lithe::recipe::Recipe;

use super::JobError;
use crate::compress::cli;
use crate::process::absolute;

/// What is compressed, how, and where the result goes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The model: a file, or s3://, gs://, az://, https://, oci://, pvc://.
    #[arg(long, value_name = "URI", value_parser = local)]
    pub model: String,
    /// The digest that the model must have.
    #[arg(long, value_name = "DIGEST")]
    pub model_digest: Option<Digest>,
    /// A folder with the model's credentials, one file per key.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub model_credentials: Option<PathBuf>,
    /// Where the claim of a pvc:// model is mounted.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub model_mount: Option<PathBuf>,
    /// The data that calibrates and judges, in the same forms: npz, npy, safetensors or JSON lines, told
    /// by content; on this machine a folder of npy files too.
    #[arg(long, value_name = "URI", value_parser = local)]
    pub data: Option<String>,
    /// The digest that the data must have.
    #[arg(long, value_name = "DIGEST")]
    pub data_digest: Option<Digest>,
    /// A folder with the data's credentials, one file per key.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub data_credentials: Option<PathBuf>,
    /// Where the claim of pvc:// data is mounted.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub data_mount: Option<PathBuf>,
    /// The recipe, as YAML or JSON; with --store the environment variable LITHE_RECIPE may hold its
    /// text instead.
    #[arg(long, value_name = "FILE", value_parser = absolute, required_unless_present = "store")]
    pub recipe: Option<PathBuf>,
    /// The folder for model.onnx, report.html and manifest.json, without an artifact store.
    #[arg(long, value_name = "DIR", value_parser = absolute, required_unless_present_any = ["store", "dry_run"])]
    pub out: Option<PathBuf>,
    /// The store that keeps the artifact: oci://host/prefix, s3://bucket/prefix, gs://, az://, file:///.
    #[arg(long, value_name = "URI", conflicts_with = "out", requires = "repository")]
    pub store: Option<String>,
    /// Talk to an OCI store without TLS.
    #[arg(long)]
    pub store_plain_http: bool,
    /// A folder with the store's credentials, one file per key.
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub store_credentials: Option<PathBuf>,
    /// The artifact's name in the store.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub repository: String,
    /// Where the outcome is written as JSON.
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    pub termination_message: Option<PathBuf>,
    /// Threads of one inference; what affinity and the cgroup's quota allow by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Only tell what each step would match.
    #[arg(long, conflicts_with = "store")]
    pub dry_run: bool,
    /// Print the result as JSON.
    #[arg(long, conflicts_with = "store")]
    pub json: bool,
    /// Let https sources lie on private addresses.
    #[arg(long)]
    pub allow_private_sources: bool,
}

/// Where one source lies, with the part of the spec that says so.
pub(super) struct Source<'a> {
    pub field: &'static str,
    pub uri: &'a str,
    pub digest: Option<&'a Digest>,
    pub credentials: Option<&'a PathBuf>,
    pub mount: Option<&'a Path>,
}

/// A path of this machine becomes absolute; an address stays as it is.
fn local(text: &str) -> std::io::Result<String> {
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    absolute(text).map(|path| path.to_string_lossy().into_owned())
}

impl Options {
    pub(super) fn model_source(&self) -> Source<'_> {
        Source {
            field: "spec.model",
            uri: &self.model,
            digest: self.model_digest.as_ref(),
            credentials: self.model_credentials.as_ref(),
            mount: self.model_mount.as_deref(),
        }
    }

    pub(super) fn data_source(&self) -> Option<Source<'_>> {
        Some(Source {
            field: "spec.compression.data",
            uri: self.data.as_ref()?,
            digest: self.data_digest.as_ref(),
            credentials: self.data_credentials.as_ref(),
            mount: self.data_mount.as_deref(),
        })
    }

    /// The arguments of a compression on a laptop, which needs no store: files in, files out.
    pub fn laptop(&self) -> Option<cli::Args> {
        if self.store.is_some() {
            return None;
        }
        Some(cli::Args {
            model: self.model.as_str().into(),
            recipe: self.recipe.clone().unwrap_or_default(),
            data: self.data.as_deref().map(PathBuf::from),
            out: self.out.clone(),
            threads: self.threads,
            dry_run: self.dry_run,
            json: self.json,
        })
    }

    /// Threads of one inference, at least 1.
    pub(super) fn threads(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(available).max(1)
    }

    /// The recipe of the file, else of the environment; without both nothing is done to the model.
    pub(super) fn recipe(&self) -> Result<Recipe, JobError> {
        let text = match &self.recipe {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|source| JobError::local(path, source))?
            }
            None => std::env::var(ENV_RECIPE).unwrap_or_default(),
        };
        if text.trim().is_empty() {
            return Ok(Recipe::default());
        }
        // JSON is YAML.
        serde_yaml::from_str(&text).map_err(|error| JobError::Recipe(error.to_string()))
    }
}
