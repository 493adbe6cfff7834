//! The storage of the embedded cluster: a storage class and folders offered as volumes.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cluster::{self, Cluster};
use crate::command::capture;

/// The volume for models that are put there from outside; a claim selects it by its label.
pub const MODELS: &str = "models";

/// Name and size. A claim gets the smallest that fits, so none takes [`MODELS`] by accident.
const VOLUMES: [(&str, &str); 8] = [
    ("registry", "20Gi"),
    ("spare-1", "20Gi"),
    ("spare-2", "20Gi"),
    ("spare-3", "20Gi"),
    ("spare-4", "20Gi"),
    ("spare-5", "20Gi"),
    ("spare-6", "20Gi"),
    (MODELS, "100Gi"),
];

/// The names of the volumes.
pub fn names() -> impl Iterator<Item = &'static str> {
    VOLUMES.iter().map(|(name, _)| *name)
}

/// The folder of the volume `name`.
pub fn folder(name: &str) -> Result<PathBuf> {
    Ok(cluster::folder()?.join("volumes").join(name))
}

/// Makes the folders, and the storage class and volumes in the cluster.
pub fn create(cluster: &Cluster) -> Result<()> {
    let mut text = String::from(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: lithe-local
  annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
",
    );
    for (name, size) in VOLUMES {
        let path = folder(name)?;
        std::fs::create_dir_all(&path)?;
        // Pods run as any user but root, and a hostPath ignores their fsGroup.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        write!(
            text,
            "---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: lithe-{name}, labels: {{lithe.dev/volume: {name}}}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [ReadWriteOnce, ReadOnlyMany, ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: lithe-local
  hostPath: {{path: {}, type: Directory}}
",
            path.display()
        )?;
    }
    cluster.apply(&text)
}

/// Makes volumes whose claim was deleted available again, emptied; models stay.
pub fn renew(cluster: &Cluster) -> Result<()> {
    let list = capture(cluster.kubectl()?.args(["get", "persistentvolumes", "-o", "json"]))?;
    let list: Value = serde_json::from_str(&list).context("read the list of volumes")?;
    for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
        let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
        let (Some(full), Some("Released")) = (text("/metadata/name"), text("/status/phase")) else {
            continue;
        };
        let Some(name) = full.strip_prefix("lithe-") else { continue };
        if name != MODELS && VOLUMES.iter().any(|(known, _)| *known == name) {
            empty(&folder(name)?)?;
        }
        let patch = r#"[{"op":"remove","path":"/spec/claimRef"}]"#;
        capture(cluster.kubectl()?.args(["patch", "pv", full, "--type=json", "-p", patch]))?;
    }
    Ok(())
}

fn empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Copies the file or folder `from` to `to` in the volume `name`, readable by every pod.
pub fn place(name: &str, from: &Path, to: &str) -> Result<()> {
    let volume = folder(name)?;
    if !volume.exists() {
        bail!("there is no volume {name}: start the cluster with `cargo e2e up`");
    }
    let target = volume.join(to);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    copy(from, &target).with_context(|| format!("copy {} into the volume {name}", from.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        std::fs::create_dir_all(to)?;
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755))?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::copy(from, to)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o644))?;
    Ok(())
}
