//! Histograms, moments and signals: what adds up, what can be subtracted, what is refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use lithe::latency::{Counters, Histogram, Moments, Recorder, Signals, write_classic};
use proptest::prelude::*;

const TARGET: f64 = 0.25;

fn histogram(seconds: &[f64]) -> Histogram {
    let mut histogram = Histogram::new(Some(TARGET));
    for time in seconds {
        histogram.record(*time);
    }
    histogram
}

/// Durations from 1 us to some minutes, evenly over their logarithm, the target among them.
fn durations() -> impl Strategy<Value = Vec<f64>> {
    let one = prop_oneof![9 => (-19.0..8.0_f64).prop_map(f64::exp2), 1 => Just(TARGET)];
    prop::collection::vec(one, 1..200)
}

/// The definition: the least value that a share `q` does not exceed.
fn exact_quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    sorted[rank - 1]
}

proptest! {
    #[test]
    fn a_quantile_lies_between_its_bounds_and_they_are_nine_percent_apart(
        values in durations(), q in 0.0..=1.0_f64,
    ) {
        let seen = histogram(&values).quantile(q).unwrap();
        let exact = exact_quantile(&values, q);
        prop_assert!(seen.low <= exact * (1.0 + 1e-12) && exact <= seen.high * (1.0 + 1e-12), "{exact} {seen:?}");
        prop_assert!(seen.low <= seen.value && seen.value <= seen.high);
        prop_assert!(seen.low == 0.0 || seen.high / seen.low <= 1.0906);
    }

    #[test]
    fn misses_of_the_target_are_exact_at_every_scale(values in durations()) {
        let over = values.iter().filter(|time| **time > TARGET).count() as f64;
        let mut seen = histogram(&values);
        for _ in 0..4 {
            prop_assert_eq!(seen.above(TARGET), over);
            seen.coarsen();
        }
        prop_assert_eq!(seen.scale(), 0);
        prop_assert_eq!(seen.count(), values.len() as u64);
    }

    #[test]
    fn merging_is_as_counting_all_in_one(a in durations(), b in durations(), coarse in 0..4_u8) {
        let both: Vec<f64> = a.iter().chain(&b).copied().collect();
        let (mut left, mut right, mut all) = (histogram(&a), histogram(&b), histogram(&both));
        for _ in 0..coarse {
            right.coarsen();
            all.coarsen();
        }
        left.merge(&right);
        prop_assert!((left.sum() - all.sum()).abs() <= 1e-9 * all.sum());
        prop_assert_eq!(
            left.segments().collect::<Vec<_>>(), all.segments().collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_difference_is_what_was_counted_in_between(a in durations(), b in durations()) {
        let earlier = histogram(&a);
        let mut later = earlier.clone();
        later.merge(&histogram(&b));
        let seen = later.since(&earlier).unwrap();
        let (seen, want): (Vec<_>, Vec<_>) =
            (seen.segments().collect(), histogram(&b).segments().collect());
        prop_assert_eq!(seen, want);
        // A process that began anew has counted less somewhere.
        prop_assert!(earlier.since(&later).is_none());
    }

    #[test]
    fn a_histogram_survives_the_wire(values in durations(), coarse in 0..4_u8) {
        let mut sent = histogram(&values);
        for _ in 0..coarse {
            sent.coarsen();
        }
        let read: Histogram = serde_json::from_str(&serde_json::to_string(&sent).unwrap()).unwrap();
        prop_assert_eq!(read.segments().collect::<Vec<_>>(), sent.segments().collect::<Vec<_>>());
    }

    #[test]
    fn the_recorder_counts_as_the_histogram_does(nanoseconds in prop::collection::vec(0..1u64 << 40, 1..100)) {
        let recorder = Recorder::new(Some(Duration::from_millis(250)));
        let mut plain = Histogram::new(Some(0.25));
        for time in nanoseconds.iter().map(|time| Duration::from_nanos(*time)) {
            recorder.record(time);
            plain.record(time.as_secs_f64());
        }
        let seen = recorder.snapshot();
        prop_assert_eq!(seen.segments().collect::<Vec<_>>(), plain.segments().collect::<Vec<_>>());
        prop_assert!((seen.sum() - plain.sum()).abs() < 1e-6 * plain.sum().max(1.0));
    }

    #[test]
    fn classic_buckets_rise_and_are_exact_at_the_target(values in durations()) {
        let classic = histogram(&values).classic();
        prop_assert!(classic.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        let at = classic.iter().find(|(bound, _)| *bound == TARGET).unwrap().1;
        prop_assert_eq!(at, values.iter().filter(|time| **time <= TARGET).count() as u64);
        let (last, all) = *classic.last().unwrap();
        prop_assert!(last.is_infinite() && all == values.len() as u64);
        for (bound, count) in &classic {
            let exact = values.iter().filter(|time| **time <= *bound).count() as u64;
            prop_assert_eq!(*count, exact, "at {}", bound);
        }
    }

    #[test]
    fn whatever_is_read_as_signals_is_sound(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Signals::parse(&bytes).is_err());
    }
}

#[test]
fn bounds_belong_to_the_bucket_below_as_in_opentelemetry() {
    for exponent in -19..12 {
        let power = f64::from(exponent).exp2();
        let at = Histogram::position(power);
        assert_eq!(at + 1, Histogram::position(power * (1.0 + 1e-12)), "2^{exponent}");
        assert_eq!(at, ((exponent + 20) * 8 - 1) as usize);
    }
    // By the logarithm of the specification, away from bounds.
    for step in 1..20_000 {
        let seconds = f64::from(step) * 0.001_37;
        let want = ((seconds.log2() * 8.0).ceil() - 1.0 + 160.0) as usize;
        assert_eq!(Histogram::position(seconds), want, "{seconds}");
    }
    assert_eq!([0, 0, 0, 255], [0.0, -1.0, f64::NAN, 1e9].map(Histogram::position));
}

#[test]
fn another_target_ends_the_exact_edge_but_no_count() {
    let mut sum = histogram(&[0.1, 0.3]);
    let mut other = Histogram::new(Some(0.5));
    other.record(0.4);
    sum.merge(&other);
    assert_eq!((sum.edge(), sum.count()), (None, 3));
    let mut empty = Histogram::default();
    empty.merge(&other);
    assert_eq!(empty.edge().unwrap().at, 0.5);
}

#[test]
fn the_line_through_batches_comes_back_from_their_moments() {
    let mut sums = Moments::default();
    for batch in [1, 2, 4, 8, 8] {
        sums.record(batch, 0.080 + 0.020 * f64::from(batch));
    }
    assert!(sums.sound());
    let slope = (sums.n * sums.bs - sums.b * sums.s) / (sums.n * sums.bb - sums.b * sums.b);
    assert!((slope - 0.020).abs() < 1e-12);
    let wrong = Moments { bb: 1.0, ..sums };
    assert!(!wrong.sound());
    assert_eq!(sums.since(&Moments::of(9.0, 0.1)).map(|sums| sums.n), Some(4.0));
    assert_eq!(Moments::of(1.0, 0.1).since(&sums), None);
}

fn signals(boot: &str, arrivals: u64) -> Signals {
    let mut counters = Counters { arrivals, completions: arrivals, ..Counters::default() };
    for _ in 0..arrivals {
        counters.latency.record(0.1);
        counters.batches.record(1, 0.04);
    }
    Signals { boot: boot.into(), ready: true, counters, ..Signals::default() }
}

#[test]
fn a_new_process_counts_from_its_own_start() {
    let earlier = signals("a", 10);
    let grown = signals("a", 14).since(&earlier);
    assert_eq!((grown.counters.arrivals, grown.reset), (4, false));
    let another = signals("b", 14).since(&earlier);
    assert_eq!((another.counters.arrivals, another.reset), (14, true));
    // The same boot id with less than before: a reset all the same, of all counters at once.
    let mut fallen = signals("a", 14);
    fallen.counters.missed = 0;
    let mut before = earlier;
    before.counters.missed = 1;
    let fallen = fallen.since(&before);
    assert_eq!((fallen.counters.arrivals, fallen.counters.latency.count()), (14, 14));
    assert!(fallen.reset);
}

#[test]
fn counters_of_pods_add_up() {
    let mut sum = signals("a", 3).counters;
    sum.merge(&signals("b", 4).counters);
    assert_eq!((sum.arrivals, sum.latency.count(), sum.batches.n), (7, 7, 7.0));
}

#[test]
fn malformed_signals_are_refused_by_the_field() {
    let good = serde_json::to_value(signals("a", 2)).unwrap();
    assert!(Signals::parse(good.to_string().as_bytes()).is_ok());
    let broken = |path: &str, value: serde_json::Value| {
        let mut json = good.clone();
        *json.pointer_mut(path).unwrap() = value;
        Signals::parse(json.to_string().as_bytes()).unwrap_err().to_string()
    };
    let cases = [
        ("/counters/arrivals", (-3).into(), "invalid value: integer `-3`"),
        ("/oldestQueued", (-0.5).into(), "oldestQueued is -0.5"),
        ("/counters/latency/scale", 9.into(), "the scale is 9"),
        (
            "/counters/latency/counts/0/0",
            70_000_000.into(),
            "bucket 70000000 is not one of the 256",
        ),
        ("/counters/latency/sum", (-1.0).into(), "sum is -1"),
        ("/counters/batches/bb", 0.5.into(), "counters.batches are no sums"),
        ("/ready", "yes".into(), "invalid type: string \"yes\""),
    ];
    for (path, value, want) in cases {
        let seen = broken(path, value);
        assert!(seen.contains(want), "{path}: {seen}");
    }
    let unknown = good.to_string().replacen("\"boot\"", "\"boots\"", 1);
    assert!(Signals::parse(unknown.as_bytes()).is_err());
}

#[test]
fn the_prometheus_text_has_every_line() {
    let mut text = String::new();
    write_classic(&mut text, "lithe_latency_seconds", "model=\"m\"", &histogram(&[0.2, 0.3]));
    assert!(text.contains("lithe_latency_seconds_bucket{model=\"m\",le=\"0.25\"} 1\n"), "{text}");
    assert!(text.contains("lithe_latency_seconds_bucket{model=\"m\",le=\"+Inf\"} 2\n"));
    assert!(text.ends_with(
        "lithe_latency_seconds_sum{model=\"m\"} 0.5\nlithe_latency_seconds_count{model=\"m\"} 2\n"
    ));
}
