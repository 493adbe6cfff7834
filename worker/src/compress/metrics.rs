//! The metrics, computed in f64 from one row of outputs per sample.

use lithe::recipe::Metric;

/// The signal-to-noise ratio in dB that stands for equal outputs: more than f32 can tell apart.
pub const EQUAL_DB: f64 = 200.0;

/// The judged outputs of a model: one row of `width` numbers per sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The numbers, sample after sample.
    pub values: Vec<f64>,
    /// Numbers per sample, at least 1.
    pub width: usize,
    /// Whether the model answers with class numbers and not with scores.
    pub classes: bool,
}

impl Rows {
    /// One row per sample.
    pub fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.width.max(1))
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// The class that the model chose for each sample: the largest output (the first of equals); of
    /// a single score whether it is above one half; of a class number that number.
    pub fn chosen(&self) -> Vec<i64> {
        self.iter().map(|row| self.choose(row)).collect()
    }

    fn choose(&self, row: &[f64]) -> i64 {
        match row {
            [class] if self.classes => *class as i64,
            [score] => i64::from(*score > 0.5),
            _ => {
                let best =
                    row.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (at, value)| {
                        if *value > best.1 { (at, *value) } else { best }
                    });
                best.0 as i64
            }
        }
    }

    /// How many classes the rows tell apart; `None` where any number may be a class.
    pub fn class_count(&self) -> Option<i64> {
        match self.width {
            1 if self.classes => None,
            1 => Some(2),
            width => Some(width as i64),
        }
    }
}

/// The score of each sample, where `metric` is a mean over samples: 1 or 0 for right or wrong, a
/// cosine, a squared error. `None` for metrics of the whole set (F1, AUC, SignalToNoise).
pub fn scores(metric: Metric, rows: &Rows, original: &Rows, labels: &[f64]) -> Option<Vec<f64>> {
    let truth = |yes: bool| f64::from(u8::from(yes));
    match metric {
        Metric::Accuracy => Some(
            rows.chosen().iter().zip(labels).map(|(c, label)| truth(*c as f64 == *label)).collect(),
        ),
        Metric::Top5Accuracy => Some(
            rows.iter().zip(labels).map(|(row, label)| truth(in_top_five(row, *label))).collect(),
        ),
        Metric::Agreement => {
            Some(rows.chosen().iter().zip(original.chosen()).map(|(a, b)| truth(*a == b)).collect())
        }
        Metric::Cosine => {
            Some(rows.iter().zip(original.iter()).map(|(a, b)| cosine(a, b)).collect())
        }
        Metric::MeanSquaredError => {
            let wide = labels.chunks(rows.width.max(1));
            Some(
                rows.iter()
                    .zip(wide)
                    .map(|(a, b)| squared_error(a, b) / rows.width as f64)
                    .collect(),
            )
        }
        Metric::F1 | Metric::AUC | Metric::SignalToNoise => None,
    }
}

/// The value of `metric` for `rows`; `None` where it is not defined (AUC of one class only).
pub fn value(metric: Metric, rows: &Rows, original: &Rows, labels: &[f64]) -> Option<f64> {
    if let Some(scores) = scores(metric, rows, original, labels) {
        return (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
    }
    match metric {
        Metric::F1 => Some(f1(&rows.chosen(), labels)),
        Metric::AUC => auc(rows, labels),
        _ => Some(signal_to_noise(rows, original)),
    }
}

fn in_top_five(row: &[f64], label: f64) -> bool {
    let Some(score) = row.get(label as usize) else { return false };
    // Equal scores rank by their class, as a stable sort does.
    let before = row
        .iter()
        .enumerate()
        .filter(|(at, value)| **value > *score || (**value == *score && (*at as f64) < label));
    before.count() < 5
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

/// 10 log10(sum y^2 / sum (y - y')^2) in dB, at most [`EQUAL_DB`].
pub fn signal_to_noise(rows: &Rows, original: &Rows) -> f64 {
    let signal: f64 = original.values.iter().map(|y| y * y).sum();
    let noise = squared_error(&rows.values, &original.values);
    if noise == 0.0 {
        return EQUAL_DB;
    }
    if signal == 0.0 {
        -EQUAL_DB
    } else {
        (10.0 * (signal / noise).log10()).clamp(-EQUAL_DB, EQUAL_DB)
    }
}

/// The F1 score averaged over every class that was chosen or is a label (scikit-learn's `macro`).
fn f1(chosen: &[i64], labels: &[f64]) -> f64 {
    let mut counts: std::collections::BTreeMap<i64, (f64, f64)> = std::collections::BTreeMap::new();
    for (chosen, label) in chosen.iter().zip(labels.iter().map(|label| *label as i64)) {
        counts.entry(*chosen).or_default().1 += 1.0;
        counts.entry(label).or_default().1 += 1.0;
        if *chosen == label {
            counts.entry(label).or_default().0 += 1.0;
        }
    }
    let total: f64 = counts.values().map(|(hits, sum)| 2.0 * hits / sum).sum();
    total / (counts.len().max(1)) as f64
}

/// The area under the ROC curve by ranks, ties counted half (Mann and Whitney). The score is the
/// second output, or the only one.
fn auc(rows: &Rows, labels: &[f64]) -> Option<f64> {
    let score = |row: &[f64]| row.get(1).or(row.first()).copied().unwrap_or(0.0);
    let mut pairs: Vec<(f64, bool)> =
        rows.iter().map(score).zip(labels.iter().map(|l| *l > 0.5)).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = pairs.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = pairs.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (mut below, mut wins) = (0.0, 0.0);
    for group in pairs.chunk_by(|a, b| a.0 == b.0) {
        let hits = group.iter().filter(|(_, positive)| *positive).count() as f64;
        let misses = group.len() as f64 - hits;
        wins += hits * (below + misses / 2.0);
        below += misses;
    }
    Some(wins / (positives * negatives))
}

/// Mean and half width of the 95 % interval of `differences`, by the normal approximation.
pub fn interval(differences: &[f64]) -> (f64, f64) {
    let count = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / count.max(1.0);
    let variance =
        differences.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, 1.96 * (variance / count.max(1.0)).sqrt())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rows(width: usize, values: &[f64]) -> Rows {
        Rows { values: values.to_vec(), width, classes: false }
    }

    #[test]
    fn accuracy_and_top_five_count_the_label() {
        let r = rows(6, &[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(value(Metric::Accuracy, &r, &r, &[0.0, 0.0]), Some(0.5));
        assert_eq!(value(Metric::Top5Accuracy, &r, &r, &[5.0, 3.0]), Some(0.5));
        let binary = rows(1, &[0.9, 0.1]);
        assert_eq!(value(Metric::Accuracy, &binary, &binary, &[1.0, 1.0]), Some(0.5));
    }

    #[test]
    fn auc_counts_ties_half_and_needs_both_classes() {
        let r = rows(1, &[0.1, 0.4, 0.35, 0.8]);
        // scikit-learn's own example.
        assert_eq!(value(Metric::AUC, &r, &r, &[0.0, 0.0, 1.0, 1.0]), Some(0.75));
        let tied = rows(1, &[0.5, 0.5]);
        assert_eq!(value(Metric::AUC, &tied, &tied, &[0.0, 1.0]), Some(0.5));
        assert_eq!(value(Metric::AUC, &tied, &tied, &[1.0, 1.0]), None);
    }

    #[test]
    fn f1_is_the_mean_over_classes() {
        // sklearn.metrics.f1_score([0,1,2,0,1,2], [0,2,1,0,0,1], average='macro') is 0.26666…
        let chosen =
            rows(3, &[1., 0., 0., 0., 0., 1., 0., 1., 0., 1., 0., 0., 1., 0., 0., 0., 1., 0.]);
        let f1 = value(Metric::F1, &chosen, &chosen, &[0., 1., 2., 0., 1., 2.]).unwrap();
        assert!((f1 - 0.8 / 3.0).abs() < 1e-12, "{f1}");
    }

    #[test]
    fn equal_outputs_have_no_noise() {
        let r = rows(2, &[3.0, 4.0]);
        assert_eq!(value(Metric::SignalToNoise, &r, &r, &[]), Some(EQUAL_DB));
        assert_eq!(value(Metric::Cosine, &r, &r, &[]), Some(1.0));
        let off = rows(2, &[3.0, 4.5]);
        let db = value(Metric::SignalToNoise, &off, &r, &[]).unwrap();
        assert!((db - 20.0).abs() < 1e-9, "{db}");
    }

    #[test]
    fn the_interval_is_paired() {
        let (mean, half) = interval(&[0.0, 0.0, 1.0, 1.0]);
        assert!(
            (mean - 0.5).abs() < 1e-12 && (half - 1.96 * (1.0_f64 / 12.0).sqrt()).abs() < 1e-12
        );
    }
}
