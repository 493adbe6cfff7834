//! gRPC's deadline on the wire: `grpc-timeout`, at most eight digits and a unit
//! (gRPC over HTTP2, "Requests").

use std::time::Duration;

/// The header.
pub const HEADER: &str = "grpc-timeout";

/// The time that `text` gives; nothing when it is not of the form, as gRPC servers ignore it.
pub fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// `time` in the finest unit that fits, rounded down: who waits at the worker must not wait longer
/// than the client does.
pub fn format(time: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let nanoseconds = time.as_nanos();
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S')];
    let minute = (60_000_000_000, 'M');
    for (size, unit) in units.into_iter().chain([minute]) {
        if nanoseconds / size <= MOST {
            return format!("{}{unit}", nanoseconds / size);
        }
    }
    format!("{}H", (nanoseconds / 3_600_000_000_000).min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_reads_and_nothing_else_does() {
        let rows = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("45m", Some(Duration::from_millis(45))),
            ("6u", Some(Duration::from_micros(6))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("5", None),
            ("S", None),
            ("123456789n", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
            ("1ü", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_is_passed_on_is_never_longer_and_loses_less_than_a_millionth() {
        for nanoseconds in
            [0_u64, 1, 99_999_999, 100_000_001, 12_345_678_901, 7_200_000_000_000_000]
        {
            let time = Duration::from_nanos(nanoseconds);
            let again = parse(&format(time)).unwrap_or_default();
            assert!(again <= time, "{}", format(time));
            let lost = (time - again).as_secs_f64();
            assert!(lost <= time.as_secs_f64() * 1e-6, "{}", format(time));
        }
    }
}
