//! Operators that give the same elements another shape, and those that make tensors from shapes.

use super::{Call, Dim, Fact, LONGEST, Rule, axes, elementwise, product};
use crate::onnx::graph::attribute;
use crate::onnx::{DataType, weights};

pub(super) fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        "Constant" => constant,
        "Shape" => shape,
        "Size" => size,
        "Reshape" => reshape,
        "Flatten" => flatten,
        "Squeeze" => squeeze,
        "Unsqueeze" => unsqueeze,
        "Transpose" => transpose,
        "Expand" => expand,
        "Tile" => tile,
        "ConstantOfShape" => constant_of_shape,
        "Range" => range,
        "DepthToSpace" => |call| blocks(call, true),
        "SpaceToDepth" => |call| blocks(call, false),
        "EyeLike" => eye_like,
        _ => return None,
    })
}

fn constant(call: &Call<'_>) -> Option<Vec<Fact>> {
    let value = call.node.attribute.first()?;
    let length = |count: usize| Some(vec![Some(count as i64)]);
    let fact = match value.name.as_str() {
        "value" => super::constant(value.t.as_ref()?),
        "value_int" => Fact {
            numbers: Some(vec![Some(value.i)]),
            ..Fact::new(DataType::Int64 as i32, Some(Vec::new()))
        },
        "value_ints" => Fact::vector(value.ints.iter().map(|n| Some(*n)).collect()),
        "value_float" => Fact::new(DataType::Float as i32, Some(Vec::new())),
        "value_floats" => Fact::new(DataType::Float as i32, length(value.floats.len())),
        "value_string" => Fact::new(DataType::String as i32, Some(Vec::new())),
        "value_strings" => Fact::new(DataType::String as i32, length(value.strings.len())),
        _ => return None,
    };
    Some(vec![fact])
}

fn shape(call: &Call<'_>) -> Option<Vec<Fact>> {
    let Some(shape) = call.shape(0) else {
        return Some(vec![Fact::new(DataType::Int64 as i32, Some(vec![None]))]);
    };
    let rank = shape.len() as i64;
    let bound = |name: &str, default: i64| {
        let at = call.int(name, default);
        usize::try_from((if at < 0 { at + rank } else { at }).clamp(0, rank)).ok()
    };
    let (start, end) = (bound("start", 0)?, bound("end", rank)?);
    Some(vec![Fact::vector(shape.get(start..end).unwrap_or_default().to_vec())])
}

fn size(call: &Call<'_>) -> Option<Vec<Fact>> {
    let fact = Fact::new(DataType::Int64 as i32, Some(Vec::new()));
    Some(vec![Fact { numbers: call.shape(0).map(|shape| vec![product(shape)]), ..fact }])
}

fn reshape(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let unknown = |rank: Dim| {
        let shape = usize::try_from(rank?).ok().filter(|rank| *rank <= LONGEST);
        Some(vec![Fact::new(data_type, Some(vec![None; shape?]))])
    };
    let attribute = call.ints("shape").map(|list| list.iter().map(|n| Some(*n)).collect());
    let Some(wanted) = attribute.or_else(|| call.fact(1).numbers.clone()) else {
        return unknown(*call.shape(1)?.first()?);
    };
    let from = call.shape(0);
    let copies = call.int("allowzero", 0) == 0;
    let mut made: Vec<Dim> = Vec::with_capacity(wanted.len());
    for (at, length) in wanted.iter().enumerate() {
        made.push(match length {
            Some(0) if copies => from.and_then(|from| from.get(at).copied().flatten()),
            Some(-1) => None,
            known => *known,
        });
    }
    if let Some(hole) = wanted.iter().position(|length| *length == Some(-1))
        && let Some(from) = from
        && let Some(length) = rest(from, &wanted, copies)
        && let Some(place) = made.get_mut(hole)
    {
        *place = Some(length);
    }
    let mut fact = Fact::new(data_type, Some(made));
    // A scalar made a vector or the other way round.
    if wanted.len() <= 1 {
        fact.numbers = call.fact(0).numbers.clone();
    }
    Some(vec![fact])
}

/// The length that -1 stands for: what is left of the elements of `from` beside `wanted`. Axes of
/// unknown length that a zero copies stand on both sides.
fn rest(from: &[Dim], wanted: &[Dim], copies: bool) -> Dim {
    let copied = |at: usize| copies && wanted.get(at) == Some(&Some(0));
    let left = |at: &usize| !copied(*at);
    let all = product(&(0..from.len()).filter(left).map(|at| *from.get(at)?).collect::<Vec<_>>())?;
    let others = (0..wanted.len()).filter(left).map(|at| *wanted.get(at)?);
    let others = product(&others.filter(|length| *length != Some(-1)).collect::<Vec<_>>())?;
    (others > 0 && all % others == 0).then(|| all / others)
}

fn flatten(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let Some(shape) = call.shape(0) else {
        return Some(vec![Fact::new(data_type, Some(vec![None, None]))]);
    };
    let at = call.int("axis", 1);
    let at = usize::try_from(if at < 0 { at + shape.len() as i64 } else { at }).ok()?;
    let (before, after) = shape.split_at_checked(at)?;
    Some(vec![Fact::new(data_type, Some(vec![product(before), product(after)]))])
}

fn squeeze(call: &Call<'_>) -> Option<Vec<Fact>> {
    let fact = call.fact(0);
    let Ok(list) = call.listed("axes", 1) else {
        return Some(vec![Fact::new(fact.data_type, None)]);
    };
    let shape = fact.shape.as_ref().and_then(|shape| {
        let gone = match list {
            Some(list) => axes(&list, shape.len())?,
            None => {
                // Any axis of unknown length may be 1.
                let known: Vec<i64> = shape.iter().copied().collect::<Option<_>>()?;
                (0..known.len()).filter(|at| known.get(*at) == Some(&1)).collect()
            }
        };
        let kept = shape.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        Some(kept.map(|(_, dim)| *dim).collect::<Vec<Dim>>())
    });
    let numbers = fact.numbers.clone().filter(|_| shape.as_ref().is_some_and(|s| s.len() <= 1));
    Some(vec![Fact { data_type: fact.data_type, shape, numbers }])
}

fn unsqueeze(call: &Call<'_>) -> Option<Vec<Fact>> {
    let fact = call.fact(0);
    let shape = match (fact.shape.as_ref(), call.listed("axes", 1)) {
        (Some(shape), Ok(Some(list))) => inserted(shape, &list),
        _ => None,
    };
    let numbers = fact.numbers.clone().filter(|_| shape.as_ref().is_some_and(|s| s.len() == 1));
    Some(vec![Fact { data_type: fact.data_type, shape, numbers }])
}

fn inserted(shape: &[Dim], list: &[i64]) -> Option<Vec<Dim>> {
    let rank = shape.len() + list.len();
    let new = axes(list, rank)?;
    let mut old = shape.iter();
    let one = |at: usize| if new.contains(&at) { Some(Some(1)) } else { old.next().copied() };
    (0..rank).map(one).collect()
}

fn transpose(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let Some(shape) = call.shape(0) else {
        let rank = call.ints("perm").map(<[i64]>::len);
        return Some(vec![Fact::new(data_type, rank.map(|rank| vec![None; rank]))]);
    };
    let order = match call.ints("perm") {
        Some(order) => axes(order, shape.len())?,
        None => (0..shape.len()).rev().collect(),
    };
    let shape: Option<Vec<Dim>> = order.iter().map(|at| shape.get(*at).copied()).collect();
    Some(vec![Fact::new(data_type, shape)])
}

fn expand(call: &Call<'_>) -> Option<Vec<Fact>> {
    let shape = call.shape(0).zip(call.fact(1).numbers.as_ref());
    let shape = shape.and_then(|(from, to)| elementwise::broadcast(&[from, to]));
    Some(vec![Fact::new(call.fact(0).data_type, shape)])
}

fn tile(call: &Call<'_>) -> Option<Vec<Fact>> {
    // In operator set 1 these were two inputs, a number and an axis.
    if call.opset < 6 {
        return None;
    }
    let shape = call.shape(0)?;
    let times = call.fact(1).numbers.clone().unwrap_or_else(|| vec![None; shape.len()]);
    let one = |(dim, times): (&Dim, &Dim)| (*dim)?.checked_mul((*times)?);
    Some(vec![Fact::new(call.fact(0).data_type, Some(shape.iter().zip(&times).map(one).collect()))])
}

fn constant_of_shape(call: &Call<'_>) -> Option<Vec<Fact>> {
    let value = attribute(call.node, "value").and_then(|value| value.t.as_ref());
    let data_type = value.map_or(DataType::Float as i32, |value| value.data_type);
    let shape = match &call.fact(0).numbers {
        Some(numbers) => Some(numbers.clone()),
        None => {
            let rank = call.shape(0).and_then(|shape| shape.first().copied().flatten());
            let rank = rank.and_then(|rank| usize::try_from(rank).ok());
            rank.filter(|rank| *rank <= LONGEST).map(|rank| vec![None; rank])
        }
    };
    let short = shape.as_ref().filter(|shape| shape.len() <= 1).and_then(|shape| product(shape));
    let numbers = short.filter(|count| (0..=LONGEST as i64).contains(count)).and_then(|count| {
        let fill = *weights::to_i64(value?)?.first()?;
        Some(vec![Some(fill); usize::try_from(count).ok()?])
    });
    Some(vec![Fact { data_type, shape, numbers }])
}

fn range(call: &Call<'_>) -> Option<Vec<Fact>> {
    let data_type = call.fact(0).data_type;
    let scalar = |index: usize| call.numbers(index).and_then(|list| list.first().copied());
    let numbers = || -> Option<Vec<Dim>> {
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
        let span = limit.checked_sub(start)?;
        let count = match delta {
            0 => return None,
            delta if (delta > 0) != (span > 0) => 0,
            delta => span.checked_add(delta - delta.signum())? / delta,
        };
        let all = (0..count).take(LONGEST + 1);
        Some(all.map(|at| start.checked_add(at.checked_mul(delta)?)).collect())
    };
    let fact = match numbers() {
        Some(numbers) if numbers.len() <= LONGEST => Fact { data_type, ..Fact::vector(numbers) },
        _ => Fact::new(data_type, Some(vec![None])),
    };
    Some(vec![fact])
}

fn blocks(call: &Call<'_>, to_space: bool) -> Option<Vec<Fact>> {
    let [batch, channels, height, width] = *call.shape(0)?.as_slice() else { return None };
    let size = call.int("blocksize", 1).max(1);
    let more = |dim: Dim, factor: i64| dim?.checked_mul(factor);
    let fewer = |dim: Dim, factor: i64| dim.filter(|dim| dim % factor == 0).map(|dim| dim / factor);
    let area = size.checked_mul(size)?;
    let shape = if to_space {
        vec![batch, fewer(channels, area), more(height, size), more(width, size)]
    } else {
        vec![batch, more(channels, area), fewer(height, size), fewer(width, size)]
    };
    Some(vec![Fact::new(call.fact(0).data_type, Some(shape))])
}

fn eye_like(call: &Call<'_>) -> Option<Vec<Fact>> {
    let asked = i32::try_from(call.int("dtype", 0)).unwrap_or(0);
    let fact = call.like(0);
    let data_type = if asked == 0 { fact.data_type } else { asked };
    Some(vec![Fact { data_type, ..fact }])
}
