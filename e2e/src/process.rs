//! Daemons of the embedded cluster: started with a log and a recorded identity, stopped by it.
//!
//! A process is ours only if its start time is the recorded one: pids are reused.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::tail;
use crate::interrupt;

/// Where the daemons of one cluster keep their logs and identities.
#[derive(Clone, Debug)]
pub struct Daemons {
    logs: PathBuf,
    pids: PathBuf,
}

impl Daemons {
    /// The daemons under `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { logs: folder.join("logs"), pids: folder.join("pids") }
    }

    /// The log of `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts `command` as the daemon `name`, unless it runs already.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<()> {
        if self.runs(name) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.logs)?;
        std::fs::create_dir_all(&self.pids)?;
        let path = self.log(name);
        if path.exists() {
            // What an earlier run said of its end is still of use.
            std::fs::rename(&path, self.logs.join(format!("{name}.log.previous")))?;
        }
        let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let child = in_a_session_of_its_own(command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.record(name, &child)
    }

    fn record(&self, name: &str, child: &Child) -> Result<()> {
        let pid = child.id();
        let born = birth(pid).with_context(|| format!("{name} ended at once"))?;
        std::fs::write(self.pids.join(name), format!("{pid} {born}"))?;
        Ok(())
    }

    /// The pid of the daemon `name`, when it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let text = std::fs::read_to_string(self.pids.join(name)).ok()?;
        let (pid, born) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (birth(pid)? == born).then_some(pid)
    }

    /// Whether the daemon `name` runs.
    pub fn runs(&self, name: &str) -> bool {
        self.pid(name).is_some()
    }

    /// The names of all recorded daemons.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.pids).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Ends the daemons `names` together: asks, waits, insists. The wait is short because an API
    /// server waits for its watchers, and the state of all goes with them.
    pub fn stop(&self, names: &[&str]) -> Result<()> {
        for (round, limit) in [(Signal::SIGTERM, 3), (Signal::SIGKILL, 5)] {
            for pid in names.iter().filter_map(|name| self.pid(name)) {
                signal(pid, round);
            }
            let deadline = Instant::now() + Duration::from_secs(limit);
            while names.iter().any(|name| self.runs(name)) && Instant::now() < deadline {
                pause();
            }
        }
        for name in names {
            if let Some(pid) = self.pid(name) {
                bail!("{name} (pid {pid}) does not end, not even by SIGKILL: look at `ps {pid}`");
            }
            let record = self.pids.join(name);
            if record.exists() {
                std::fs::remove_file(record)?;
            }
        }
        Ok(())
    }

    /// Waits until `ready` says so; fails when one of the daemons `names` ends or time runs out.
    pub fn wait(
        &self,
        names: &[&str],
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            interrupt::check()?;
            for name in names {
                if !self.runs(name) {
                    let log = self.log(name);
                    bail!(
                        "{name} ended while waiting for {what}; read {}\n{}",
                        log.display(),
                        tail(&log, 8)
                    );
                }
            }
            if Instant::now() > deadline {
                let logs: Vec<_> =
                    names.iter().map(|name| self.log(name).display().to_string()).collect();
                bail!("{what} did not come within {limit:?}; read {}", logs.join(", "));
            }
            pause();
        }
        Ok(())
    }
}

/// `command` below setsid(1), which keeps the pid: what ends the terminal does not end the daemon.
fn in_a_session_of_its_own(command: &Command) -> Command {
    let mut wrapped = Command::new("setsid");
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// The kernel's start time of the process `pid`; `None` when there is none or it is a zombie.
fn birth(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything; count after the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19).map(|born| (*born).to_owned())
}

/// Sends `signal` to `pid`; a process that is gone is fine.
pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Waits a moment between two looks at what offers nothing to wait on.
pub fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}
