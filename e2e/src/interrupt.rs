//! Ctrl-C, SIGTERM and SIGHUP: ends the programs that run for us and lets the command clean up.
//!
//! It never ends this process: whoever called finds the error of the ended program, or that of
//! [`check`], and undoes what it did.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// What `kill` takes: a pid, or the negated pid of a process group's leader.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to listen; called once, first in `main`.
pub fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the thread that listens to signals")?;
    let entered = runtime.enter();
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut hangups = signal(SignalKind::hangup())?;
    drop(entered);
    let listen = async move {
        loop {
            tokio::select! {
                _ = interrupts.recv() => {}
                _ = terminations.recv() => {}
                _ = hangups.recv() => {}
            }
            arrived();
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(listen))
        .context("start the thread that listens to signals")?;
    Ok(())
}

fn arrived() {
    // Only the first ends programs: a second one would hit those that clean up.
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        eprintln!("still cleaning up");
        return;
    }
    eprintln!("\ninterrupted: cleaning up");
    for target in running().iter() {
        let _ = kill(Pid::from_raw(*target), Signal::SIGTERM);
    }
}

/// Whether a signal arrived.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once a signal arrived; long work asks between its parts.
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// A running program that a signal ends; until it is dropped.
pub struct Running(i32);

impl Running {
    /// The program with the process group of its own `pid`.
    pub fn group(pid: u32) -> Self {
        Self::register(i32::try_from(pid).map_or(0, |pid| -pid))
    }

    /// The program `pid` in our own process group.
    pub fn process(pid: u32) -> Self {
        Self::register(i32::try_from(pid).unwrap_or(0))
    }

    fn register(target: i32) -> Self {
        if target != 0 {
            running().push(target);
        }
        Self(target)
    }

    /// Ends the program.
    pub fn end(&self) {
        if self.0 != 0 {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGTERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        running().retain(|target| *target != self.0);
    }
}
