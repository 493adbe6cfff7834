//! The metrics: what one sample adds, and the figure of all samples with its interval.
//!
//! A sample is reduced to a few numbers as soon as both models answered it, so that memory does not
//! grow with the size of outputs. Everything is computed in f64.

use lithe::artifact::Interval;
use lithe::recipe::Metric;

use crate::compress::statistics;

/// The signal-to-noise ratio in dB that stands for equal outputs: more than f32 can tell apart.
pub const EQUAL_DB: f64 = 200.0;

/// The judged outputs of a batch: one row of `width` numbers per sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The numbers, sample after sample.
    pub values: Vec<f64>,
    /// Numbers per sample, at least 1.
    pub width: usize,
    /// The last dimension of the output: classes where there are several steps.
    pub depth: usize,
    /// Whether the model answers with class numbers and not with scores.
    pub classes: bool,
}

impl Rows {
    /// One row per sample.
    pub fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.width.max(1))
    }

    /// How many classes a row tells apart; `None` where any number may be a class.
    pub fn class_count(&self) -> Option<usize> {
        match self.width {
            1 if self.classes => None,
            1 => Some(2),
            width => Some(width),
        }
    }

    /// The class that the model chose: the largest output (the first of equals); of a single score
    /// whether it is above one half; of a class number that number.
    fn choose(&self, row: &[f64]) -> f64 {
        match row {
            [class] if self.classes => *class,
            [score] => f64::from(u8::from(*score > 0.5)),
            _ => largest(row) as f64,
        }
    }

    /// The characters of `row` by greedy CTC decoding: the largest class of each step, repeats once,
    /// without `blank`. Class numbers are the characters themselves.
    fn characters(&self, row: &[f64], blank: f64) -> Vec<f64> {
        if self.classes {
            return row.iter().copied().filter(|class| *class >= 0.0).collect();
        }
        let mut steps: Vec<f64> =
            row.chunks(self.depth.max(1)).map(|step| largest(step) as f64).collect();
        steps.dedup();
        steps.retain(|class| *class != blank);
        steps
    }
}

/// The place of the largest number, the first of equals.
fn largest(row: &[f64]) -> usize {
    let best = row.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (at, value)| {
        if *value > best.1 { (at, *value) } else { best }
    });
    best.0
}

/// How a sample is scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The metric.
    pub metric: Metric,
    /// How many of the largest outputs count for `TopKAccuracy`.
    pub top: usize,
    /// The class without a character for `CharacterErrorRate`.
    pub blank: f64,
}

/// What is kept of one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scored {
    /// The label: a class, or the number of characters for `CharacterErrorRate`.
    pub label: f64,
    /// The original's score: 1 or 0 for right or wrong, a squared error, a class, edits.
    pub original: f64,
    /// The candidate's score.
    pub candidate: f64,
    /// Whether both chose the same.
    pub agrees: bool,
    /// The cosine of both outputs.
    pub cosine: f64,
    /// The sum of squares of the original's output.
    pub signal: f64,
    /// The sum of squares of the difference.
    pub noise: f64,
    /// The largest difference.
    pub largest: f64,
}

impl Rule {
    /// Scores one sample: the `rows` of the original and the candidate, of the same form as `form`.
    pub fn score(&self, form: &Rows, rows: (&[f64], &[f64]), label: &[f64]) -> Scored {
        let (original, candidate) = rows;
        let difference = original.iter().zip(candidate).map(|(x, y)| (x - y).abs());
        Scored {
            label: match self.metric {
                Metric::CharacterErrorRate => {
                    label.iter().filter(|class| **class >= 0.0).count() as f64
                }
                _ => label.first().copied().unwrap_or_default(),
            },
            original: self.mark(form, original, original, label),
            candidate: self.mark(form, candidate, original, label),
            agrees: form.choose(original) == form.choose(candidate),
            cosine: cosine(original, candidate),
            signal: original.iter().map(|value| value * value).sum(),
            noise: squared_error(original, candidate),
            largest: difference.fold(0.0, f64::max),
        }
    }

    fn mark(&self, form: &Rows, row: &[f64], original: &[f64], label: &[f64]) -> f64 {
        let truth = |yes: bool| f64::from(u8::from(yes));
        let first = label.first().copied().unwrap_or_default();
        match self.metric {
            Metric::Accuracy => truth(form.choose(row) == first),
            Metric::TopKAccuracy => truth(in_top(row, first, self.top)),
            Metric::F1 => form.choose(row),
            Metric::AUC => row.get(1).or(row.first()).copied().unwrap_or_default(),
            Metric::MeanSquaredError => squared_error(row, label) / row.len().max(1) as f64,
            Metric::CharacterErrorRate => {
                let wanted: Vec<f64> =
                    label.iter().copied().filter(|class| *class >= 0.0).collect();
                edits(&form.characters(row, self.blank), &wanted) as f64
            }
            Metric::Agreement => truth(form.choose(row) == form.choose(original)),
            Metric::Cosine => cosine(row, original),
            Metric::SignalToNoise | Metric::MaximumError => 0.0,
        }
    }
}

/// A figure, and how sure it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Samples or pairs behind it.
    pub count: usize,
    /// Between which figures it lies; `None` of too few samples.
    pub interval: Option<Interval>,
    /// How the interval narrows.
    pub kind: Kind,
}

/// How an interval depends on the number of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// So many hits among the samples.
    Share(f64),
    /// So many samples lost and won.
    Pairs(f64, f64),
    /// With the root of the number.
    Root,
    /// Not at all.
    Exact,
}

impl Estimate {
    fn share(hits: f64, count: usize, confidence: f64) -> Self {
        let interval = (count > 0).then(|| statistics::wilson(hits, count as f64, confidence));
        Self { value: hits / count as f64, count, interval, kind: Kind::Share(hits) }
    }

    fn pairs(lost: f64, won: f64, count: usize, confidence: f64) -> Self {
        let interval = (count > 0).then(|| statistics::tango(lost, won, count as f64, confidence));
        let value = (lost - won) / count as f64;
        Self { value, count, interval, kind: Kind::Pairs(lost, won) }
    }

    fn mean(values: &[f64], confidence: f64) -> Self {
        Self::root(average(values), values.len(), statistics::mean(values, confidence))
    }

    /// A figure whose interval narrows with the root of the number of samples.
    pub fn root(value: f64, count: usize, interval: Option<Interval>) -> Self {
        Self { value, count, interval, kind: Kind::Root }
    }

    /// A figure without noise.
    pub fn exact(value: f64, count: usize) -> Self {
        let interval =
            Interval { low: value, high: value, confidence: 1.0, method: "exact".into() };
        Self { value, count, interval: Some(interval), kind: Kind::Exact }
    }

    /// The interval if there were `times` as many samples of the same kind.
    pub fn grown(&self, times: f64) -> Option<(f64, f64)> {
        let now = self.interval.as_ref()?;
        let count = self.count as f64 * times;
        let grown = match self.kind {
            Kind::Share(hits) => statistics::wilson(hits * times, count, now.confidence),
            Kind::Pairs(lost, won) => {
                statistics::tango(lost * times, won * times, count, now.confidence)
            }
            Kind::Root => {
                let part = |end: f64| self.value + (end - self.value) / times.sqrt();
                return Some((part(now.low), part(now.high)));
            }
            Kind::Exact => return Some((now.low, now.high)),
        };
        Some((grown.low, grown.high))
    }
}

/// What the samples say of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The metric of the original.
    pub original: f64,
    /// The metric of the candidate.
    pub value: Estimate,
    /// How much worse the candidate is, in the metric's unit; `None` where that has no meaning.
    pub drop: Option<Estimate>,
}

/// The figures of `metric`; `None` where it is not defined (AUC of one class only, no characters).
pub fn figures(metric: Metric, scored: &[Scored], confidence: f64) -> Option<Figures> {
    if scored.is_empty() {
        return None;
    }
    let count = scored.len();
    let sum = |of: fn(&Scored) -> f64| scored.iter().map(of).sum::<f64>();
    match metric {
        Metric::Accuracy | Metric::TopKAccuracy | Metric::Agreement => {
            let (before, after) = (sum(|s| s.original), sum(|s| s.candidate));
            let lost = sum(|s| f64::from(u8::from(s.original > s.candidate)));
            let won = sum(|s| f64::from(u8::from(s.original < s.candidate)));
            let drop = if metric == Metric::Agreement {
                Estimate::share(lost, count, confidence)
            } else {
                Estimate::pairs(lost, won, count, confidence)
            };
            let value = Estimate::share(after, count, confidence);
            Some(Figures { original: before / count as f64, value, drop: Some(drop) })
        }
        Metric::MeanSquaredError | Metric::Cosine => {
            let sign = if metric.larger_is_better() { 1.0 } else { -1.0 };
            let after: Vec<f64> = scored.iter().map(|s| s.candidate).collect();
            let drops: Vec<f64> =
                scored.iter().map(|s| sign * (s.original - s.candidate)).collect();
            Some(Figures {
                original: sum(|s| s.original) / count as f64,
                value: Estimate::mean(&after, confidence),
                drop: Some(Estimate::mean(&drops, confidence)),
            })
        }
        Metric::F1 => Some(f1(scored, confidence)),
        Metric::AUC => auc(scored, confidence),
        Metric::CharacterErrorRate => character_error_rate(scored, confidence),
        Metric::SignalToNoise => Some(signal_to_noise(scored, confidence)),
        Metric::MaximumError => {
            let largest = scored.iter().map(|s| s.largest).fold(0.0, f64::max);
            let value = Estimate::exact(largest, count);
            Some(Figures { original: 0.0, value, drop: None })
        }
    }
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn in_top(row: &[f64], label: f64, top: usize) -> bool {
    let Some(score) = row.get(label as usize) else { return false };
    // Equal scores rank by their class, as a stable sort does.
    let before = row
        .iter()
        .enumerate()
        .filter(|(at, value)| **value > *score || (**value == *score && (*at as f64) < label));
    before.count() < top
}

/// The cosine of two vectors; 1 when both are zero.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (left, right) = (norm(a), norm(b));
    if left == 0.0 && right == 0.0 {
        1.0
    } else if left == 0.0 || right == 0.0 {
        0.0
    } else {
        dot / (left * right)
    }
}

fn squared_error(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// Insertions, deletions and replacements from `a` to `b` (Levenshtein).
fn edits(a: &[f64], b: &[f64]) -> usize {
    let mut line: Vec<usize> = (0..=b.len()).collect();
    for (row, x) in a.iter().enumerate() {
        let mut corner = row;
        let mut left = row + 1;
        for (y, cell) in b.iter().zip(line.iter_mut().skip(1)) {
            let replaced = corner + usize::from(x != y);
            corner = *cell;
            left = replaced.min(corner + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = line.first_mut() {
            *first = row + 1;
        }
    }
    line.last().copied().unwrap_or_default()
}

/// 10 log10(sum y^2 / sum (y - y')^2) in dB, at most [`EQUAL_DB`] either way.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    if noise <= 0.0 {
        EQUAL_DB
    } else if signal <= 0.0 {
        -EQUAL_DB
    } else {
        (10.0 * (signal / noise).log10()).clamp(-EQUAL_DB, EQUAL_DB)
    }
}

fn signal_to_noise(scored: &[Scored], confidence: f64) -> Figures {
    let signal: f64 = scored.iter().map(|s| s.signal).sum();
    let noise: f64 = scored.iter().map(|s| s.noise).sum();
    let value = decibels(signal, noise);
    let without: Vec<f64> = scored
        .iter()
        .map(|s| decibels(signal - s.signal, if noise > 0.0 { noise - s.noise } else { 0.0 }))
        .collect();
    let interval = statistics::jackknife(value, &without, confidence);
    let value = Estimate::root(value, scored.len(), interval);
    Figures { original: EQUAL_DB, value, drop: None }
}

fn character_error_rate(scored: &[Scored], confidence: f64) -> Option<Figures> {
    let sum = |of: fn(&Scored) -> f64| scored.iter().map(of).sum::<f64>();
    let (length, before, after) = (sum(|s| s.label), sum(|s| s.original), sum(|s| s.candidate));
    if length <= 0.0 {
        return None;
    }
    let estimate = |total: f64, of: &dyn Fn(&Scored) -> f64| {
        let without: Vec<f64> =
            scored.iter().map(|s| (total - of(s)) / (length - s.label).max(1.0)).collect();
        let value = total / length;
        Estimate::root(value, scored.len(), statistics::jackknife(value, &without, confidence))
    };
    Some(Figures {
        original: before / length,
        value: estimate(after, &|s| s.candidate),
        drop: Some(estimate(after - before, &|s| s.candidate - s.original)),
    })
}

/// The counts of one class: hits, and how often it was chosen or is a label.
#[derive(Clone, Copy, Default)]
struct Class {
    hits: f64,
    sum: f64,
}

impl Class {
    fn f1(self) -> f64 {
        if self.sum > 0.0 { 2.0 * self.hits / self.sum } else { 0.0 }
    }
}

/// The F1 score averaged over every class that was chosen or is a label (scikit-learn's `macro`), and
/// the same without each sample in turn.
fn macro_f1(scored: &[Scored], chosen: fn(&Scored) -> f64) -> (f64, Vec<f64>) {
    let mut classes = std::collections::BTreeMap::<i64, Class>::new();
    for sample in scored {
        let hit = f64::from(u8::from(chosen(sample) == sample.label));
        classes.entry(chosen(sample) as i64).or_default().sum += 1.0;
        let label = classes.entry(sample.label as i64).or_default();
        label.sum += 1.0;
        label.hits += hit;
    }
    let total: f64 = classes.values().map(|class| class.f1()).sum();
    let count = classes.len() as f64;
    let class = |key: f64| classes.get(&(key as i64)).copied().unwrap_or_default();
    let without = scored.iter().map(|sample| {
        let (mut total, mut count) = (total, count);
        let mut replace = |old: Class, new: Class| {
            total += new.f1() - old.f1();
            count -= f64::from(u8::from(new.sum <= 0.0));
        };
        let label = class(sample.label);
        if chosen(sample) == sample.label {
            replace(label, Class { hits: label.hits - 1.0, sum: label.sum - 2.0 });
        } else {
            let other = class(chosen(sample));
            replace(label, Class { sum: label.sum - 1.0, ..label });
            replace(other, Class { sum: other.sum - 1.0, ..other });
        }
        total / count.max(1.0)
    });
    let without = without.collect();
    (total / count.max(1.0), without)
}

fn f1(scored: &[Scored], confidence: f64) -> Figures {
    let (before, before_without) = macro_f1(scored, |s| s.original);
    let (after, after_without) = macro_f1(scored, |s| s.candidate);
    let drops: Vec<f64> = before_without.iter().zip(&after_without).map(|(a, b)| a - b).collect();
    let estimate = |value, without: &[f64]| {
        Estimate::root(value, scored.len(), statistics::jackknife(value, without, confidence))
    };
    Figures {
        original: before,
        value: estimate(after, &after_without),
        drop: Some(estimate(before - after, &drops)),
    }
}

/// The area under the ROC curve as the mean of placements (Mann and Whitney; ties count half).
fn auc(scored: &[Scored], confidence: f64) -> Option<Figures> {
    let before = placements(scored, |s| s.original)?;
    let after = placements(scored, |s| s.candidate)?;
    let less = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(x, y)| x - y).collect() };
    let drops = (less(&before.0, &after.0), less(&before.1, &after.1));
    let estimate = |(positives, negatives): &(Vec<f64>, Vec<f64>)| {
        let interval = statistics::delong(positives, negatives, confidence);
        Estimate::root(average(positives), scored.len(), interval)
    };
    let (original, value) = (average(&before.0), estimate(&after));
    Some(Figures { original, value, drop: Some(estimate(&drops)) })
}

/// For each positive sample the share of negatives below it, for each negative the share of positives
/// above it, both in the order of the samples; `None` without both classes.
fn placements(scored: &[Scored], score: fn(&Scored) -> f64) -> Option<(Vec<f64>, Vec<f64>)> {
    let positive = |s: &&Scored| s.label > 0.5;
    let sorted = |wanted: bool| -> Vec<f64> {
        let mut scores: Vec<f64> =
            scored.iter().filter(|s| positive(s) == wanted).map(score).collect();
        scores.sort_by(f64::total_cmp);
        scores
    };
    let (positives, negatives) = (sorted(true), sorted(false));
    if positives.is_empty() || negatives.is_empty() {
        return None;
    }
    let below = |sorted: &[f64], value: f64| {
        let less = sorted.partition_point(|other| *other < value);
        let upto = sorted.partition_point(|other| *other <= value);
        (less + upto) as f64 / 2.0 / sorted.len() as f64
    };
    let first = scored.iter().filter(positive).map(|s| below(&negatives, score(s))).collect();
    let second =
        scored.iter().filter(|s| !positive(s)).map(|s| 1.0 - below(&positives, score(s))).collect();
    Some((first, second))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The metric of rows that both models give.
    fn value(metric: Metric, width: usize, rows: &[f64], labels: &[f64]) -> Option<f64> {
        against(metric, width, (rows, rows), labels)
    }

    fn against(
        metric: Metric,
        width: usize,
        rows: (&[f64], &[f64]),
        labels: &[f64],
    ) -> Option<f64> {
        let form = Rows { values: Vec::new(), width, depth: width, classes: false };
        let rule = Rule { metric, top: 5, blank: 0.0 };
        let pairs = rows.0.chunks(width).zip(rows.1.chunks(width)).enumerate();
        let label = |at: usize| labels.get(at..=at).unwrap_or_default();
        let scored: Vec<Scored> =
            pairs.map(|(at, rows)| rule.score(&form, rows, label(at))).collect();
        figures(metric, &scored, 0.95).map(|figures| figures.value.value)
    }

    #[test]
    fn accuracy_and_top_five_count_the_label() {
        let rows = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        assert_eq!(value(Metric::Accuracy, 6, &rows, &[0.0, 0.0]), Some(0.5));
        assert_eq!(value(Metric::TopKAccuracy, 6, &rows, &[5.0, 3.0]), Some(0.5));
        assert_eq!(value(Metric::Accuracy, 1, &[0.9, 0.1], &[1.0, 1.0]), Some(0.5));
    }

    #[test]
    fn auc_counts_ties_half_and_needs_both_classes() {
        // scikit-learn's own example.
        let rows = [0.1, 0.4, 0.35, 0.8];
        assert_eq!(value(Metric::AUC, 1, &rows, &[0.0, 0.0, 1.0, 1.0]), Some(0.75));
        assert_eq!(value(Metric::AUC, 1, &[0.5, 0.5], &[0.0, 1.0]), Some(0.5));
        assert_eq!(value(Metric::AUC, 1, &[0.5, 0.5], &[1.0, 1.0]), None);
    }

    #[test]
    fn f1_is_the_mean_over_classes() {
        // sklearn.metrics.f1_score([0,1,2,0,1,2], [0,2,1,0,0,1], average='macro') is 0.26666…
        let rows = [1., 0., 0., 0., 0., 1., 0., 1., 0., 1., 0., 0., 1., 0., 0., 0., 1., 0.];
        let f1 = value(Metric::F1, 3, &rows, &[0., 1., 2., 0., 1., 2.]).unwrap();
        assert!((f1 - 0.8 / 3.0).abs() < 1e-12, "{f1}");
    }

    #[test]
    fn equal_outputs_have_no_noise() {
        let same = [3.0, 4.0];
        assert_eq!(value(Metric::SignalToNoise, 2, &same, &[]), Some(EQUAL_DB));
        assert_eq!(value(Metric::Cosine, 2, &same, &[]), Some(1.0));
        let off = [3.0, 4.5];
        let db = against(Metric::SignalToNoise, 2, (&same, &off), &[]).unwrap();
        assert!((db - 20.0).abs() < 1e-9, "{db}");
        assert_eq!(against(Metric::MaximumError, 2, (&same, &off), &[]), Some(0.5));
    }

    #[test]
    fn characters_are_decoded_greedily_and_counted_in_edits() {
        let form = Rows { values: Vec::new(), width: 8, depth: 2, classes: false };
        // Steps 1 1 0 1 with blank 0 are two characters.
        let row = [0., 1., 0., 1., 1., 0., 0., 1.];
        assert_eq!(form.characters(&row, 0.0), [1.0, 1.0]);
        let letters = |text: &str| text.bytes().map(f64::from).collect::<Vec<f64>>();
        for (a, b, wanted) in
            [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0)]
        {
            assert_eq!(edits(&letters(a), &letters(b)), wanted, "{a} {b}");
        }
    }

    #[test]
    fn the_jackknife_of_f1_leaves_each_sample_out() {
        let sample = |label, chosen| Scored { label, candidate: chosen, ..Scored::default() };
        let all = [sample(0., 0.), sample(1., 2.), sample(2., 2.), sample(0., 1.), sample(3., 3.)];
        let (_, without) = macro_f1(&all, |s| s.candidate);
        for (at, seen) in without.iter().enumerate() {
            let rest: Vec<Scored> =
                all.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, s)| *s).collect();
            let wanted = macro_f1(&rest, |s| s.candidate).0;
            assert!((seen - wanted).abs() < 1e-12, "{at}: {seen} {wanted}");
        }
    }
}
