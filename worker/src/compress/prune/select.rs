//! Which channels go: the least important ones, of all groups together or of each by itself.
//!
//! Importance as in Torch-Pruning's `GroupMagnitudeImportance` by default (p = 2, group_reduction and
//! normalizer `mean`): the sum of squares of a channel's weights in each layer that makes or reads it,
//! averaged over those layers, divided by the mean of the group.

use std::collections::{BTreeMap, HashMap, HashSet};

use lithe::recipe::PruneScope;

use crate::compress::prune::atoms::{Atom, FIXED, Labels};
use crate::compress::prune::magnitude::floats;
use crate::compress::prune::trace::{Edit, Norm, Trace};
use crate::compress::prune::weight::not_a_number;
use crate::onnx::{Refusal, TensorProto};

/// Widths are kept at multiples of this, which vector units and tensor cores fill.
const ROUND_TO: usize = 8;

/// The channels that go.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Their classes.
    pub gone: HashSet<Atom>,
    /// How many channels there were to choose from.
    pub candidates: usize,
}

/// Channels that are chosen among each other.
#[derive(Debug, Default)]
struct Group {
    /// All channels.
    width: usize,
    /// (importance, class) of those that may go.
    candidates: Vec<(f64, Atom)>,
}

/// Chooses `share` of the channels of `trace`.
///
/// # Errors
/// `NotFinite` for a weight that holds NaN or an infinity.
pub fn select(trace: &Trace<'_>, share: f64, scope: PruneScope) -> Result<Selection, Refusal> {
    let mut groups = groups(trace, &importances(trace)?);
    let candidates = groups.iter().map(|group| group.candidates.len()).sum();
    let mut counts: Vec<usize> = match scope {
        PruneScope::Local => {
            groups.iter().map(|group| part(share, group.candidates.len())).collect()
        }
        PruneScope::Global => compete(&groups, part(share, candidates)),
    };
    for (group, count) in groups.iter().zip(&mut counts) {
        let kept = rounded(group.width, group.width.saturating_sub(*count), trace.heads);
        *count = (group.width - kept).min(group.candidates.len());
    }
    let mut gone = HashSet::new();
    for (group, count) in groups.iter_mut().zip(counts) {
        group.candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        gone.extend(group.candidates.iter().take(count).map(|(_, class)| *class));
    }
    spare(trace, &groups, &mut gone);
    Ok(Selection { gone, candidates })
}

/// round-half-even(share * count).
fn part(share: f64, count: usize) -> usize {
    (share * count as f64).round_ties_even() as usize
}

/// How many of `width` channels stay where `kept` were wanted: a multiple of [`ROUND_TO`] where there
/// are twice as many, never fewer than that (or than 1 where there are fewer). Heads are not rounded.
fn rounded(width: usize, kept: usize, heads: bool) -> usize {
    if heads || width < ROUND_TO {
        return kept.clamp(1.min(width), width);
    }
    let near =
        if width >= 2 * ROUND_TO { (kept + ROUND_TO / 2) / ROUND_TO * ROUND_TO } else { kept };
    near.clamp(ROUND_TO, width)
}

/// How many channels each group loses when the `count` least important of all go.
fn compete(groups: &[Group], count: usize) -> Vec<usize> {
    let all = groups.iter().enumerate();
    let mut ranked: Vec<(f64, Atom, usize)> = all
        .flat_map(|(at, group)| {
            group.candidates.iter().map(move |(value, class)| (*value, *class, at))
        })
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut counts = vec![0; groups.len()];
    for (_, _, at) in ranked.into_iter().take(count) {
        if let Some(count) = counts.get_mut(at) {
            *count += 1;
        }
    }
    counts
}

/// The groups in order of their first layers, with importances divided by their mean.
fn groups(trace: &Trace<'_>, importances: &HashMap<Atom, f64>) -> Vec<Group> {
    let class = |atom: &Atom| trace.atoms.class(*atom);
    let heads: HashSet<Atom> =
        trace.split.iter().flat_map(|heads| heads.iter().map(class)).collect();
    let mut seen = HashSet::new();
    let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
    for atom in trace.layers.iter().flat_map(|layer| layer.labels.iter()) {
        let class = class(atom);
        if class == FIXED || !seen.insert(class) {
            continue;
        }
        let group = groups.entry(trace.atoms.group(class)).or_default();
        group.width += 1;
        let may_go =
            trace.atoms.reason(class).is_none() && (!trace.heads || heads.contains(&class));
        if may_go {
            group.candidates.push((importances.get(&class).copied().unwrap_or(0.0), class));
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        let sum: f64 = group.candidates.iter().map(|(value, _)| value).sum();
        let mean = sum / group.candidates.len().max(1) as f64;
        if mean > 0.0 {
            group.candidates.iter_mut().for_each(|(value, _)| *value /= mean);
        }
    }
    groups
}

/// The mean over layers of each class's sums of squares.
fn importances(trace: &Trace<'_>) -> Result<HashMap<Atom, f64>, Refusal> {
    let mut sums: HashMap<Atom, (f64, f64)> = HashMap::new();
    for norm in &trace.norms {
        let Some(tensor) = trace.constants.get(norm.weight.as_str()) else { continue };
        let mut one: HashMap<Atom, f64> = HashMap::new();
        for (atom, square) in norm.labels.iter().zip(squares(tensor, norm)) {
            *one.entry(trace.atoms.class(*atom)).or_default() += square;
        }
        for (class, square) in one {
            if !square.is_finite() {
                return Err(not_a_number(&norm.weight));
            }
            let (sum, layers) = sums.entry(class).or_default();
            *sum += square;
            *layers += 1.0;
        }
    }
    Ok(sums.into_iter().map(|(class, (sum, layers))| (class, sum / layers)).collect())
}

/// The sum of squares of the weights of each index of the norm's axis.
fn squares(tensor: &TensorProto, norm: &Norm) -> Vec<f64> {
    let length = norm.labels.len().max(1);
    let inside: i64 = tensor.dims.iter().skip(norm.axis + 1).product();
    let inside = usize::try_from(inside).unwrap_or(1).max(1);
    let mut sums = vec![0.0; length];
    for (at, value) in floats(&tensor.raw_data).enumerate() {
        if let Some(sum) = sums.get_mut(at / inside % length) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    sums
}

/// Takes back what would leave an axis of a constant, or a part of a Split, without channels.
fn spare(trace: &Trace<'_>, groups: &[Group], gone: &mut HashSet<Atom>) {
    let importance: HashMap<Atom, f64> = groups
        .iter()
        .flat_map(|group| &group.candidates)
        .map(|(value, class)| (*class, *value))
        .collect();
    let parts = trace.edits.iter().flat_map(|edit| match edit {
        Edit::Split { parts, .. } => parts.as_slice(),
        Edit::Group { labels, .. } => std::slice::from_ref(labels),
    });
    let axes = trace.slices.values().flatten().flatten();
    let guarded: Vec<&Labels> = axes.chain(parts).collect();
    for labels in guarded {
        let classes: Vec<Atom> = labels.iter().map(|atom| trace.atoms.class(*atom)).collect();
        if classes.iter().any(|class| !gone.contains(class)) {
            continue;
        }
        let value = |class: &Atom| importance.get(class).copied().unwrap_or(0.0);
        if let Some(best) = classes.iter().max_by(|a, b| value(a).total_cmp(&value(b))) {
            gone.remove(best);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_stay_multiples_of_eight_where_there_are_enough() {
        for (width, wanted, kept) in [
            (64, 32, 32),
            (64, 29, 32),
            (64, 27, 24),
            (24, 12, 16),
            (12, 6, 8),
            (6, 3, 3),
            (64, 1, 8),
            (1, 0, 1),
            (20, 19, 16),
        ] {
            assert_eq!(rounded(width, wanted, false), kept, "{wanted} of {width}");
        }
        assert_eq!(rounded(12, 6, true), 6);
        assert_eq!(rounded(12, 0, true), 1);
    }
}
