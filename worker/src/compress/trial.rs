//! Loads and runs a model in a child process with limits on memory, processor and time, before this
//! process does: what crashes or hangs the runtime must not take the Job with it. The child also tells
//! how much memory that took, which in this process nobody could tell apart.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lithe::artifact::TensorSignature;
use lithe::names::reason;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::compress::data::safetensors;
use crate::onnx::Refusal;
use crate::runtime::{Options, Session};
use crate::tensor::{Datatype, Tensor, elements};

/// The child's exit code when the runtime refuses the model.
const EXIT_REFUSED: i32 = 3;
/// The child's exit code when it could not even begin.
const EXIT_BROKEN: i32 = 4;
/// Inferences of the child: the first plans memory, the second runs as planned.
const RUNS: usize = 2;
/// The most bytes of the child's words that are read.
const MOST_WORDS: u64 = 2048;

/// What the child may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space. The runtime's library and its threads' stacks take about 1 GiB.
    pub memory: u64,
    /// Seconds of processor time, all threads together.
    pub processor: u64,
    /// Time on the clock.
    pub clock: Duration,
}

impl Limits {
    /// Limits for a model of `size` bytes: weights are held in the file's form, in the runtime's and
    /// once more while kernels pack them.
    pub fn for_size(size: u64) -> Self {
        let seconds = 30 + size / (10 << 20);
        Self {
            memory: (3 << 30) + size.saturating_mul(8),
            processor: seconds,
            clock: Duration::from_secs(2 * seconds),
        }
    }
}

/// Tries `model` in a child made from `program`, which is `lithe-worker` itself, on `sample`, or on
/// zeros where an input has none there. Returns the most bytes of memory that the child had resident,
/// its program and the runtime included: what a server needs at least.
///
/// # Errors
/// [`Fault::Refused`] for what is the model's fault, [`Fault::Broken`] for what is the machine's.
pub fn trial(
    program: &Path,
    model: &[u8],
    sample: &[(&str, Tensor)],
    limits: Limits,
) -> Result<u64, Fault> {
    let mut arrays = tempfile::NamedTempFile::new()?;
    arrays.write_all(&safetensors::write(sample.iter().map(|(name, tensor)| (*name, tensor))))?;
    arrays.flush()?;
    let mut file = tempfile::tempfile()?;
    file.write_all(model)?;
    file.seek(SeekFrom::Start(0))?;
    let words = tempfile::tempfile()?;
    let mut child = Command::new(program)
        .arg("trial")
        .args([
            "--memory",
            &limits.memory.to_string(),
            "--processor",
            &limits.processor.to_string(),
            "--sample",
        ])
        .arg(arrays.path())
        .env("ORT_DISABLE_TELEMETRY", "1")
        .stdin(Stdio::from(file))
        .stdout(Stdio::from(words.try_clone()?))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let status = wait(&mut child, limits.clock)?;
    let words = said(words)?;
    verdict(status, &words, limits)?;
    words.parse().map_err(|_| {
        Fault::Broken(std::io::Error::other(format!("it said {words:?} in place of its memory")))
    })
}

/// Why a trial did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The model is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The trial itself could not be held.
    #[error("try the model in a child process: {0}")]
    Broken(#[from] std::io::Error),
}

/// Waits for the child; after `clock` its whole process group is killed, and `None` comes back.
fn wait(child: &mut Child, clock: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > clock {
            if let Ok(group) = i32::try_from(child.id()) {
                // It may have ended just now; then there is nothing to kill.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn said(mut words: File) -> std::io::Result<String> {
    words.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    words.take(MOST_WORDS).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

fn verdict(status: Option<ExitStatus>, words: &str, limits: Limits) -> Result<u64, Fault> {
    let Some(status) = status else {
        let message = format!(
            "loading and running the model once took more than {} s",
            limits.clock.as_secs()
        );
        return Err(Refusal::budget(message).into());
    };
    let refused = |reason, message: String| Err(Fault::Refused(Refusal::new(reason, message)));
    match (status.code(), status.signal()) {
        (Some(0), _) => words.parse().map_err(|_| {
            Fault::Broken(std::io::Error::other(format!("it told no memory, but {words}")))
        }),
        (Some(EXIT_REFUSED), _) if out_of_memory(words) => refused(
            reason::RESOURCE_BUDGET,
            format!("loading the model takes more than {} bytes of memory: {words}", limits.memory),
        ),
        (Some(EXIT_REFUSED), _) => {
            refused(reason::RUNTIME_REFUSED, format!("ONNX Runtime refuses the model: {words}"))
        }
        (Some(code), _) => {
            Err(Fault::Broken(std::io::Error::other(format!("it ended with code {code}: {words}"))))
        }
        (None, Some(signal)) if signal == Signal::SIGXCPU as i32 => refused(
            reason::RESOURCE_BUDGET,
            format!(
                "loading and running the model once took more than {} s of processor time",
                limits.processor
            ),
        ),
        (None, signal) => {
            let name = signal
                .and_then(|signal| Signal::try_from(signal).ok())
                .map_or("a signal", Signal::as_str);
            refused(reason::RUNTIME_CRASH, format!("ONNX Runtime crashed on the model ({name})"))
        }
    }
}

fn out_of_memory(words: &str) -> bool {
    let words = words.to_lowercase();
    [
        "bad_alloc",
        "failed to allocate",
        "out of memory",
        "cannot allocate",
        "allocation failed",
        "memory allocation",
    ]
    .iter()
    .any(|sign| words.contains(sign))
}

/// The child's arguments. The model comes on standard input.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Bytes of address space.
    #[arg(long)]
    memory: u64,
    /// Seconds of processor time.
    #[arg(long)]
    processor: u64,
    /// Arrays for the model's inputs, as safetensors.
    #[arg(long)]
    sample: PathBuf,
}

/// The child: limits itself, loads the model, runs it on the sample or on zeros, says how much memory
/// that took. Returns the exit code.
pub fn child(args: &Args) -> i32 {
    match attempt(args) {
        Ok(peak) => {
            println!("{peak}");
            0
        }
        Err(Attempt::Refused(words)) => {
            println!("{words}");
            EXIT_REFUSED
        }
        Err(Attempt::Broken(words)) => {
            println!("{words}");
            EXIT_BROKEN
        }
    }
}

enum Attempt {
    Refused(String),
    Broken(String),
}

fn attempt(args: &Args) -> Result<u64, Attempt> {
    let broken = |error: nix::Error| Attempt::Broken(format!("limit the process: {error}"));
    // The parent may die first: then nobody waits for us.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(broken)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(broken)?;
    setrlimit(Resource::RLIMIT_AS, args.memory, args.memory).map_err(broken)?;
    setrlimit(Resource::RLIMIT_CPU, args.processor, args.processor + 5).map_err(broken)?;
    let mut model = Vec::new();
    std::io::stdin().read_to_end(&mut model).map_err(|error| Attempt::Broken(error.to_string()))?;
    crate::runtime::preload().map_err(|error| Attempt::Broken(error.to_string()))?;
    let session = Session::load(&model, Options::default())
        .map_err(|error| Attempt::Refused(error.to_string()))?;
    drop(model);
    let file = File::open(&args.sample).map_err(|error| Attempt::Broken(error.to_string()))?;
    let sample = safetensors::open(file).map_err(|error| Attempt::Broken(error.to_string()))?;
    let input = |input: &TensorSignature| {
        let column = sample.iter().find(|(name, _)| *name == input.name);
        let count = column.and_then(|(_, column)| column.shape().first().copied()).unwrap_or(1);
        let real = column.and_then(|(_, column)| column.rows(0, count).ok());
        real.map(|tensor| (input.name.clone(), tensor)).or_else(|| zeros(input))
    };
    let tensors: Vec<(String, Tensor)> = session.inputs().iter().filter_map(input).collect();
    let inputs: Vec<(&str, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    for _ in 0..RUNS {
        // Zeros need not make sense to the model, so its complaint proves nothing; a crash or a hang does.
        match session.run(&inputs, &[]) {
            Err(error) if out_of_memory(&error.to_string()) => {
                return Err(Attempt::Refused(error.to_string()));
            }
            _ => {}
        }
    }
    peak().map_err(|error| Attempt::Broken(format!("read the memory of this process: {error}")))
}

/// The most bytes that this process had resident. `getrusage` would count the parent's at the fork.
fn peak() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| std::io::Error::other("/proc/self/status has no VmHWM"))
}

/// A tensor of zeros that fits `input`; free dimensions are 1.
fn zeros(input: &TensorSignature) -> Option<(String, Tensor)> {
    let shape: Vec<usize> =
        input.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
    let datatype = Datatype::from_name(&input.datatype)?;
    // A larger request would never come.
    let count = elements(&shape).filter(|count| *count <= 1 << 26)?;
    let tensor = match datatype.size() {
        Some(size) => {
            Tensor::new(datatype, shape, vec![0; count.checked_mul(size)?].into()).ok()?
        }
        None => Tensor::from_strings(shape, &vec![""; count]).ok()?,
    };
    Some((input.name.clone(), tensor))
}

/// The program that holds trials: this one.
pub fn this_program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}
