//! Images: built by buildah from one recipe per image, kept as archives, loaded into the cluster.
//!
//! A tag is the hash of what the image is made of, so a rebuilt program rolls its pods.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::cluster::{Cluster, RUN};
use crate::command::{capture, cargo, run_logged};
use crate::{cache, progress};

/// The sandbox image of every pod.
pub const PAUSE: &str = "localhost/lithe-pause:1";
/// The ONNX Runtime that the worker is built for.
pub const ONNXRUNTIME: &str = "1.31.1";
/// The Debian release of the base image.
const RELEASE: &str = "bookworm";
/// What a glibc program needs; the C++ library is for ONNX Runtime.
const BASE_PACKAGES: &str = "base-files,libc6,libgcc-s1,libstdc++6";

/// The images that an installation needs, by reference.
#[derive(Clone, Debug)]
pub struct Images {
    /// The operator.
    pub operator: String,
    /// The worker.
    pub worker: String,
    /// The gateway.
    pub gateway: String,
    /// The embedded artifact registry.
    pub registry: String,
}

/// Builds the four images and loads them into the node of the embedded `cluster`.
pub fn load(cluster: &Cluster) -> Result<Images> {
    make(cluster, |archive| import(cluster, archive))
}

/// Builds the four images and pushes them to `registry` (`host[:port]/prefix`).
pub fn publish(cluster: &Cluster, registry: &str) -> Result<Images> {
    let registry = registry.trim_end_matches('/');
    make(cluster, |archive| {
        let name = archive.reference.trim_start_matches("localhost/");
        let target = format!("{registry}/{name}");
        let step = progress::step(&format!("push {target}"));
        let from = format!("docker-archive:{}", archive.path.display());
        run_logged(buildah()?.args(["pull", "--quiet", &from]), "buildah-pull")?;
        let pushed = run_logged(
            buildah()?.args(["push", "--quiet", &archive.reference, &format!("docker://{target}")]),
            "buildah-push",
        );
        let _ = capture(buildah()?.args(["rmi", &archive.reference]));
        pushed?;
        step.done();
        Ok(target)
    })
}

fn make(cluster: &Cluster, deliver: impl Fn(&Archive) -> Result<String>) -> Result<Images> {
    let binaries = binaries()?;
    let root = root();
    let base = base()?;
    let image = |name: &str, recipe: &str, files: &[(&Path, &str)]| -> Result<String> {
        let archive = build(&base, name, &root.join(recipe), files)?;
        deliver(&archive)
    };
    Ok(Images {
        operator: image(
            "operator",
            "operator/Containerfile",
            &[(&binaries.join("lithe-operator"), "lithe-operator")],
        )?,
        worker: deliver(&worker(&base, &binaries)?)?,
        gateway: image(
            "gateway",
            "gateway/Containerfile",
            &[(&binaries.join("lithe-gateway"), "lithe-gateway")],
        )?,
        registry: image(
            "registry",
            "e2e/images/registry/Containerfile",
            &[(&cluster.components.path("registry")?, "registry")],
        )?,
    })
}

/// The archive of the worker's image, built when it is stale.
pub fn worker_archive() -> Result<PathBuf> {
    Ok(worker(&base()?, &binaries()?)?.path)
}

fn worker(base: &str, binaries: &Path) -> Result<Archive> {
    let (program, runtime) = (binaries.join("lithe-worker"), runtime_library()?);
    let files: [(&Path, &str); 2] = [(&program, "lithe-worker"), (&runtime, "libonnxruntime.so")];
    build(base, "worker", &root().join("worker/Containerfile"), &files)
}

/// The root of the sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of the release binaries, built when they are stale.
pub fn binaries() -> Result<PathBuf> {
    release(&["lithe-operator", "lithe-worker", "lithe-gateway"], &[])
}

/// The folder of release builds, with those of `packages` and `examples` in it.
pub fn release(packages: &[&str], examples: &[&str]) -> Result<PathBuf> {
    let step = progress::step(&format!("build {}", packages.join(", ")));
    let mut build = cargo();
    build.current_dir(root()).args(["build", "--release", "--locked"]);
    for package in packages {
        build.args(["--package", package]);
    }
    if !examples.is_empty() {
        build.arg("--bins");
    }
    for example in examples {
        build.args(["--example", example]);
    }
    run_logged(&mut build, "cargo-build")?;
    let metadata = capture(cargo().current_dir(root()).args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--locked",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata.pointer("/target_directory").and_then(serde_json::Value::as_str);
    step.done();
    Ok(Path::new(target.context("cargo metadata names no target directory")?).join("release"))
}

/// `libonnxruntime.so` from the Python wheel, fetched once.
pub fn runtime_library() -> Result<PathBuf> {
    // As in the wheel, so that the tests find its sample models beside the library.
    let place = cache::directory()?.join(format!("onnxruntime-{ONNXRUNTIME}-wheel"));
    let library = place.join("capi/libonnxruntime.so");
    if library.exists() {
        return Ok(library);
    }
    let step = progress::step(&format!("fetch ONNX Runtime {ONNXRUNTIME}"));
    let folder = tempfile::tempdir_in(cache::directory()?)?;
    let wanted = format!("onnxruntime=={ONNXRUNTIME}");
    run_logged(
        Command::new("python3")
            .args(["-m", "pip", "download", "--no-deps", "--quiet", "--dest"])
            .arg(folder.path())
            .arg(wanted),
        "pip-onnxruntime",
    )?;
    const UNPACK: &str = "\
import glob, os, sys, zipfile
folder, version = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(folder + '/*.whl')[0])
wanted = {'onnxruntime/capi/libonnxruntime.so.' + version: 'capi/libonnxruntime.so'}
for name in wheel.namelist():
    if name.startswith('onnxruntime/datasets/') and name.endswith('.onnx'):
        wanted[name] = name.removeprefix('onnxruntime/')
for name, target in wanted.items():
    target = os.path.join(folder, 'wheel', target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    open(target, 'wb').write(wheel.read(name))
";
    run_logged(
        Command::new("python3").args(["-c", UNPACK]).arg(folder.path()).arg(ONNXRUNTIME),
        "unpack-onnxruntime",
    )?;
    // An empty folder may be replaced; one that another run filled meanwhile is as good.
    if let Err(error) = std::fs::rename(folder.path().join("wheel"), &place)
        && !library.exists()
    {
        return Err(error).context("keep ONNX Runtime in the cache");
    }
    step.done();
    Ok(library)
}

fn buildah() -> Result<Command> {
    let mut command = Command::new("buildah");
    command
        .env("BUILDAH_ISOLATION", "chroot")
        .env("STORAGE_DRIVER", "vfs")
        .arg("--root")
        .arg(cache::directory()?.join("buildah"))
        .args(["--runroot", &format!("{RUN}/buildah")]);
    std::fs::create_dir_all(RUN)?;
    Ok(command)
}

fn archives() -> Result<PathBuf> {
    let folder = cache::directory()?.join("images");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The glibc root without a shell, as an image in buildah's store.
fn base() -> Result<String> {
    let reference = format!(
        "localhost/lithe-base:{}",
        hash(&[RELEASE.as_bytes(), BASE_PACKAGES.as_bytes(), b"1"])
    );
    if capture(buildah()?.args(["images", "-q", &reference])).is_ok() {
        return Ok(reference);
    }
    let step = progress::step("make the base image (once)");
    let folder = tempfile::tempdir_in(cache::directory()?)?;
    let tar = folder.path().join("root.tar");
    run_logged(
        Command::new("mmdebstrap")
            .args(["--variant=extract", "--quiet"])
            .arg(format!("--include={BASE_PACKAGES}"))
            .arg("--customize-hook=rm -rf \"$1\"/usr/share/doc \"$1\"/usr/share/locale \"$1\"/usr/share/man \"$1\"/usr/share/info \"$1\"/usr/share/common-licenses \"$1\"/usr/share/lintian \"$1\"/usr/lib/x86_64-linux-gnu/gconv \"$1\"/var/lib/apt \"$1\"/var/cache")
            .arg(RELEASE)
            .arg(&tar),
        "mmdebstrap",
    )?;
    let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
    let mut recipe = String::from("FROM scratch\nADD root.tar /\n");
    if bundle.exists() {
        std::fs::copy(bundle, folder.path().join("ca-certificates.crt"))?;
        recipe.push_str("COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n");
    }
    std::fs::write(folder.path().join("Containerfile"), recipe)?;
    run_logged(
        buildah()?.args(["build", "--quiet", "--tag", &reference]).arg(folder.path()),
        "buildah-base",
    )?;
    step.done();
    Ok(reference)
}

/// An image archive and the reference in it.
struct Archive {
    path: PathBuf,
    reference: String,
}

fn build(base: &str, name: &str, recipe: &Path, files: &[(&Path, &str)]) -> Result<Archive> {
    let text = std::fs::read(recipe).with_context(|| format!("read {}", recipe.display()))?;
    let mut parts: Vec<Vec<u8>> = vec![text, base.as_bytes().to_vec()];
    for (file, _) in files {
        // Optimised as we are not: a debug build of ours would take seconds for each program.
        let sum = capture(Command::new("sha256sum").arg("--zero").arg(file))?;
        parts.push(sum.split(' ').next().unwrap_or_default().into());
    }
    let key = hash(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let reference = format!("localhost/lithe-{name}:{key}");
    let path = archives()?.join(format!("{name}-{key}.tar"));
    if path.exists() {
        return Ok(Archive { path, reference });
    }
    let step = progress::step(&format!("build the image {name}"));
    let context = tempfile::tempdir_in(cache::directory()?)?;
    for (file, target) in files {
        std::fs::copy(file, context.path().join(target))?;
    }
    run_logged(
        buildah()?
            .args(["build", "--quiet", "--tag", &reference, "--build-arg"])
            .arg(format!("BASE={base}"))
            .arg("--file")
            .arg(recipe)
            .arg(context.path()),
        &format!("buildah-{name}"),
    )?;
    push(&reference, &path, name)?;
    step.done();
    Ok(Archive { path, reference })
}

/// Moves the image `reference` from buildah's store into the archive `path`, whole or not at all.
fn push(reference: &str, path: &Path, name: &str) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    let _ = std::fs::remove_file(&unfinished);
    run_logged(
        buildah()?
            .args(["push", "--quiet", reference])
            .arg(format!("docker-archive:{}:{reference}", unfinished.display())),
        &format!("buildah-push-{name}"),
    )?;
    std::fs::rename(unfinished, path)?;
    // The archive is what we keep; a second copy in buildah's store would only fill the disk.
    let _ = capture(buildah()?.args(["rmi", reference]));
    Ok(())
}

fn import(cluster: &Cluster, archive: &Archive) -> Result<String> {
    let ctr = || -> Result<Command> {
        let mut command = Command::new(cluster.components.path("ctr")?);
        command.args(["-a", &format!("{RUN}/containerd.sock"), "-n", "k8s.io", "images"]);
        Ok(command)
    };
    let known = capture(ctr()?.args(["ls", "-q"]))?;
    if !known.lines().any(|line| line == archive.reference) {
        run_logged(ctr()?.arg("import").arg(&archive.path), "ctr-import")?;
    }
    Ok(archive.reference.clone())
}

/// Loads the sandbox image, once containerd answers.
pub fn load_pause(cluster: &Cluster) -> Result<()> {
    let program = cluster.components.path("pause")?;
    let path = archives()?.join(format!("pause-{}.tar", hash(&[&std::fs::read(&program)?])));
    if !path.exists() {
        let context = tempfile::tempdir_in(cache::directory()?)?;
        std::fs::copy(&program, context.path().join("pause"))?;
        let recipe = "FROM scratch\nCOPY pause /pause\nUSER 65532:65532\nENTRYPOINT [\"/pause\"]\n";
        std::fs::write(context.path().join("Containerfile"), recipe)?;
        run_logged(
            buildah()?.args(["build", "--quiet", "--tag", PAUSE]).arg(context.path()),
            "buildah-pause",
        )?;
        push(PAUSE, &path, "pause")?;
    }
    let daemons = crate::cluster::daemons()?;
    let socket = PathBuf::from(format!("{RUN}/containerd.sock"));
    daemons.wait(&["containerd"], "containerd", std::time::Duration::from_secs(30), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    })?;
    import(cluster, &Archive { path, reference: PAUSE.into() })?;
    Ok(())
}
