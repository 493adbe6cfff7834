//! Demand over time: requests in each second, made by a rule or read from a file.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::chance::Chance;

/// Requests in each second.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Its name in the table.
    pub name: String,
    /// How many requests came in each second.
    pub counts: Vec<u32>,
}

/// Seconds that a file must have: shorter ones say nothing about scaling.
const SHORTEST: usize = 600;
/// The largest count: the simulation is of requests one by one.
const LARGEST: u32 = 10_000;

impl Trace {
    /// When each request comes, in seconds, ascending: evenly within its second.
    pub fn arrivals(&self) -> Vec<f64> {
        let mut chance = Chance::new(1);
        let total: usize = self.counts.iter().map(|count| *count as usize).sum();
        let mut times = Vec::with_capacity(total);
        for (second, count) in self.counts.iter().enumerate() {
            let from = times.len();
            times.extend((0..*count).map(|_| second as f64 + chance.unit()));
            if let Some(new) = times.get_mut(from..) {
                new.sort_unstable_by(f64::total_cmp);
            }
        }
        times
    }

    /// Reads one count per line.
    ///
    /// # Errors
    /// With the number of the line that is empty, negative, no whole number, or too large.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the trace {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let counts = parse(&text).with_context(|| format!("the trace {}", path.display()))?;
        Ok(Self { name, counts })
    }
}

fn parse(text: &str) -> Result<Vec<u32>> {
    let mut counts = Vec::new();
    for (index, line) in text.trim_end().lines().enumerate() {
        let line = line.trim();
        let number = index + 1;
        if line.is_empty() {
            bail!("line {number} is empty: write 0 for a second without requests");
        }
        let count: i64 = line.parse().ok().with_context(|| {
            format!("line {number} is {line:?}: one whole number of requests per second is wanted")
        })?;
        match u32::try_from(count) {
            Ok(count) if count <= LARGEST => counts.push(count),
            Ok(_) => bail!("line {number} is {count}: at most {LARGEST} can be simulated"),
            Err(_) => bail!("line {number} is {count}: a number of requests is not negative"),
        }
    }
    if counts.len() < SHORTEST {
        bail!("it has {} lines: at least {SHORTEST} seconds are wanted", counts.len());
    }
    if counts.iter().all(|count| *count == 0) {
        bail!("no line has a request");
    }
    Ok(counts)
}

/// The built-in traces.
pub fn built_in() -> Vec<Trace> {
    let made: [(&str, Vec<f64>); 5] = [
        ("step", step()),
        ("diurnal", diurnal()),
        ("mmpp", mmpp()),
        ("busy", busy()),
        ("calm", calm()),
    ];
    made.into_iter()
        .enumerate()
        .map(|(seed, (name, rates))| {
            let mut chance = Chance::new(seed as u64 + 100);
            let counts = rates.into_iter().map(|rate| chance.poisson(rate)).collect();
            Trace { name: name.into(), counts }
        })
        .collect()
}

/// 70 per second, and 240 for 15 minutes and for 7.
fn step() -> Vec<f64> {
    let high = |t: &usize| (1200..2100).contains(t) || (3300..3700).contains(t);
    (0..5400).map(|t| if high(&t) { 240.0 } else { 70.0 }).collect()
}

/// From 50 to 310 per second and back within an hour, twice.
fn diurnal() -> Vec<f64> {
    (0..7200)
        .map(|t| 180.0 - 130.0 * (std::f64::consts::TAU * f64::from(t) / 3600.0).cos())
        .collect()
}

/// 90 per second, with bursts of two to three and a half times that, which come about every eight
/// minutes and last about as long as a pod takes to start (a Markov-modulated Poisson process).
fn mmpp() -> Vec<f64> {
    let mut chance = Chance::new(7);
    let mut rates = Vec::new();
    while rates.len() < 7200 {
        let calm = (chance.exponential() * 420.0) as usize + 60;
        let burst = (chance.exponential() * 75.0) as usize + 30;
        let height = 90.0 * (2.0 + 1.5 * chance.unit());
        rates.extend(std::iter::repeat_n(90.0, calm));
        rates.extend(std::iter::repeat_n(height, burst));
    }
    rates.truncate(7200);
    rates
}

/// As public services see it: a slow wave, a level that wanders, noise that lasts seconds, and now
/// and then a peak that comes within seconds and fades within minutes.
fn busy() -> Vec<f64> {
    wander(Chance::new(21), 0.010, 0.10, 1.0 / 900.0)
}

/// The same without peaks and with half the wandering.
fn calm() -> Vec<f64> {
    wander(Chance::new(22), 0.005, 0.06, 0.0)
}

fn wander(mut chance: Chance, drift: f64, noise: f64, peaks: f64) -> Vec<f64> {
    let (mut level, mut quick, mut peak) = (0.0_f64, 0.0_f64, 0.0_f64);
    (0..7200)
        .map(|t| {
            level += drift * chance.normal() - level / 1200.0;
            quick += noise * (0.4 * chance.normal()) - quick / 4.0;
            peak *= 1.0 - 1.0 / 150.0;
            if chance.unit() < peaks {
                peak += 0.3 + 0.5 * chance.unit();
            }
            let wave = 1.0 + 0.3 * (std::f64::consts::TAU * f64::from(t) / 5400.0).sin();
            120.0 * wave * (level + quick).exp() * (1.0 + peak)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_trace_is_refused_by_its_line() {
        let good: String = (0..SHORTEST).map(|_| "7\n").collect();
        assert_eq!(parse(&good).unwrap().len(), SHORTEST);
        let at = |line: &str| parse(&format!("5\n{line}\n{good}")).unwrap_err().to_string();
        assert_eq!(at(""), "line 2 is empty: write 0 for a second without requests");
        assert!(at("-3").starts_with("line 2 is -3: a number of requests is not negative"));
        assert!(at("many").starts_with("line 2 is \"many\": one whole number"));
        assert!(at("1.5").starts_with("line 2 is \"1.5\""));
        assert!(at("99999999").starts_with("line 2 is 99999999: at most 10000"));
        assert!(parse("1\n2\n").unwrap_err().to_string().contains("it has 2 lines"));
        let none = good.replace('7', "0");
        assert_eq!(parse(&none).unwrap_err().to_string(), "no line has a request");
    }

    #[test]
    fn arrivals_keep_their_seconds() {
        let trace = Trace { name: "t".into(), counts: vec![3, 0, 2] };
        let seconds: Vec<u32> = trace.arrivals().iter().map(|time| *time as u32).collect();
        assert_eq!(seconds, [0, 0, 0, 2, 2]);
    }
}
